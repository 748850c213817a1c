"""Stage 1: the entropy of a tile in bits, and the threshold below which tiles are dropped.

The kernels are compiled by numba, release the GIL and process one tile at a time; they run in the scan (`scan.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit

THUMBNAIL_PX = 16
N_LEVELS = 256
PATCH_GRID: Final = 4
"""Patches along each edge of a tile, over which the entropy is also averaged."""
MAX_SCENE_LOSS: Final = 0.02
"""Largest share of any reference scene that may fall below the threshold, so that no scene is erased."""
MAX_THRESHOLD_BITS: Final = 1.25
"""Upper limit of the calibrated threshold. 0.7 % of EuroSAT's pool lies below 1.25 bits, but 6.4 %, including nearly
half of its sea, below 2."""

_TABLE_LENGTH = 2**16 + 1
_FIXED_POINT = float(2**32)
_COUNTS = np.arange(_TABLE_LENGTH, dtype=np.float64)
_N_LOG_N = np.rint(_COUNTS * np.log2(np.maximum(_COUNTS, 1.0)) * _FIXED_POINT).astype(np.int64)
"""Lookup table of n log2 n in units of 2**-32 bit: integer sums do not depend on their order."""


@njit(cache=True, nogil=True)
def patch_histograms(grey: np.ndarray, valid: np.ndarray, grid: int) -> np.ndarray:
    """Grey-level histograms of `grid` x `grid` patches.

    Args:
        grey: (H, W) uint8.
        valid: (H, W) bool, false for nodata; (0, 0) if all pixels are valid.

    Returns:
        (grid * grid, 256) int32, patches row by row.
    """
    height, width = grey.shape
    masked = valid.size > 0
    counts = np.zeros((grid * grid, N_LEVELS), np.int32)
    for row in range(grid):
        for column in range(grid):
            patch = counts[row * grid + column]
            left, right = column * width // grid, (column + 1) * width // grid
            for y in range(row * height // grid, (row + 1) * height // grid):
                if masked:
                    for x in range(left, right):
                        patch[grey[y, x]] += valid[y, x]
                else:
                    for x in range(left, right):
                        patch[grey[y, x]] += 1
    return counts


@njit(cache=True, nogil=True)
def entropy_of_counts(counts: np.ndarray) -> float:
    """Shannon entropy of a histogram: H = log2 n - (1/n) sum c log2 c (Shannon 1948).

    Args:
        counts: (256,) int32, of fewer than 2**31 pixels.

    Returns:
        Bits, 0 (constant, or no pixel at all) to 8 (all grey levels equally often).
    """
    n = counts.sum()
    if n == 0:
        return 0.0
    total = 0.0
    if n < _TABLE_LENGTH:
        fixed = 0
        for level in range(N_LEVELS):
            fixed += _N_LOG_N[counts[level]]
        total = fixed / _FIXED_POINT
    else:
        for level in range(N_LEVELS):
            if counts[level] > 0:
                total += counts[level] * np.log2(counts[level])
    bits: float = max(0.0, np.log2(n) - total / n)
    return bits


@njit(cache=True, nogil=True)
def tile_entropy(grey: np.ndarray, valid: np.ndarray, grid: int) -> tuple[float, float]:
    """Entropy of the whole tile, and the mean over its patches.

    The latter distinguishes half-blank from full tiles. Patches without valid pixels count as 0.

    Args:
        grey: (H, W) uint8.
        valid: (H, W) bool, or (0, 0) if all pixels are valid.

    Returns:
        (entropy_bits, patch_entropy_bits), each 0 to 8.
    """
    counts = patch_histograms(grey, valid, grid)
    whole = np.zeros(N_LEVELS, np.int32)
    patches = 0.0
    for index in range(len(counts)):
        for level in range(N_LEVELS):
            whole[level] += counts[index, level]
        patches += entropy_of_counts(counts[index])
    return entropy_of_counts(whole), patches / len(counts)


@njit(cache=True, nogil=True)
def thumbnail(grey: np.ndarray) -> np.ndarray:
    """Area-averaged thumbnail, for near-duplicates: (16, 16) uint8 from (H, W) uint8, at least 1 px each way."""
    height, width = grey.shape
    small = np.empty((THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
    band = np.empty(width, np.int64)
    for row in range(THUMBNAIL_PX):
        top = row * height // THUMBNAIL_PX
        bottom = max(top + 1, (row + 1) * height // THUMBNAIL_PX)
        band[:] = 0
        for y in range(top, bottom):  # row by row, which the compiler vectorizes
            for x in range(width):
                band[x] += grey[y, x]
        for column in range(THUMBNAIL_PX):
            left = column * width // THUMBNAIL_PX
            right = max(left + 1, (column + 1) * width // THUMBNAIL_PX)
            area = (bottom - top) * (right - left)
            small[row, column] = (2 * band[left:right].sum() + area) // (2 * area)
    return small


@dataclass(frozen=True)
class Threshold:
    """The entropy below which tiles are dropped, and how it was determined."""

    bits: float
    origin: str


def threshold_from_reference(
    entropy_by_scene: Mapping[str, np.ndarray],
    *,
    max_scene_loss: float = MAX_SCENE_LOSS,
    max_threshold_bits: float = MAX_THRESHOLD_BITS,
) -> Threshold:
    """The highest threshold at which no reference scene loses more than `max_scene_loss` of its tiles.

    t = min over scenes of the scene's `max_scene_loss` quantile, capped. The cap matters for a foreign reference:
    aerial photographs at 0.3 m have 6 to 7 bits, calm sea in satellite images has 3.

    Args:
        entropy_by_scene: for each scene, (n,) entropies in bits; none may be empty.
    """
    floors = {
        scene: float(np.quantile(bits, max_scene_loss, method="lower")) for scene, bits in entropy_by_scene.items()
    }
    scene = min(floors, key=lambda name: (floors[name], name))
    if floors[scene] > max_threshold_bits:
        return Threshold(
            max_threshold_bits,
            f"the cap of {max_threshold_bits:g} bits; the reference alone would allow {floors[scene]:.2f}",
        )
    return Threshold(
        floors[scene], f"at most {max_scene_loss:.0%} of any reference scene lies below it; {scene!r} decides"
    )


def threshold_from_quantile(entropy_bits: np.ndarray, *, quantile: float) -> Threshold:
    """The `quantile` of the corpus' entropies `entropy_bits` (N,), N >= 1."""
    return Threshold(
        float(np.quantile(entropy_bits, quantile, method="lower")), f"the lowest {quantile:.0%} of the corpus"
    )
