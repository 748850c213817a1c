"""Baseline selection methods with the same interface as RS-Prune, for comparison.

Each takes `Candidates` and returns distinct rows, best first, of which the first `n_kept` are kept. They use the same
inputs as RS-Prune, except `label_balanced`, which uses the true labels and serves as an upper reference. None needs
N x N memory; `k_center` and `herding` inherently take O(N n_kept d) time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.pruning.clustering import assign, train_centroids
from rsprune_dagster.pruning.numerics import blocks, one_thread
from rsprune_dagster.pruning.selection import Reader, nested_order
from rsprune_dagster.utils.errors import UsageError

CHUNK_TILES: Final = 8192
"""Tiles whose distances to all centroids are in memory at a time."""
POINTS_PER_CENTROID: Final = 64
"""Training tiles per centroid, evenly spaced in content order; more have little effect."""
N_ITERATIONS: Final = 20
LEVEL_SHRINKAGE: Final = 10
"""Ratio of the cluster counts of successive levels of the hierarchy."""


@dataclass(frozen=True)
class Candidates:
    """The pool a baseline chooses from: N tiles in content order."""

    read: Reader  # rising rows (n,) to float32 (n, d)
    n_tiles: int
    n_kept: int
    seed: int
    n_clusters: int = 300
    labels: NDArray[np.generic] | None = None  # (N,) true labels, for label_balanced only

    def vectors(self) -> NDArray[np.float32]:
        """All vectors, (N, d)."""
        return self.read(np.arange(self.n_tiles))

    def shuffled(self) -> NDArray[np.int64]:
        """A random permutation (N,)."""
        return np.random.default_rng(self.seed).permutation(self.n_tiles)


Baseline = Callable[[Candidates], NDArray[np.int64]]


def random(pool: Candidates) -> NDArray[np.int64]:
    """Uniform sampling without replacement."""
    return np.argsort(pool.shuffled(), kind="stable")


def proportional(pool: Candidates) -> NDArray[np.int64]:
    """Tiles per k-means cluster in proportion to its size: proportional allocation (Neyman 1934)."""
    return drawn_in_turns(pool, kmeans(pool, pool.n_clusters)[0], exponent=1.0)


def kmeans_uniform(pool: Candidates) -> NDArray[np.int64]:
    """The same number of random tiles from each k-means cluster."""
    return drawn_in_turns(pool, kmeans(pool, pool.n_clusters)[0], exponent=0.0)


def label_balanced(pool: Candidates) -> NDArray[np.int64]:
    """The same number of random tiles from each true label. Raises UsageError without labels."""
    if pool.labels is None:
        raise UsageError("strategy label_balanced needs the true labels of the pool; give a labelled corpus")
    return drawn_in_turns(pool, np.unique(pool.labels, return_inverse=True)[1], exponent=0.0)


def drawn_in_turns(pool: Candidates, group: NDArray[np.integer], *, exponent: float) -> NDArray[np.int64]:
    """Groups (N,) in turn (`nested_order`), in random order within a group."""
    group = np.unique(group, return_inverse=True)[1]
    return np.argsort(nested_order(group, places(group, pool.shuffled()), exponent=exponent), kind="stable")


def places(group: NDArray[np.integer], key: NDArray[np.generic]) -> NDArray[np.int64]:
    """The position (N,) of each item in its group, from 0, by ascending `key`; ties go to the earlier row."""
    order = np.lexsort((key, group))
    sizes = np.bincount(group)
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place


def k_center(pool: Candidates) -> NDArray[np.int64]:
    """Farthest-point traversal (Gonzalez 1985; as a core-set: Sener & Savarese 2018, arXiv 1708.00489), starting at the
    row nearest to the mean. Keeps all vectors in memory."""
    points = pool.vectors()
    order = np.empty(min(pool.n_kept, pool.n_tiles), np.int64)
    apart = np.full(len(points), np.inf, np.float32)
    row = int(squared_to(points, points.mean(axis=0, dtype=np.float64)).argmin()) if len(points) else 0
    for step in range(len(order)):
        order[step] = row
        np.minimum(apart, squared_to(points, points[row]), out=apart)
        apart[row] = -1  # do not select it again, even among equal vectors
        row = int(apart.argmax())
    return order


def squared_to(points: NDArray[np.float32], point: NDArray[np.floating]) -> NDArray[np.float32]:
    """Squared distances (N,) of `points` (N, d) to one (d,)."""
    squared = np.empty(len(points), np.float32)
    for rows in blocks(len(points)):
        gap = points[rows] - point.astype(np.float32)
        squared[rows] = np.einsum("nd,nd->n", gap, gap)
    return squared


def herding(pool: Candidates) -> NDArray[np.int64]:
    """Kernel herding of the whole pool toward its mean, with the linear kernel (Welling 2009,
    doi:10.1145/1553374.1553517; Chen, Welling & Smola 2010, arXiv 1203.3472). Keeps all vectors in memory."""
    points = pool.vectors()
    order = np.empty(min(pool.n_kept, pool.n_tiles), np.int64)
    aim = points.mean(axis=0, dtype=np.float64).astype(np.float32) if len(points) else np.empty(0, np.float32)
    with one_thread():
        pull = points @ aim
        weight = pull.copy()
        for step in range(len(order)):
            order[step] = weight.argmax()
            weight += pull - points @ points[order[step]]
            weight[order[step]] = -np.inf
    return order


def semdedup(pool: Candidates) -> NDArray[np.int64]:
    """SemDeDup (Abbas et al. 2023, arXiv 2303.09540): within a k-means cluster, drop a tile that is similar to one
    farther from the centroid. The threshold follows from `n_kept`: the least similar tiles come first."""
    cluster, distance = kmeans(pool, pool.n_clusters)
    resemblance = np.empty(pool.n_tiles)
    with one_thread():
        for group in np.unique(cluster):
            rows = np.flatnonzero(cluster == group)
            resemblance[rows] = highest_earlier_cosine(pool.read(rows), np.argsort(-distance[rows], kind="stable"))
    return np.argsort(resemblance, kind="stable")


def highest_earlier_cosine(vectors: NDArray[np.float32], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """The largest cosine (m,) of each of `vectors` (m, d) with an earlier one in `order`; -2 for the first."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.maximum(norms, 1e-12))[order]
    highest = np.full(len(unit), -2.0)
    for rows in blocks(len(unit)):
        cosines = unit[rows] @ unit[: rows.stop].T
        cosines[np.arange(rows.stop)[None, :] >= np.arange(rows.start, rows.stop)[:, None]] = -2
        highest[order[rows]] = cosines.max(axis=1)
    return highest


def hierarchical_kmeans(pool: Candidates) -> NDArray[np.int64]:
    """Hierarchical k-means with balanced sampling (Vo et al. 2024, arXiv 2405.15613): clusters of clusters, with equal
    quotas at each level and random order in the smallest. Omits the paper's resampling between levels."""
    paths = hierarchy(pool)
    within = places(paths[0], pool.shuffled())
    for cluster, above in zip(paths, [*paths[1:], np.zeros(pool.n_tiles, np.int64)], strict=True):
        within = nested_order(cluster, within, exponent=0.0, inside=above)
    return np.argsort(within, kind="stable")


def hierarchy(pool: Candidates) -> list[NDArray[np.int64]]:
    """The cluster (N,) of each tile at each level, smallest clusters first."""
    cluster, _, points = kmeans_points(pool, min(LEVEL_SHRINKAGE * pool.n_clusters, max(pool.n_tiles // 4, 1)))
    levels = [cluster]
    while len(points) > LEVEL_SHRINKAGE**2:
        centroids = train_centroids(points, len(points) // LEVEL_SHRINKAGE, seed=pool.seed, n_iterations=N_ITERATIONS)
        levels.append(np.asarray(assign(points, centroids)[0], np.int64)[levels[-1]])
        points = centroids.points
    return [np.unique(level, return_inverse=True)[1] for level in levels]


def kmeans(pool: Candidates, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest of k centroids (N,) and the distance to it (N,)."""
    cluster, distance, _ = kmeans_points(pool, k)
    return cluster, distance


def kmeans_points(pool: Candidates, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """As `kmeans`, with the centroids (k, d)."""
    sample = np.unique(np.linspace(0, pool.n_tiles - 1, min(pool.n_tiles, POINTS_PER_CENTROID * k)).astype(np.int64))
    centroids = train_centroids(pool.read(sample), k, seed=pool.seed, n_iterations=N_ITERATIONS)
    cluster, distance = np.empty(pool.n_tiles, np.int64), np.empty(pool.n_tiles)
    for rows in blocks(pool.n_tiles, CHUNK_TILES):
        cluster[rows], distance[rows] = assign(pool.read(np.arange(rows.start, rows.stop)), centroids)
    return cluster, distance, centroids.points


BASELINES: Final[dict[str, Baseline]] = {
    "random": random,
    "proportional": proportional,
    "kmeans_uniform": kmeans_uniform,
    "k_center": k_center,
    "semdedup": semdedup,
    "hierarchical_kmeans": hierarchical_kmeans,
    "herding": herding,
    "label_balanced": label_balanced,
}
