"""Everything that makes a model."""
