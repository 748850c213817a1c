"""Overlapping windows of a scene, and the weights by which they are blended."""

import numpy as np


def corners(length: int, window: int, overlap: int) -> list[int]:
    """The first pixels of windows that cover `length`, neighbours overlapping by `overlap` or more."""
    return [*range(0, length - window, window - overlap), length - window]


def ramp(edge: int, overlap: int) -> np.ndarray:
    """(edge,) float32 weights of a window's pixels: they rise over the overlap, and fall at the other end."""
    rising = (np.arange(edge) + 0.5) / max(1, overlap)
    return np.minimum(np.minimum(rising, rising[::-1]), 1.0).astype(np.float32)
