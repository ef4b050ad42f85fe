"""What is served while stores are away: the table that the contract promises, and what is seen."""
