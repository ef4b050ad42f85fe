"""What operators do: keys now; defense and users later."""
