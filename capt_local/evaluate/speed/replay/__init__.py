"""Runs of one bundle as numbers, and driving another bundle through them."""
