"""Metrics over arrays and token lists; numpy alone."""
