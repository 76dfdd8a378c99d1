"""Best of n: several answers to one prompt, and what ranks them."""
