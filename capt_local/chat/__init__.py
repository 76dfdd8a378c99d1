"""A conversation: what was said, what typed lines mean, how it is kept. Prints nothing."""
