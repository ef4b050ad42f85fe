"""Typed memories: rules, facts and contexts that somebody wrote down or that were extracted from a text."""
