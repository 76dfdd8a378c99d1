"""The published methods that capt-local is compared with, to the letter (docs/baselines.md)."""
