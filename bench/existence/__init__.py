"""Whether the time of an answer tells what somebody else has."""
