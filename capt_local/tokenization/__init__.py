"""Vocabularies as bytes, and text as tokens."""
