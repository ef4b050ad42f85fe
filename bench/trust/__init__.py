"""What the trust plane costs: a banned address beside a raw echo, and everything on beside everything off."""
