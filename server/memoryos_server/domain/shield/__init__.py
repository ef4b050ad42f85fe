"""The content shield: what looks like an attempt on a model, and what should not be remembered."""
