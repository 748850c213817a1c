"""Downstream tasks of the foundation model: super-resolution."""
