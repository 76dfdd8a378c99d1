"""Many requests at once: each goes its own way, and their models decode together."""
