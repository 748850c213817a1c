"""Stage 2b: clusters from a stratified sample. Every scene contributes the same number of tiles, so that rare scenes
get their own centroids and the training cost does not grow with the pool. Every tile is assigned to its nearest
centroid.

k-means by faiss (Douze et al. 2024, arXiv 2401.08281), started by k-means++ (Arthur & Vassilvitskii 2007).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np

from rsprune_dagster.pruning.numerics import blocks, one_thread
from rsprune_dagster.pruning.scenes import squared_distances

N_ITERATIONS: Final = 25
"""Iterations of k-means."""
NEARLY_BEST: Final = 0.85
"""Share of the best NMI that suffices: on unknown scenes, fewer clusters balanced better than the NMI optimum."""


ASSIGNED_TILES: Final = 2**14
"""Tiles whose distances to all centroids are in memory at a time."""


@dataclass(frozen=True)
class Centroids:
    """k cluster centres and the requested number; k is smaller if there are too few distinct tiles."""

    points: np.ndarray  # (k, c) float32
    n_asked: int

    @property
    def n_clusters(self) -> int:
        """k."""
        return len(self.points)

    def note(self) -> str:
        """A note if k is not the requested number; else empty."""
        if self.n_clusters == self.n_asked:
            return ""
        return f"{self.n_clusters} clusters instead of {self.n_asked}: the sample has no more distinct tiles"


def stratified_sample(scene: np.ndarray, *, n_per_scene: int, seed: int) -> np.ndarray:
    """Ascending rows of at most `n_per_scene` random tiles per scene. `scene` (n,) is in content order.

    A scene's sample depends on its own tiles only, so a new tile of one scene does not change the others' samples.
    """
    drawn = [
        sample_rows(np.flatnonzero(scene == index), n_per_scene, np.random.default_rng([seed, int(index) + 1]))
        for index in np.unique(scene)
    ]
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, dtype=np.int64)


def sample_rows(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """A sample of at most `n` of `rows`, without replacement."""
    return rows if len(rows) <= n else rng.choice(rows, size=n, replace=False)


def train_centroids(
    vectors: np.ndarray,
    k: int,
    *,
    seed: int,
    n_iterations: int = N_ITERATIONS,
    n_restarts: int = 1,
    use_gpu: bool = False,
) -> Centroids:
    """k-means of `vectors` (n, c), the best of `n_restarts`. Single-threaded: faiss' sums depend on the thread count.

    If there are fewer distinct vectors than k, they are the centroids.
    """
    points = np.ascontiguousarray(vectors, dtype=np.float32)
    distinct = np.unique(points, axis=0)
    if len(distinct) <= k:
        return Centroids(distinct, n_asked=k)
    with one_thread():
        kmeans = faiss.Kmeans(
            points.shape[1], k, gpu=use_gpu, **kmeans_options(seed, n_iterations, n_restarts, len(points))
        )
        kmeans.train(points)
    return Centroids(np.asarray(kmeans.centroids), n_asked=k)


def kmeans_options(seed: int, n_iterations: int, n_restarts: int, n_points: int) -> dict[str, object]:
    """Settings of faiss: no subsampling, since the input is a sample, and no warning about few points per centroid."""
    return {
        "seed": seed,
        "niter": n_iterations,
        "nredo": n_restarts,
        "min_points_per_centroid": 1,
        "max_points_per_centroid": n_points,
        "init_method": faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    }


def assign(vectors: np.ndarray, centroids: Centroids) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid (n,) int32 and the distance to it (n,) of `vectors` (n, c); ties go to the lower number."""
    points = centroids.points.astype(np.float64)
    cluster, distance = np.empty(len(vectors), np.int32), np.empty(len(vectors))
    for rows in blocks(len(vectors), ASSIGNED_TILES):
        squared = squared_distances(vectors[rows], points)
        cluster[rows], distance[rows] = squared.argmin(axis=1), np.sqrt(squared.min(axis=1))
    return cluster, distance


@dataclass(frozen=True)
class ClusterQuality:
    """How well `n_clusters` clusters recover known scenes: NMI and purity, 0 to 1."""

    n_clusters: int
    nmi: float
    purity: float


def cluster_quality(cluster: np.ndarray, truth: np.ndarray, n_clusters: int) -> ClusterQuality:
    """Normalized mutual information (arithmetic mean; Strehl & Ghosh 2002) and purity of two labellings (n,)."""
    table = contingency(cluster, truth)
    joint = table / table.sum()
    mutual = entropy_nats(joint.sum(axis=0)) + entropy_nats(joint.sum(axis=1)) - entropy_nats(joint.ravel())
    mean_entropy = (entropy_nats(joint.sum(axis=0)) + entropy_nats(joint.sum(axis=1))) / 2
    nmi = float(np.clip(mutual / mean_entropy, 0, 1)) if mean_entropy > 0 else 1.0
    return ClusterQuality(n_clusters, nmi, float(joint.max(axis=1).sum()))


def contingency(cluster: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Tiles of each cluster and scene, (clusters seen, scenes seen)."""
    clusters, row = np.unique(cluster, return_inverse=True)
    scenes, column = np.unique(truth, return_inverse=True)
    return np.bincount(row * len(scenes) + column, minlength=len(clusters) * len(scenes)).reshape(len(clusters), -1)


def entropy_nats(shares: np.ndarray) -> float:
    """-sum p ln p over positive shares."""
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def choose_k(
    vectors: np.ndarray, truth: np.ndarray, candidates: Sequence[int], *, seed: int
) -> tuple[int, tuple[ClusterQuality, ...]]:
    """The smallest candidate whose clusters of the labelled `vectors` (M, c) reach NEARLY_BEST of the highest NMI."""
    measured = []
    for k in sorted(set(candidates)):
        centroids = train_centroids(vectors, k, seed=seed)
        measured.append(cluster_quality(assign(vectors, centroids)[0], truth, k))
    best = max(quality.nmi for quality in measured)
    return next(q.n_clusters for q in measured if q.nmi >= NEARLY_BEST * best), tuple(measured)
