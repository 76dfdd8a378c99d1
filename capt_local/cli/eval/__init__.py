"""The verbs that judge answers: eval and score."""
