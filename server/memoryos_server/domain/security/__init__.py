"""Security: what people agree to."""
