"""A fitted network as something to ask."""
