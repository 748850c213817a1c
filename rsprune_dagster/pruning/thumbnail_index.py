"""Candidate pairs of near-duplicates, without comparing all pairs.

An inverted file (Sivic and Zisserman 2003) on an orientation-invariant feature. Its pivots are evenly spaced rows:
content order is effectively random, and without training the result does not depend on threads or libraries.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.fft import dctn

from rsprune_dagster.pruning.numerics import blocks
from rsprune_dagster.pruning.thumbnail_detail import EDGE, SYMMETRIES, tones_agree

N_FREQUENCIES: Final = 6
"""The feature uses cosine frequencies whose sum over both axes is below this."""
MIN_CONTRAST_NORM: Final = 128.0
"""Smallest norm that features are divided by (8 grey levels x 16 px), so that noise is not amplified."""
RADIUS: Final = 0.25
"""Largest distance of candidates in the index; features have norm 1 at most. A 2 px shift of a 64 px tile changes the
feature by 0.12 to 0.25."""
PIVOTS_PER_ROOT: Final = 4
"""The index of N tiles has this times sqrt(N) lists: a tile is compared with 4 sqrt(N) pivots and 3 sqrt(N) tiles."""
N_PROBES: Final = 12
"""Lists searched for each tile."""
BLOCK: Final = 4096
"""Thumbnails processed at a time by one thread."""

Rows = NDArray[np.int64]


def candidate_pairs(
    thumbnails: NDArray[np.uint8],
    tones: tuple[NDArray[np.float64], NDArray[np.float64]],
    rows: Rows,
    *,
    n_neighbours: int,
    workers: int = 1,
) -> NDArray[np.int64]:
    """Pairs (P, 2) of the ascending `rows` (n,) that are equal up to orientation or neighbours; sorted by the later
    row.

    Args:
        thumbnails: (N, 256) uint8.
        tones: mean grey level and detail (N,) of each; incompatible pairs are left out.
        n_neighbours: number of nearest neighbours to search within RADIUS.
        workers: number of threads; the result does not depend on it.
    """
    first = first_equal_row(thumbnails, rows)
    kept = rows[first == rows]
    with ThreadPoolExecutor(workers) as pool:
        near = _neighbours(pool, thumbnails, kept, tones[0][kept], tones[1][kept], n_neighbours)
    one, slot = np.nonzero(near >= 0)
    a, b = np.append(kept[one], rows[first != rows]), np.append(kept[near[one, slot]], first[first != rows])
    keys = np.unique(np.maximum(a, b) * len(thumbnails) + np.minimum(a, b))
    return np.stack([keys % len(thumbnails), keys // len(thumbnails)], axis=1)


def turn_free(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features (N, D) of thumbnails (N, 256), invariant to 90-degree rotations and flips; norms up to 1.

    A flip changes signs of the two-dimensional cosine transform c, a transposition swaps c_uv and c_vu. So |c_uv| +
    |c_vu| and ||c_uv| - |c_vu|| are invariant. Low frequencies only, divided by the norm of all, which removes
    brightness and contrast.
    """
    waves = np.abs(dctn(thumbnails.reshape(-1, EDGE, EDGE).astype(np.float64), axes=(1, 2), norm="ortho"))
    waves[:, 0, 0] = 0.0
    u, v = np.array([(u, v) for u in range(N_FREQUENCIES) for v in range(u, N_FREQUENCIES - u) if v > 0]).T
    one, other = waves[:, u, v], waves[:, v, u]
    columns = np.concatenate([one + other, np.abs(one - other)[:, u != v]], axis=1) / math.sqrt(2.0)
    norm = np.sqrt((waves**2).sum((1, 2)))
    return np.asarray(columns / np.maximum(norm, MIN_CONTRAST_NORM)[:, None], np.float32)


def first_equal_row(thumbnails: NDArray[np.uint8], rows: Rows) -> Rows:
    """For each of `rows` (n,), the first that equals it up to orientation; keeps equal thumbnails out of the index."""
    _, first, group = np.unique(_keys(thumbnails, rows), return_index=True, return_inverse=True)
    leaders = rows[first[group]]
    return np.asarray(np.where(_equal(thumbnails, leaders, rows), leaders, rows))


@njit(cache=True, nogil=True)
def _keys(thumbnails, rows):  # type: ignore[no-untyped-def]
    """An orientation-invariant hash (n,) of each thumbnail: FNV-1a over its canonical orientation."""
    keys = np.empty(rows.size, np.uint64)
    for at in range(rows.size):
        key = np.uint64(14695981039346656037)
        for level in _standard(thumbnails[rows[at]]):
            key = (key ^ np.uint64(level)) * np.uint64(1099511628211)
        keys[at] = key
    return keys


@njit(cache=True, nogil=True)
def _equal(thumbnails, one, other):  # type: ignore[no-untyped-def]
    """Whether the thumbnails of rows one (n,) and other (n,) are equal up to orientation; hashes may collide."""
    equal = np.ones(one.size, np.bool_)
    for at in range(one.size):
        if one[at] != other[at]:
            equal[at] = np.array_equal(_standard(thumbnails[one[at]]), _standard(thumbnails[other[at]]))
    return equal


@njit(cache=True, nogil=True)
def _standard(thumbnail):  # type: ignore[no-untyped-def]
    """The canonical orientation of a thumbnail: the first of the eight in byte order."""
    best = 0
    for turn in range(1, 8):
        for i in range(thumbnail.size):
            new, old = thumbnail[SYMMETRIES[turn, i]], thumbnail[SYMMETRIES[best, i]]
            if new != old:
                if new < old:
                    best = turn
                break
    return thumbnail[SYMMETRIES[best]]


def _neighbours(
    pool: ThreadPoolExecutor,
    thumbnails: NDArray[np.uint8],
    kept: Rows,
    means: NDArray[np.float64],
    details: NDArray[np.float64],
    n_neighbours: int,
) -> NDArray[np.int32]:
    """Positions (n, n_neighbours) in `kept` (n,) of the nearest neighbours of each, nearest first, padded with -1."""
    described = _in_blocks(pool, len(kept), lambda rows: turn_free(thumbnails[kept[rows]]))
    n_pivots = min(PIVOTS_PER_ROOT * math.isqrt(len(kept)), len(kept))
    pivots = np.ascontiguousarray(described[np.linspace(0, len(kept) - 1, n_pivots).astype(np.int64)].T)
    n_probes = min(N_PROBES, n_pivots)
    probes = _in_blocks(pool, len(kept), lambda rows: _nearest_pivots(described[rows], pivots, n_probes))
    members = np.argsort(probes[:, 0], kind="stable")  # sorted by list, which is also the search order
    starts = np.searchsorted(probes[members, 0], np.arange(n_pivots + 1))
    lists = _packed(described, members, starts), members, starts, means, details
    found = _in_blocks(pool, len(kept), lambda rows: _search(described, probes, members[rows], *lists, n_neighbours))
    near = np.empty_like(found)
    near[members] = found
    return near


def _in_blocks(
    pool: ThreadPoolExecutor, n_rows: int, work: Callable[[slice], NDArray[np.generic]]
) -> NDArray[np.generic]:
    """The concatenated results of `work` on each block of rows."""
    return np.concatenate(list(pool.map(work, [*blocks(n_rows, BLOCK)] or [slice(0, 0)])))


@njit(cache=True, nogil=True)
def _insert(rows, distances, row, distance):  # type: ignore[no-untyped-def]
    """Insert a row into a short list sorted by distance; ties keep their order."""
    at = distances.size - 1
    while at > 0 and distances[at - 1] > distance:
        distances[at], rows[at] = distances[at - 1], rows[at - 1]
        at -= 1
    distances[at], rows[at] = distance, row


@njit(cache=True, nogil=True)
def _squared(point, columns, size, squared):  # type: ignore[no-untyped-def]
    """Squared distances of a point (D,) to the `size` points in `columns`, stored component-wise, so that the inner
    loop is vectorized over points and each sum has a fixed order."""
    squared[:size] = 0.0
    for i in range(point.size):
        column = columns[i * size : (i + 1) * size]
        for j in range(size):
            squared[j] += (column[j] - point[i]) * (column[j] - point[i])


@njit(cache=True, nogil=True)
def _nearest_pivots(points, pivots, n):  # type: ignore[no-untyped-def]
    nearest = np.zeros((points.shape[0], n), np.int32)
    columns, squared = pivots.ravel(), np.empty(pivots.shape[1], np.float32)
    for row in range(points.shape[0]):
        distances = np.full(n, np.float32(np.inf))
        _squared(points[row], columns, squared.size, squared)
        for pivot in range(squared.size):
            if squared[pivot] < distances[n - 1]:
                _insert(nearest[row], distances, pivot, squared[pivot])
    return nearest


@njit(cache=True, nogil=True)
def _packed(points, members, starts):  # type: ignore[no-untyped-def]
    """The points (n, D) grouped by list, each list stored component-wise."""
    packed = np.empty(points.size, np.float32)
    for pivot in range(starts.size - 1):
        first, size = starts[pivot], starts[pivot + 1] - starts[pivot]
        for i in range(points.shape[1]):
            for j in range(size):
                packed[first * points.shape[1] + i * size + j] = points[members[first + j], i]
    return packed


@njit(cache=True, nogil=True)
def _search(points, probes, rows, packed, members, starts, means, details, n):  # type: ignore[no-untyped-def]
    near = np.full((rows.size, n), -1, np.int32)
    squared = np.empty(np.diff(starts).max(), np.float32)
    for at in range(rows.size):
        row = rows[at]
        distances = np.full(n, np.float32(RADIUS**2))
        for pivot in probes[row]:
            first, size = starts[pivot], starts[pivot + 1] - starts[pivot]
            columns = packed[first * points.shape[1] : (first + size) * points.shape[1]]
            _squared(points[row], columns, size, squared)
            for j in range(size):
                if squared[j] < distances[n - 1]:
                    other = members[first + j]
                    if other != row and tones_agree(means[row], details[row], means[other], details[other]):
                        _insert(near[at], distances, other, squared[j])
    return near
