"""A model over a folder of photos."""
