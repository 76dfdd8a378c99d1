"""Measurements: how well texts are predicted, and how fast answers come."""
