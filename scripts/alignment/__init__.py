"""Measurements of the alignment and of the weights; see scripts/measure_alignment.py."""
