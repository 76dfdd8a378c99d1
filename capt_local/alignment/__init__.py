"""What a proxy's probabilities say about the target's tokens."""
