"""`capt-local doctor`, and what else asks for its findings."""
