"""Privacy: a person's data handed over whole, and erased."""
