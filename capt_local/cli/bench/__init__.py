"""`capt-local bench`."""
