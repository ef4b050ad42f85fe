"""Recall: what was said, found again. Knows nothing of stores, models or the wire."""
