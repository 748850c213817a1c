"""Tiles to unit vectors: frozen encoders, their weights, and vectors on disk."""
