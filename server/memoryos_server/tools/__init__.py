"""The world outside the stores: models, providers, words."""
