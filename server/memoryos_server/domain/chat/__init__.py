"""Chat: passes conversations to a provider byte for byte, puts memories in before, and remembers the turn after."""
