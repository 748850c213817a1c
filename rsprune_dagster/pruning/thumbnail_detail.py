"""Brightness, detail and the eight orientations of a 16 x 16 thumbnail."""

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

EDGE: Final = 16
"""Edge of a thumbnail, px."""
MAX_CONTRAST_RATIO: Final = 1.25
"""Upper limit of the contrast difference of two copies; brightness changes of 5 % and shifts by half a thumbnail pixel
stay well below."""
MAX_LEVEL_SHARE: Final = 0.08
MAX_LEVELS: Final = 3.0
"""Upper limits of the brightness difference of two copies: a share of the brighter mean, or grey levels if that is
more."""


def _symmetries() -> NDArray[np.int64]:
    """(8, 256): pixel indices of the eight rotations and flips of a thumbnail."""
    grid = np.arange(EDGE * EDGE).reshape(EDGE, EDGE)
    turns = [np.rot90(square, n) for square in (grid, grid.T) for n in range(4)]
    return np.stack([turn.ravel() for turn in turns]).astype(np.int64)


def _quadratic_surface(edge: int) -> NDArray[np.float64]:
    """(6, edge²): orthonormal 1, x, y, x², xy, y² on a grid, by Gram and Schmidt in this order."""
    y, x = np.mgrid[:edge, :edge] * (2.0 / (edge - 1)) - 1.0
    basis: list[NDArray[np.float64]] = []
    for surface in (np.ones_like(x), x, y, x * x, x * y, y * y):
        vector = surface.ravel()
        for earlier in basis * 2:  # twice, to remove the rounding errors of the first pass
            vector = vector - (vector * earlier).sum() * earlier
        basis.append(vector / math.sqrt((vector * vector).sum()))
    return np.stack(basis)


SYMMETRIES: Final = _symmetries()
SURFACE: Final = _quadratic_surface(EDGE)
INNER_SURFACE: Final = _quadratic_surface(EDGE - 2)


@njit(cache=True, nogil=True)
def remove(vector, basis):  # type: ignore[no-untyped-def]
    """Remove the components along the orthonormal rows of `basis` from `vector`, in place."""
    along = np.zeros(basis.shape[0])
    for i in range(vector.size):
        for row in range(basis.shape[0]):  # independent sums, which the processor runs in parallel
            along[row] += vector[i] * basis[row, i]
    for row in range(basis.shape[0]):
        for i in range(vector.size):
            vector[i] -= along[row] * basis[row, i]


@njit(cache=True, nogil=True)
def dot(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(cache=True, nogil=True)
def _tones(thumbnails):  # type: ignore[no-untyped-def]
    means, details = np.empty(thumbnails.shape[0]), np.empty(thumbnails.shape[0])
    for row in range(means.size):
        vector = thumbnails[row].astype(np.float64)
        means[row] = vector.mean()
        remove(vector, SURFACE)
        details[row] = math.sqrt(dot(vector, vector) / vector.size)
    return means, details


def tones(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean grey level (N,), 0 to 255, and detail (N,), 0 to 127, of thumbnails (N, 256).

    Detail is the standard deviation in grey levels around the best quadratic surface.
    """
    means, details = _tones(thumbnails)
    return means, details


@njit(cache=True, nogil=True)
def tones_agree(mean_a, detail_a, mean_b, detail_b):  # type: ignore[no-untyped-def]
    """Whether brightness and contrast of two thumbnails are compatible with being copies."""
    if abs(mean_a - mean_b) > max(MAX_LEVELS, MAX_LEVEL_SHARE * max(mean_a, mean_b)):
        return False
    return max(detail_a, detail_b) <= MAX_CONTRAST_RATIO * min(detail_a, detail_b)
