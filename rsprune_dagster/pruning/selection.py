"""Stage 3: a ranking of all tiles, of which every keep fraction is a prefix.

Quotas are assigned to scenes, then to the clusters of a scene, by a divisor method (Sainte-Laguë 1910; Balinski & Young
2001), so a smaller subset is contained in a larger one. Within a cluster, the next tile is the one that keeps the mean
*and* the covariance of the selected tiles closest to those of a target: the reference's tiles of that scene if the pool
resembles the reference, else the cluster itself. This greedily minimises the maximum mean discrepancy (kernel herding:
Chen, Welling & Smola 2010, arXiv 1203.3472) with a quadratic kernel, which is zero exactly when both moments agree.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rsprune_dagster.pruning.numerics import one_thread
from rsprune_dagster.utils.progress import Progress, silent

BLOCK_TILES: Final = 2048
"""Tiles compared with each other. Larger clusters are split into such blocks: the cost is N x BLOCK_TILES.
Of the squared discrepancy of a random draw, 15 % of 12,000 EuroSAT tiles keep 0.043 with blocks of 1,024, 0.039 with
2,048, 0.036 with 4,096, and 0.032 uncut."""
VISITS: Final = tuple(BLOCK_TILES >> halvings for halvings in range(4, -1, -1))
"""Tiles selected from a block of a larger cluster after each visit. Doubling: few passes, and blocks stay in step."""
CENTRE_TILES: Final = 1024
"""Evenly spaced tiles whose mean is the centre of a cluster's moments if there is no target."""

HELD_TILES: Final = 2**15
"""Clusters up to this size are read once into memory; the blocks of larger ones are read again at each visit."""

PANEL_TILES: Final = 512
"""Rows per matrix product among a block's tiles, so that a panel is mirrored while it is in the cache."""

CLUSTER_HALF_SIZE: Final = 30
"""Cluster size at which the quota weight is half of a large cluster's: a small cluster may be due to chance."""
Reader = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Ascending row numbers (n,) to their vectors (n, d)."""
Target = Callable[[int, int], NDArray[np.floating] | None]
"""(scene, cluster) to the target vectors (t, d) of its herding; None: the cluster itself."""


_Job = tuple[NDArray[np.int64], NDArray[np.floating] | None]


def no_target(scene: int, cluster: int) -> None:
    """The target without a suitable reference: each cluster is its own target."""


def rank_tiles(
    read: Reader,
    scene: NDArray[np.integer],
    cluster: NDArray[np.integer],
    *,
    scene_exponent: float,
    cluster_exponent: float,
    cluster_half_size: float = 0.0,
    target: Target = no_target,
    workers: int = 1,
    progress: Progress = silent,
) -> NDArray[np.int64]:
    """All N rows, best first; ties go to the earlier row, and rows are in content order.

    Args:
        read: returns float32 vectors; called for one block at a time in each of `workers` threads, which do not affect
        the result.
        scene, cluster: (N,), of each tile. A cluster is treated separately in each scene.
        scene_exponent, cluster_exponent: 1 for quotas proportional to size, 0 for uniform ones.
        cluster_half_size: cluster size at which the quota weight is half of a large cluster's.
        target: the herding target of a cluster.

    Returns:
        (N,) row numbers, a permutation. O(N) time; memory for a block and a few numbers per tile.
    """
    _, scenes = np.unique(scene, return_inverse=True)
    _, clusters = np.unique(cluster, return_inverse=True)
    names, groups = np.unique(scenes * (clusters.max(initial=0) + 1) + clusters, return_inverse=True)
    place = np.empty(len(scenes), np.int64)
    with one_thread(), ThreadPoolExecutor(workers) as pool, progress("selection", len(scenes)) as advance:
        members = _members(groups, len(names))
        jobs = ((rows, target(int(scene[rows[0]]), int(cluster[rows[0]]))) for rows in members)
        for order in _in_flight(pool, lambda job: cluster_order(read, *job), jobs, workers):
            place[order] = np.arange(len(order))
            advance(len(order))
    within = nested_order(groups, place, exponent=cluster_exponent, half_size=cluster_half_size, inside=scenes)
    return np.argsort(nested_order(scenes, within, exponent=scene_exponent), kind="stable")


def nested_order(
    group: NDArray[np.integer],
    place: NDArray[np.integer],
    *,
    exponent: float,
    half_size: float = 0.0,
    inside: NDArray[np.integer] | None = None,
) -> NDArray[np.int64]:
    """The rank (N,) of each item, from 0, when groups take turns by a divisor method, separately per `inside`.

    The i-th tile of a group of n (i from 0) has the key (i + 1/2) / w with w = n**exponent n / (n + half_size): the
    weight saturates with size, since a small group may be due to chance. Ties go to the earlier row. An exhausted group
    drops out (water-filling). No group's quota decreases as tiles are added, so subsets are nested.

    Args:
        group: (N,) group numbers from 0.
        place: (N,) position of each item in its group, from 0.
        exponent: 1: quotas proportional to size, within one tile for any two groups; 0: uniform.
        half_size: group size at which the weight is half of a large group's; 0: no saturation.
        inside: (N,) the parent group of each item, from 0. None: one for all.
    """
    size = np.bincount(group).astype(np.float64)
    claim = size**exponent * size / np.maximum(size + half_size, 1.0)
    key = (place + 0.5) / claim[group]
    larger = np.zeros(len(group), np.int64) if inside is None else inside
    order = np.lexsort((key, larger))
    sizes = np.bincount(larger)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def herding_order(vectors: NDArray[np.floating], target: NDArray[np.floating]) -> NDArray[np.int64]:
    """The rows of `vectors` (m, d) in the order that keeps every prefix close in distribution to `target` (t, d).

    Each next tile minimises || mean of phi over the selected tiles - mean of phi over the target ||, where phi spans
    all products of two components and the components themselves: `quadratic_kernel`. Ties go to the earlier row. The
    first BLOCK_TILES rows are processed together, then the next; O(m d (BLOCK_TILES + d)).
    """
    return cluster_order(lambda rows: vectors[rows].astype(np.float32), np.arange(len(vectors)), target)


def cluster_order(read: Reader, rows: NDArray[np.int64], target: NDArray[np.floating] | None) -> NDArray[np.int64]:
    """Herd the ascending `rows` (m,) of one cluster toward `target` (t, d), or toward themselves: see `herding_order`.

    Blocks are visited in turn and contribute a few tiles each, chosen with regard to all tiles selected before from any
    block. (If blocks were herded separately and interleaved, all would begin with the same, most typical kind of tile.)
    """
    look = _in_memory(read, rows) if len(rows) <= HELD_TILES else read
    left = np.array_split(rows, max(-(-len(rows) // BLOCK_TILES), 1))
    aims = _own_aims(look, rows, left) if target is None else _aims(target)
    taken = Moments.none(aims.centre)
    pull: list[NDArray[np.float64] | None] = [None] * len(left)
    order: list[NDArray[np.int64]] = []
    visits = VISITS if len(left) > 1 else (BLOCK_TILES,)
    for n_given, before in zip(visits, (0, *visits), strict=False):
        for number, block in enumerate(left):
            points = (np.asarray(look(block), np.float32) - aims.centre).astype(np.float32)
            known = pull[number]
            here = aims.kernel_sum(points, aims.spread()) / aims.n if known is None else known
            picks = herd_block(points, here, taken, aims.spread(), min(n_given - before, len(block)))
            taken = taken.joined(points[picks])
            order.append(block[picks])
            left[number], pull[number] = np.delete(block, picks), np.delete(here, picks)
    return np.concatenate(order)


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of outer products of vectors about a centre, float64: sufficient for the quadratic kernel."""

    centre: NDArray[np.float64]  # (d,)
    n: int
    first: NDArray[np.float64]  # (d,)
    second: NDArray[np.float64]  # (d, d)

    @classmethod
    def none(cls, centre: NDArray[np.float64]) -> "Moments":
        """The moments of an empty set."""
        return cls(centre, 0, np.zeros(len(centre)), np.zeros((len(centre), len(centre))))

    @classmethod
    def of(cls, vectors: NDArray[np.floating], *, centre: NDArray[np.float64]) -> "Moments":
        """The moments of `vectors` (n, d)."""
        return cls.none(centre).joined(vectors - centre)

    def joined(self, gaps: NDArray[np.floating]) -> "Moments":
        """The moments with further vectors added, given as differences `gaps` (n, d) from the centre."""
        gaps = gaps.astype(np.float64)
        return Moments(self.centre, self.n + len(gaps), self.first + gaps.sum(axis=0), self.second + gaps.T @ gaps)

    def spread(self) -> float:
        """Mean squared distance from the centre; 1 if it is 0."""
        return float(np.trace(self.second)) / max(self.n, 1) or 1.0

    def kernel_sum(self, points: NDArray[np.float32], spread: float) -> NDArray[np.float64]:
        """Sum of `quadratic_kernel` of each of `points` (m, d), centred, with all vectors, (m,). O(m d^2)."""
        if self.n == 0:
            return np.zeros(len(points))
        squares: NDArray[np.float64] = np.einsum(
            "nd,nd->n", points @ self.second.astype(np.float32), points, dtype=np.float64
        )
        linear: NDArray[np.float64] = points @ self.first
        return self.n + 2 / spread * linear + squares / spread**2


def herd_block(
    points: NDArray[np.float32], pull: NDArray[np.float64], taken: Moments, spread: float, n: int
) -> NDArray[np.int64]:
    """Select the next `n` of `points` (m, d), relative to the target's centre, after those `taken`; `pull` (m,) is the
    mean kernel of each point with the target."""
    picks: NDArray[np.int64] = _herd(_products(points), spread, pull, taken.kernel_sum(points, spread), taken.n, n)
    return picks


def _products(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products of all pairs of `points` (m, d), (m, m): one triangle computed in panels, the other mirrored."""
    products = np.empty((len(points), len(points)), np.float32)
    for start in range(0, len(points), PANEL_TILES):
        panel = slice(start, start + PANEL_TILES)
        np.matmul(points[panel], points[: panel.stop].T, out=products[panel, : panel.stop])
        # with some BLAS, <x, y> and <y, x> differ in their last bits
        products[panel, panel] = np.tril(products[panel, panel]) + np.tril(products[panel, panel], -1).T
        for before in range(0, start, PANEL_TILES):
            mirrored = slice(before, before + PANEL_TILES)
            products[mirrored, panel] = products[panel, mirrored].T
    return products


@njit(nogil=True, cache=True)
def quadratic_kernel(product, spread):  # type: ignore[no-untyped-def]
    """(1 + <x, y> / spread)^2 from the inner product of two centred vectors; `spread` makes it dimensionless."""
    return (1.0 + product / spread) ** 2


@njit(nogil=True, cache=True)
def _herd(products, spread, pull, taken_sum, n_taken, n):  # type: ignore[no-untyped-def]
    """Select next the x with the largest pull(x) - (sum of k(x, .) over t selected + k(x, x) / 2) / (t + 1): the
    squared discrepancy after selecting x is a constant minus 2 / (t + 1) times that."""
    m = len(pull)
    own = np.array([quadratic_kernel(products[row, row], spread) for row in range(m)])
    left = np.arange(m)
    order = np.empty(n, np.int64)
    for step in range(n):
        best, best_gain = 0, -np.inf
        for at in range(m - step):
            row = left[at]
            gain = pull[row] - (taken_sum[row] + 0.5 * own[row]) / (n_taken + step + 1)
            if gain > best_gain:
                best, best_gain = at, gain
        chosen = left[best]
        order[step] = chosen
        for at in range(best, m - step - 1):  # keep the rest in ascending order: ties go to the earlier row
            left[at] = left[at + 1]
        for at in range(m - step - 1):
            taken_sum[left[at]] += quadratic_kernel(products[chosen, left[at]], spread)
    return order


def _in_memory(read: Reader, rows: NDArray[np.int64]) -> Reader:
    """A reader of `rows`, loaded into memory."""
    vectors = np.asarray(read(rows), np.float32)
    return lambda part: vectors[np.searchsorted(rows, part)]


def _members(groups: NDArray[np.integer], n_groups: int) -> Iterator[NDArray[np.int64]]:
    """Each group's rows, ascending."""
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups, minlength=n_groups))
    yield from (rows for rows in np.split(order, ends[:-1]) if len(rows))


def _aims(target: NDArray[np.floating]) -> Moments:
    """Moments of a target (t, d) about its own mean."""
    return Moments.of(np.asarray(target, np.float64), centre=target.mean(axis=0, dtype=np.float64))


def _own_aims(read: Reader, rows: NDArray[np.int64], blocks: list[NDArray[np.int64]]) -> Moments:
    """Moments of a whole cluster, block by block, about the mean of evenly spaced tiles."""
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), CENTRE_TILES)).astype(np.int64)]
    aims = Moments.none(read(sample).mean(axis=0, dtype=np.float64))
    for block in blocks:
        aims = aims.joined(read(block) - aims.centre)
    return aims


def _in_flight(
    pool: ThreadPoolExecutor, work: Callable[[_Job], NDArray[np.int64]], jobs: Iterator[_Job], workers: int
) -> Iterator[NDArray[np.int64]]:
    """The results of all jobs in order, with a bounded number in progress."""
    waiting = deque(pool.submit(work, job) for job in islice(jobs, workers + 1))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(work, job) for job in islice(jobs, 1))
