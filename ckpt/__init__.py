"""The shipped checkpoints, the list of all, and how they are fetched."""
