"""Near-duplicates: the same ground in the same picture, turned, flipped, re-encoded, brightened, moved a little, made
noisy.

Nadir tiles have no up, so all eight rotations and flips count. Candidates come from an index on a description that
none of the eight changes; nothing is compared with everything. Whether two candidates are one picture is settled on
their 16 x 16 thumbnails by a regression: how much of the *detail* of one, beyond a smooth quadratic surface, the
other explains when it may be turned, flipped, scaled in contrast and moved by part of a thumbnail pixel. Plain
correlation will not do: any two shores, field edges or gradients of one direction correlate. Tiles with no detail at
this scale (calm water, closed forest) are never called near-duplicates: there is nothing to recognise them by, and
two pieces of sea are two tiles.
"""

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.fft import dctn

EDGE: Final = 16
"""Edge of a thumbnail, px."""
MIN_DETAIL: Final = 1.5
"""Standard deviation in grey levels that a thumbnail needs beyond a quadratic surface. Rounding, JPEG and sensor
noise leave 0.3 to 1."""
MAX_CONTRAST_RATIO: Final = 1.25
"""Two copies differ less in contrast; brightness changes of 5 % and a shift by half a thumbnail pixel stay well
within."""
MAX_LEVEL_SHARE: Final = 0.08
MAX_LEVELS: Final = 3.0
"""Mean grey levels of two copies differ by at most this share of the brighter one, or by so many levels where that is
more."""
MIN_PLAIN_CORRELATION: Final = 0.5
"""Detail that correlates less before any shift is not looked at further."""
N_FREQUENCIES: Final = 6
"""Cosine frequencies below this, summed over both axes, describe a thumbnail in the index."""
MIN_CONTRAST_NORM: Final = 128.0
"""Norm that descriptions are divided by at least (8 grey levels x 16 px), so that noise is not blown up to a
pattern."""
RADIUS: Final = 0.25
"""Candidates are no farther apart in the index; descriptions have norm 1 at most. A 2 px shift of a 64 px tile moves
0.12 to 0.25."""
PIVOTS_PER_ROOT: Final = 4
"""The index of N tiles has so many times the root of N lists, so looking up all tiles takes time like N to the 1.5."""
N_PROBES: Final = 12
"""Lists looked into for each tile."""
BLOCK: Final = 16_384
"""Thumbnails described at a time, so that memory in float64 stays bounded."""


def near_duplicates(
    thumbnails: NDArray[np.uint8],
    *,
    correlation: float = 0.94,
    embeddings: NDArray[np.floating] | None = None,
    min_cosine: float = 0.7,
    n_neighbours: int = 16,
) -> NDArray[np.int64]:
    """The row that each tile is a near-duplicate of; its own row when it is none.

    thumbnails: (N, 256) uint8, 16 x 16 area-averaged grey levels in rows; rows in content order, exact duplicates
    gone. correlation: multiple correlation of detail, 0 to 1, from which two tiles are one picture. embeddings: (N,
    d) vectors; when given, the two tiles' cosine must also be `min_cosine` or more. n_neighbours: candidates per
    tile. Returns leaders (N,) int64: a leader is the first of its copies in content order, leads itself, and was
    itself compared with each tile it leads, so there are no chains. Takes time like N to the 1.5.
    """
    thumbnails = np.ascontiguousarray(thumbnails).reshape(-1, EDGE * EDGE)
    vectors = np.zeros((0, 0), np.float32) if embeddings is None else np.asarray(embeddings)
    leader = np.arange(len(thumbnails), dtype=np.int64)
    searched = np.flatnonzero(detail_levels(thumbnails) >= MIN_DETAIL)
    while len(searched) > 1:
        pairs = candidate_pairs(thumbnails, searched, n_neighbours)
        merged = _adopt(leader, pairs, thumbnails, vectors, correlation, min_cosine)
        # A crowd of copies larger than n_neighbours falls into several groups: compare their leaders until none merge.
        searched = np.unique(leader[leader != np.arange(len(leader))]) if merged else searched[:0]
    return leader


def _symmetries() -> NDArray[np.int64]:
    """(8, 256): the pixel of a thumbnail that each of the eight rotations and flips puts at every place."""
    grid = np.arange(EDGE * EDGE).reshape(EDGE, EDGE)
    turns = [np.rot90(square, n) for square in (grid, grid.T) for n in range(4)]
    return np.stack([turn.ravel() for turn in turns]).astype(np.int64)


def _quadratic_surface(edge: int) -> NDArray[np.float64]:
    """(6, edge²): orthonormal 1, x, y, x², xy, y² on a grid, by Gram and Schmidt in this order."""
    y, x = np.mgrid[:edge, :edge] * (2.0 / (edge - 1)) - 1.0
    basis: list[NDArray[np.float64]] = []
    for surface in (np.ones_like(x), x, y, x * x, x * y, y * y):
        vector = surface.ravel()
        for earlier in basis * 2:  # twice: once leaves rounding errors along the earlier ones
            vector = vector - (vector * earlier).sum() * earlier
        basis.append(vector / math.sqrt((vector * vector).sum()))
    return np.stack(basis)


SYMMETRIES: Final = _symmetries()
SURFACE: Final = _quadratic_surface(EDGE)
INNER_SURFACE: Final = _quadratic_surface(EDGE - 2)


@njit(cache=True, nogil=True)
def _remove(vector, basis):  # type: ignore[no-untyped-def]
    """Take the components along the orthonormal rows of `basis` out of `vector`, in place."""
    for row in range(basis.shape[0]):
        along = 0.0
        for i in range(vector.size):
            along += vector[i] * basis[row, i]
        for i in range(vector.size):
            vector[i] -= along * basis[row, i]


@njit(cache=True, nogil=True)
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(cache=True, nogil=True)
def _details(thumbnails):  # type: ignore[no-untyped-def]
    levels = np.empty(thumbnails.shape[0])
    for row in range(levels.size):
        vector = thumbnails[row].astype(np.float64)
        _remove(vector, SURFACE)
        levels[row] = math.sqrt(_dot(vector, vector) / vector.size)
    return levels


def detail_levels(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Standard deviation (N,) in grey levels, 0 to 127, of thumbnails (N, 256) around their best quadratic surface."""
    levels: NDArray[np.float64] = _details(thumbnails)
    return levels


def turn_free(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Descriptions (N, D) of thumbnails (N, 256) that no rotation by 90 degrees and no flip changes; norms up to 1.

    A flip changes signs of the two-dimensional cosine transform c, a transposition swaps c_uv and c_vu. So |c_uv| +
    |c_vu| and ||c_uv| - |c_vu|| stay. Low frequencies only, divided by the norm of all: independent of brightness and
    contrast.
    """
    blocks = [_turn_free_block(thumbnails[i : i + BLOCK]) for i in range(0, len(thumbnails), BLOCK)]
    return np.concatenate(blocks)


def _turn_free_block(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    waves = np.abs(dctn(thumbnails.reshape(-1, EDGE, EDGE).astype(np.float64), axes=(1, 2), norm="ortho"))
    waves[:, 0, 0] = 0.0
    u, v = np.array([(u, v) for u in range(N_FREQUENCIES) for v in range(u, N_FREQUENCIES - u) if v > 0]).T
    one, other = waves[:, u, v], waves[:, v, u]
    columns = np.concatenate([one + other, np.abs(one - other)[:, u != v]], axis=1) / math.sqrt(2.0)
    norm = np.sqrt((waves**2).sum((1, 2)))
    described: NDArray[np.float64] = columns / np.maximum(norm, MIN_CONTRAST_NORM)[:, None]
    return described


def candidate_pairs(thumbnails: NDArray[np.uint8], rows: NDArray[np.int64], n_neighbours: int) -> NDArray[np.int64]:
    """Pairs (P, 2) of `rows`, earlier first, sorted by the later: equal up to a turn, or neighbours in the index."""
    first, same = _first_of_equals(thumbnails[rows])
    kept = np.flatnonzero(first == np.arange(len(rows)))
    near = _neighbours(turn_free(thumbnails[rows[kept]]), n_neighbours)
    one, other = np.repeat(np.arange(len(kept)), n_neighbours), near.ravel()
    pairs = np.stack([kept[one[other >= 0]], kept[other[other >= 0]]], axis=1)
    pairs = np.sort(rows[np.concatenate([pairs, same])], axis=1)
    return np.unique(pairs[:, ::-1], axis=0)[:, ::-1].copy()


def _neighbours(points: NDArray[np.float64], n_neighbours: int) -> NDArray[np.int64]:
    """Rows (n, n_neighbours) of points (n, D) near each within RADIUS, nearest first, -1 where there are fewer.

    An inverted file (Sivic and Zisserman 2003) whose pivots are evenly spaced rows: content order is as good as
    random, and without training there is nothing that threads or libraries could change.
    """
    n_pivots = min(PIVOTS_PER_ROOT * math.isqrt(len(points)), len(points))
    pivots = points[np.linspace(0, len(points) - 1, n_pivots).astype(np.int64)]
    probes = _nearest_pivots(points, pivots, min(N_PROBES, n_pivots))
    members = np.argsort(probes[:, 0], kind="stable")
    starts = np.searchsorted(probes[members, 0], np.arange(n_pivots + 1))
    near: NDArray[np.int64] = _search(points, probes, members, starts, n_neighbours)
    return near


@njit(cache=True, nogil=True)
def _insert(rows, distances, row, distance):  # type: ignore[no-untyped-def]
    """Put a row into a short list sorted by distance; of equal ones the earlier stays first."""
    at = distances.size - 1
    while at > 0 and distances[at - 1] > distance:
        distances[at], rows[at] = distances[at - 1], rows[at - 1]
        at -= 1
    distances[at], rows[at] = distance, row


@njit(cache=True, nogil=True)
def _apart(a, b, limit):  # type: ignore[no-untyped-def]
    """Squared distance of two points, or something above `limit` as soon as it is clear that it is above."""
    total = 0.0
    for i in range(a.size):
        total += (a[i] - b[i]) ** 2
        if total > limit:
            break
    return total


@njit(cache=True, nogil=True)
def _nearest_pivots(points, pivots, n):  # type: ignore[no-untyped-def]
    nearest = np.zeros((points.shape[0], n), np.int64)
    for row in range(points.shape[0]):
        distances = np.full(n, np.inf)
        for pivot in range(pivots.shape[0]):
            distance = _apart(points[row], pivots[pivot], distances[n - 1])
            if distance < distances[n - 1]:
                _insert(nearest[row], distances, pivot, distance)
    return nearest


@njit(cache=True, nogil=True)
def _search(points, probes, members, starts, n):  # type: ignore[no-untyped-def]
    near = np.full((points.shape[0], n), -1, np.int64)
    for row in range(points.shape[0]):
        distances = np.full(n, RADIUS**2)
        for pivot in probes[row]:
            for other in members[starts[pivot] : starts[pivot + 1]]:
                if other != row:
                    distance = _apart(points[row], points[other], distances[n - 1])
                    if distance < distances[n - 1]:
                        _insert(near[row], distances, other, distance)
    return near


def _first_of_equals(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row (n,) that equals each up to a turn, and the pairs (first, later). Without this, many equals would
    fill the index."""
    standard = _standard_turn(thumbnails)
    keys = standard.view(np.dtype((np.void, EDGE * EDGE))).ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    leaders = first[group].astype(np.int64)
    later = np.flatnonzero(leaders != np.arange(len(leaders)))
    return leaders, np.stack([leaders[later], later], axis=1)


@njit(cache=True, nogil=True)
def _standard_turn(thumbnails):  # type: ignore[no-untyped-def]
    """Each thumbnail in that one of its eight turns which comes first in the order of its bytes."""
    standard = np.empty_like(thumbnails)
    for row in range(thumbnails.shape[0]):
        best = 0
        for turn in range(1, 8):
            for i in range(thumbnails.shape[1]):
                new, old = thumbnails[row, SYMMETRIES[turn, i]], thumbnails[row, SYMMETRIES[best, i]]
                if new != old:
                    if new < old:
                        best = turn
                    break
        for i in range(thumbnails.shape[1]):
            standard[row, i] = thumbnails[row, SYMMETRIES[best, i]]
    return standard


@njit(cache=True, nogil=True)
def _adopt(leader, pairs, thumbnails, vectors, correlation, min_cosine):  # type: ignore[no-untyped-def]
    """Give every later tile of a pair the first leader that it is a copy of, in place; return whether any got one."""
    merged = False
    for p in range(pairs.shape[0]):
        head, row = leader[pairs[p, 0]], pairs[p, 1]
        if leader[row] != row or head >= row:
            continue
        if _is_copy(head, row, thumbnails, vectors, correlation, min_cosine):
            leader[row] = head
            merged = True
    for row in range(leader.size):  # followers of a leader that has just been adopted itself
        head = leader[leader[row]]
        if head != leader[row]:
            copies = _is_copy(head, row, thumbnails, vectors, correlation, min_cosine)
            leader[row] = head if copies else row
    return merged


@njit(cache=True, nogil=True)
def _is_copy(a, b, thumbnails, vectors, correlation, min_cosine):  # type: ignore[no-untyped-def]
    """Whether rows a and b show one picture."""
    if vectors.shape[0] > 0 and not _alike(vectors[a], vectors[b], min_cosine):
        return False
    one, other = thumbnails[a].astype(np.float64), thumbnails[b].astype(np.float64)
    level_a, level_b = one.mean(), other.mean()
    if abs(level_a - level_b) > max(MAX_LEVELS, MAX_LEVEL_SHARE * max(level_a, level_b)):
        return False
    turn = _best_turn(one, other)
    if turn < 0:
        return False
    turned = one[SYMMETRIES[turn]]
    # Both ways: a tile with one bright corner explains much of many others, but they do not explain it.
    return _explained(turned, other) >= correlation and _explained(other, turned) >= correlation


@njit(cache=True, nogil=True)
def _alike(a, b, min_cosine):  # type: ignore[no-untyped-def]
    """Whether two vectors have that cosine; a zero vector is unlike any."""
    ab, aa, bb = 0.0, 0.0, 0.0
    for i in range(a.size):
        x, y = float(a[i]), float(b[i])
        ab += x * y
        aa += x * x
        bb += y * y
    return ab >= min_cosine * math.sqrt(aa * bb) and aa * bb > 0.0


@njit(cache=True, nogil=True)
def _best_turn(one, other):  # type: ignore[no-untyped-def]
    """The turn of `one` whose detail correlates best with the other's; -1 if contrasts differ or nothing does."""
    a, b = one.copy(), other.copy()
    _remove(a, SURFACE)
    _remove(b, SURFACE)
    aa, bb = _dot(a, a), _dot(b, b)
    if max(aa, bb) > MAX_CONTRAST_RATIO**2 * min(aa, bb):
        return -1
    best, found = MIN_PLAIN_CORRELATION * math.sqrt(aa * bb), -1
    for turn in range(8):
        along = 0.0
        for i in range(a.size):
            along += a[SYMMETRIES[turn, i]] * b[i]
        if along > best:
            best, found = along, turn
    return found


@njit(cache=True, nogil=True)
def _explained(one, other):  # type: ignore[no-untyped-def]
    """Multiple correlation, 0 to 1, of the other's detail with one's grey levels and their differences.

    To second order, a picture moved by (p, q) pixels is f + p f_x + q f_y + (p² f_xx + 2 p q f_xy + q² f_yy) / 2, so
    least squares on these six undo a small shift (Lucas and Kanade 1981, one step). Borders have no differences and
    are left out.
    """
    columns = _shift_columns(one)
    target = np.empty(INNER_SURFACE.shape[1])
    for y in range(EDGE - 2):
        for x in range(EDGE - 2):
            target[y * (EDGE - 2) + x] = other[(y + 1) * EDGE + x + 1]
    _remove(target, INNER_SURFACE)
    before = _dot(target, target)
    for c in range(columns.shape[0]):
        column = columns[c]
        size = _dot(column, column)
        _remove(column, INNER_SURFACE)
        _remove(column, columns[:c])
        left = _dot(column, column)
        if left <= 1e-9 * size + 1e-9:
            column[:] = 0.0
            continue
        column /= math.sqrt(left)
        _remove(target, columns[c : c + 1])
    return math.sqrt(max(0.0, 1.0 - _dot(target, target) / before)) if before > 0.0 else 0.0


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
