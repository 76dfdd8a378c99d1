"""Many records in one run: what a line is, what is safe on disk, the order of work."""
