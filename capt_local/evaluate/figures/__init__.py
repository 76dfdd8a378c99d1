"""What answers are worth, and how sure that is."""
