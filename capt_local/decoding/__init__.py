"""Combination and choice of tokens. Knows models by a protocol alone."""
