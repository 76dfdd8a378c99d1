"""What is asked, how it is put to a model, and how its answer is read."""
