"""Builders: each returns a model with its preprocessing. Import them from their modules, so that a
script pays for what it uses alone."""
