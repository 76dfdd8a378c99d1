"""Bundles: which models belong together, where they lie, and whether they are the right ones."""
