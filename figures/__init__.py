"""Drawings from arrays, never from a model."""
