"""Alignment of two vocabularies by bytes. Pure: knows no model."""
