"""Speed without a change in the answer: drafts that all models check in one batch each."""
