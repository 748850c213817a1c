"""Near-duplicates: copies of an image that are rotated, flipped, re-encoded, brightened, slightly shifted or noisy.

Nadir tiles have no canonical orientation, so all eight rotations and flips are tried. Candidates come from an index on
a feature that is invariant to these eight, without comparing all pairs. Two candidates are compared on their 16 x 16
thumbnails by a regression: how much of the *detail* of one (beyond a smooth quadratic surface) the other explains, when
rotated, flipped, scaled in contrast and shifted by a fraction of a thumbnail pixel. Plain correlation does not
suffice: any two shores, field edges or gradients of one direction correlate. Tiles without detail at this scale (calm
water, closed forest) are never near-duplicates: two pieces of sea are two tiles.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rsprune_dagster.pruning.numerics import blocks
from rsprune_dagster.pruning.thumbnail_detail import (
    EDGE,
    INNER_SURFACE,
    SURFACE,
    SYMMETRIES,
    dot,
    remove,
    tones,
    tones_agree,
)
from rsprune_dagster.pruning.thumbnail_index import candidate_pairs

MIN_DETAIL: Final = 1.5
"""Smallest detail of a comparable thumbnail: standard deviation from a quadratic surface, in grey levels. Rounding,
JPEG and sensor noise give 0.3 to 1."""
MIN_PLAIN_CORRELATION: Final = 0.5
"""Pairs whose detail correlates less before shifting are rejected early."""
PLACES: Final = np.ascontiguousarray(SYMMETRIES.T)
"""(256, 8): pixel indices of the eight orientations, to try all in one pass over a thumbnail."""
BLOCK_PAIRS: Final = 8192
"""Pairs compared at a time, by one thread."""


def near_duplicates(
    thumbnails: NDArray[np.uint8],
    *,
    correlation: float = 0.94,
    embeddings: NDArray[np.floating] | None = None,
    min_cosine: float = 0.7,
    n_neighbours: int = 16,
    workers: int = 1,
) -> NDArray[np.int64]:
    """The row that each tile is a near-duplicate of; its own row if it is none.

    Args:
        thumbnails: (N, 256) uint8, 16 x 16 area-averaged grey levels; in content order, without exact duplicates.
        correlation: multiple correlation of detail, 0 to 1, from which two tiles are near-duplicates.
        embeddings: (N, d) vectors; if given, the cosine of two tiles must also be at least `min_cosine`.
        n_neighbours: candidates per tile.
        workers: number of threads; the result does not depend on it.

    Returns:
        Leaders (N,) int64: a leader is the first of its copies in content order, leads itself, and was compared with
        each tile that it leads, so there are no chains. Time grows as N^1.5: about 20 microseconds per tile at a
        million tiles.
    """
    thumbnails = np.ascontiguousarray(thumbnails).reshape(-1, EDGE * EDGE)
    vectors = np.zeros((0, 0), np.float32) if embeddings is None else np.asarray(embeddings)
    leader = np.arange(len(thumbnails), dtype=np.int64)
    means, details = tones(thumbnails)
    evidence = thumbnails, means, details, vectors, correlation, min_cosine
    searched = np.flatnonzero(details >= MIN_DETAIL)
    while len(searched) > 1:
        pairs = candidate_pairs(thumbnails, (means, details), searched, n_neighbours=n_neighbours, workers=workers)
        merged = _adopt(leader, pairs, compared(pairs, evidence, workers), *evidence)
        # More than n_neighbours copies of one tile form several groups: compare their leaders until none merge.
        searched = np.unique(leader[leader != np.arange(len(leader))]) if merged else searched[:0]
    return leader


def compared(pairs: NDArray[np.int64], evidence: tuple[Any, ...], workers: int) -> NDArray[np.bool_]:
    """Whether each of `pairs` (P, 2) is a near-duplicate, multithreaded."""
    with ThreadPoolExecutor(workers) as pool:
        copies = pool.map(lambda part: _compare(pairs[part], *evidence), blocks(len(pairs), BLOCK_PAIRS))
        return np.concatenate([np.zeros(0, np.bool_), *copies])


@njit(cache=True, nogil=True)
def _compare(pairs, thumbnails, means, details, vectors, correlation, min_cosine):  # type: ignore[no-untyped-def]
    """Whether each of `pairs` (P, 2) is a near-duplicate."""
    copies = np.empty(pairs.shape[0], np.bool_)
    for p in range(pairs.shape[0]):
        copies[p] = _is_copy(pairs[p, 0], pairs[p, 1], thumbnails, means, details, vectors, correlation, min_cosine)
    return copies


@njit(cache=True, nogil=True)
def _adopt(leader, pairs, copies, thumbnails, means, details, vectors, correlation, min_cosine):  # type: ignore[no-untyped-def]
    """Assign the later tile of each pair to the first leader that it is a copy of, in place; whether any changed.

    `copies` (P,): whether each pair is a near-duplicate. Only a pair's *leader* may need a new comparison.
    """
    merged = False
    for p in range(pairs.shape[0]):
        head, row = leader[pairs[p, 0]], pairs[p, 1]
        if leader[row] != row or head >= row:
            continue
        copy = copies[p]
        if head != pairs[p, 0]:
            copy = _is_copy(head, row, thumbnails, means, details, vectors, correlation, min_cosine)
        if copy:
            leader[row] = head
            merged = True
    for row in range(leader.size):  # tiles whose leader has just got a leader itself
        head = leader[leader[row]]
        if head != leader[row]:
            copy = _is_copy(head, row, thumbnails, means, details, vectors, correlation, min_cosine)
            leader[row] = head if copy else row
    return merged


@njit(cache=True, nogil=True)
def _is_copy(a, b, thumbnails, means, details, vectors, correlation, min_cosine):  # type: ignore[no-untyped-def]
    """Whether rows a and b are near-duplicates."""
    if not tones_agree(means[a], details[a], means[b], details[b]):
        return False
    if vectors.shape[0] > 0 and not _has_cosine(vectors[a], vectors[b], min_cosine):
        return False
    one, other = thumbnails[a].astype(np.float64), thumbnails[b].astype(np.float64)
    turn = _best_turn(one, other, MIN_PLAIN_CORRELATION * one.size * details[a] * details[b])
    if turn < 0:
        return False
    turned = one[SYMMETRIES[turn]]
    # In both directions: a tile with one bright corner explains many others, but they do not explain it.
    return _explained(turned, other) >= correlation and _explained(other, turned) >= correlation


@njit(cache=True, nogil=True)
def _has_cosine(a, b, min_cosine):  # type: ignore[no-untyped-def]
    """Whether the cosine of two vectors is at least `min_cosine`; false for a zero vector."""
    ab, aa, bb = 0.0, 0.0, 0.0
    for i in range(a.size):
        x, y = float(a[i]), float(b[i])
        ab += x * y
        aa += x * x
        bb += y * y
    return ab >= min_cosine * math.sqrt(aa * bb) and aa * bb > 0.0


@njit(cache=True, nogil=True)
def _best_turn(one, other, least):  # type: ignore[no-untyped-def]
    """The orientation of `one` whose detail has the largest product with the other's; -1 if none is above `least`.

    Quadratic surfaces stay such when rotated, so it suffices to remove them from the other.
    """
    detail = other.copy()
    remove(detail, SURFACE)
    along = np.zeros(8)
    for i in range(detail.size):
        for turn in range(8):
            along[turn] += one[PLACES[i, turn]] * detail[i]
    best = along.argmax()
    return best if along[best] > least else -1


@njit(cache=True, nogil=True)
def _explained(one, other):  # type: ignore[no-untyped-def]
    """Multiple correlation, 0 to 1, of the other's detail with one's grey levels and their derivatives.

    To second order, an image shifted by (p, q) pixels is f + p f_x + q f_y + (p² f_xx + 2 p q f_xy + q² f_yy) / 2, so
    least squares on these six undo a small shift (Lucas and Kanade 1981, one step). Border pixels are excluded.
    """
    columns = _shift_columns(one)
    target = np.empty(INNER_SURFACE.shape[1])
    for y in range(EDGE - 2):
        for x in range(EDGE - 2):
            target[y * (EDGE - 2) + x] = other[(y + 1) * EDGE + x + 1]
    remove(target, INNER_SURFACE)
    before = dot(target, target)
    for c in range(columns.shape[0]):
        column = columns[c]
        size = dot(column, column)
        remove(column, INNER_SURFACE)
        remove(column, columns[:c])
        left = dot(column, column)
        if left <= 1e-9 * size + 1e-9:
            column[:] = 0.0
            continue
        column /= math.sqrt(left)
        remove(target, columns[c : c + 1])
    return math.sqrt(max(0.0, 1.0 - dot(target, target) / before)) if before > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _shift_columns(picture):  # type: ignore[no-untyped-def]
    """(6, 14²): grey levels, f_x, f_y, f_xx, f_yy and f_xy by central differences."""
    columns = np.empty((6, (EDGE - 2) ** 2))
    for y in range(1, EDGE - 1):
        for x in range(1, EDGE - 1):
            i, at = y * EDGE + x, (y - 1) * (EDGE - 2) + x - 1
            columns[0, at] = picture[i]
            columns[1, at] = picture[i + 1] - picture[i - 1]
            columns[2, at] = picture[i + EDGE] - picture[i - EDGE]
            columns[3, at] = picture[i + 1] - 2.0 * picture[i] + picture[i - 1]
            columns[4, at] = picture[i + EDGE] - 2.0 * picture[i] + picture[i - EDGE]
            columns[5, at] = (
                picture[i + EDGE + 1] - picture[i + EDGE - 1] - picture[i - EDGE + 1] + picture[i - EDGE - 1]
            )
    return columns
