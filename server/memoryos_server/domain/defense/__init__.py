"""Who is kept out because of what he did without a key."""
