"""Stage 3: one order of all tiles, of which every keep fraction is a prefix.

Quotas first: scenes, then the clusters of a scene, take turns by a divisor method (Sainte-Laguë 1910; Balinski & Young
2001), so a smaller subset lies inside a greater one. Inside a cluster the turn goes to the tile that keeps the mean
*and* the covariance of the tiles taken so far closest to those of a target: the reference's tiles of that scene where
there are some of the same kind, else the cluster itself. That is greedy minimisation of the maximum mean discrepancy
(kernel herding: Chen, Welling & Smola 2010, arXiv 1203.3472) under a quadratic kernel, whose discrepancy is zero
exactly when both moments agree.
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

BLOCK_TILES: Final = 1024
"""Tiles that are herded together. Larger clusters are cut into such blocks, so that the cost is N x BLOCK_TILES."""
TARGET_TILES: Final = 1024
"""Tiles of a cluster that stand for it as a target at most: evenly spaced ones, since content order is random."""

Reader = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Rising row numbers (n,) to their vectors (n, d)."""
Target = Callable[[int, int], NDArray[np.floating] | None]
"""(scene, cluster) to the vectors (t, d) that its tiles should resemble; None: the cluster itself."""


_Done = tuple["_Block", NDArray[np.int64]]


def itself(scene: int, cluster: int) -> None:
    """The target where there is no reference of the same kind: each cluster stands for itself."""


def rank_tiles(
    read: Reader,
    scene: NDArray[np.integer],
    cluster: NDArray[np.integer],
    *,
    scene_exponent: float,
    cluster_exponent: float,
    target: Target = itself,
    workers: int = 1,
) -> NDArray[np.int64]:
    """All N rows, best first; ties go to the earlier row, and rows are in content order.

    Args:
        read: gives float32 vectors; called for one block at a time in each of `workers` threads, which do not show
            in the result.
        scene, cluster: (N,), of each tile. Clusters are looked at within their scene.
        scene_exponent, cluster_exponent: 1 for quotas proportional to size, 0 for uniform ones.
        target: what the tiles of a cluster should resemble.

    Returns:
        (N,) row numbers, a permutation. Takes O(N) time; memory follows the block, beside a few numbers a tile.
    """
    _, scenes = np.unique(scene, return_inverse=True)
    _, clusters = np.unique(cluster, return_inverse=True)
    names, groups = np.unique(scenes * (clusters.max(initial=0) + 1) + clusters, return_inverse=True)
    place = np.empty(len(scenes), np.int64)
    with one_thread(), ThreadPoolExecutor(workers) as pool:
        jobs = _blocks(np.asarray(scene), np.asarray(cluster), groups, len(names))
        for block, order in _in_flight(pool, lambda block: (block, _herd_block(read, block, target)), jobs, workers):
            place[block.rows[order]] = np.arange(len(order)) * block.n_blocks + block.number
    within = nested_order(groups, place, exponent=cluster_exponent, inside=scenes)
    return np.argsort(nested_order(scenes, within, exponent=scene_exponent), kind="stable")


def nested_order(
    group: NDArray[np.integer],
    place: NDArray[np.integer],
    *,
    exponent: float,
    inside: NDArray[np.integer] | None = None,
) -> NDArray[np.int64]:
    """The rank (N,) of each item, from 0, when groups take turns by a divisor method; `inside` ranks apart.

    The i-th tile of a group of n (i from 0) comes at (i + 1/2) / n**exponent; ties go to the earlier row. A group that
    is used up drops out, which is water-filling; with each further tile no group's quota falls: subsets are nested.

    Args:
        group: (N,) numbers from 0 up.
        place: (N,) position of each item in its group, from 0.
        exponent: 1: quotas proportional to size, within one tile of it on any two groups; 0: uniform ones.
        inside: (N,) the larger group, from 0 up, that an item's group is a part of. None: one for all.
    """
    key = (place + 0.5) / np.bincount(group)[group].astype(np.float64) ** exponent
    larger = np.zeros(len(group), np.int64) if inside is None else inside
    order = np.lexsort((key, larger))
    sizes = np.bincount(larger)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def herding_order(vectors: NDArray[np.floating], target: NDArray[np.floating]) -> NDArray[np.int64]:
    """The rows of `vectors` (m, d) in the order that keeps every prefix close in distribution to `target` (t, d).

    Each next tile minimises || mean of phi over the tiles taken - mean of phi over the target ||, where phi spans all
    products of two components and the components themselves: `quadratic_kernel`. Ties go to the earlier row. O(m^2 d).
    """
    centre = target.mean(axis=0, dtype=np.float64)
    points = (vectors - centre).astype(np.float32)
    aims = (target - centre).astype(np.float32)
    spread = mean_squared_norm(aims) or mean_squared_norm(points) or 1.0
    pull = quadratic_kernel(points, aims, spread).mean(axis=1, dtype=np.float64)
    order: NDArray[np.int64] = _herd(quadratic_kernel(points, points, spread), pull)
    return order


def mean_squared_norm(points: NDArray[np.floating]) -> float:
    """The trace of the second moment of `points` (n, d)."""
    return float(np.square(points, dtype=np.float64).sum(axis=1).mean()) if len(points) else 0.0


def quadratic_kernel(points: NDArray[np.float32], others: NDArray[np.float32], spread: float) -> NDArray[np.float32]:
    """(1 + <x, y> / spread)^2 of (n, d) and (m, d), (n, m). Points are centred; `spread` takes their unit away."""
    kernel: NDArray[np.float32] = points @ others.T
    kernel /= np.float32(spread)
    kernel += np.float32(1)
    kernel *= kernel
    return kernel


@njit(nogil=True, cache=True)
def _herd(kernel, pull):  # type: ignore[no-untyped-def]
    """Of all x, the one with the largest pull(x) - (sum of k(x, .) over t taken + k(x, x) / 2) / (t + 1) comes next:
    the squared discrepancy after taking x is a constant less 2 / (t + 1) times that."""
    m = len(pull)
    taken_sum = np.zeros(m)
    left = np.arange(m)
    order = np.empty(m, np.int64)
    for step in range(m):
        best, best_gain = 0, -np.inf
        for at in range(m - step):
            row = left[at]
            gain = pull[row] - (taken_sum[row] + 0.5 * kernel[row, row]) / (step + 1)
            if gain > best_gain:
                best, best_gain = at, gain
        chosen = left[best]
        order[step] = chosen
        for at in range(best, m - step - 1):  # the rest stays in rising order: ties go to the earlier row
            left[at] = left[at + 1]
        for at in range(m - step - 1):
            taken_sum[left[at]] += kernel[chosen, left[at]]
    return order


@dataclass(frozen=True)
class _Block:
    """One of `n_blocks` equal parts of a cluster. Its i-th tile comes i * n_blocks + number in the cluster's order."""

    scene: int
    cluster: int
    rows: NDArray[np.int64]
    number: int
    n_blocks: int
    stand_ins: NDArray[np.int64]


def _blocks(
    scene: NDArray[np.integer], cluster: NDArray[np.integer], groups: NDArray[np.integer], n_groups: int
) -> Iterator[_Block]:
    """Each group's rows, rising, in equal blocks: content order is random, so each is a fair sample of the group."""
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups, minlength=n_groups))
    for end, start in zip(ends, [0, *ends[:-1]], strict=False):
        rows = order[start:end]
        n_blocks = -(-len(rows) // BLOCK_TILES)
        stand_ins = rows[np.linspace(0, len(rows) - 1, min(len(rows), TARGET_TILES)).astype(np.int64)]
        for number, part in enumerate(np.array_split(rows, n_blocks)):
            yield _Block(int(scene[rows[0]]), int(cluster[rows[0]]), part, number, n_blocks, stand_ins)


def _herd_block(read: Reader, block: _Block, target: Target) -> NDArray[np.int64]:
    vectors = np.asarray(read(block.rows), np.float32)
    aims = target(block.scene, block.cluster)
    if aims is None:
        aims = vectors if block.n_blocks == 1 else np.asarray(read(block.stand_ins), np.float32)
    return herding_order(vectors, np.asarray(aims))


def _in_flight(
    pool: ThreadPoolExecutor, work: Callable[[_Block], _Done], blocks: Iterator[_Block], workers: int
) -> Iterator[_Done]:
    """`work` of every block, in order, with few of them under way at a time."""
    waiting = deque(pool.submit(work, block) for block in islice(blocks, workers + 1))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(work, block) for block in islice(blocks, 1))
