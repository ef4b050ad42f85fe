"""What the rules take from conversations, and how much of it is junk."""
