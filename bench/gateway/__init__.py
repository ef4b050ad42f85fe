"""What the chat gateway adds to a call, beside LiteLLM's proxy and a bare pass-through."""
