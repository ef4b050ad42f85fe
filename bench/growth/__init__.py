"""How much each store grows with what is kept."""
