"""capt-local as a model of lm-evaluation-harness, and its command line with that model in it."""
