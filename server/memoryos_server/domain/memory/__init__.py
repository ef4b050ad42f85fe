"""What was said: accepted once, indexed, found again."""
