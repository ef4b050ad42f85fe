"""Embedders: meaning as vectors, computed locally."""
