"""Incremental clustering: new tiles are assigned to existing scenes and centroids until the pool has drifted.

`FittedClustering` holds everything that a tile's scene and cluster depend on besides its vector: the scene model with
the pool's priors, the clustering space and the centroids. Assigning the training tiles again gives the same result bit
for bit, and the assignment of new tiles does not depend on the steps in which they arrived.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.pruning.clustering import Centroids, ClusterQuality, assign
from rsprune_dagster.pruning.pipeline import FOREIGN_FROM, Fitted, SceneClusters, project_pool, scene_note
from rsprune_dagster.pruning.scenes import domain_shift
from rsprune_dagster.pruning.selection import Reader
from rsprune_dagster.utils.progress import Progress, silent

FAR_QUANTILE: Final = 0.99
"""A tile beyond this quantile of the training tiles' distances counts as far."""
MAX_FAR_FRACTION: Final = 0.1
"""Largest share of new tiles that are far: 1 % is expected, 10 % is another kind of imagery."""
MAX_CLUSTER_SHIFT: Final = 0.25
"""Largest population stability index of the cluster sizes; by convention, more is another population."""
MAX_GROWTH: Final = 1.0
"""Largest ratio of new tiles to the tiles that trained the centroids."""
BY_CHANCE: Final = 0.05
"""Significance level: far tiles count as drift only if chance explains them with a smaller probability."""


@dataclass(frozen=True)
class FittedClustering:
    """A fitted clustering. `trained_on`: content md5s (n, 16) uint8 of the training tiles, in content order."""

    fitted: Fitted
    centroids: Centroids
    quality: tuple[ClusterQuality, ...]
    balance_over: str
    trained_on: NDArray[np.uint8]
    counts: NDArray[np.int64]  # (k,) training tiles per cluster
    far_distance: float  # FAR_QUANTILE of the training distances


@dataclass(frozen=True)
class Drift:
    """The drift since the centroids were trained, and the exceeded limits; no reasons: within the limits."""

    n_new: int
    far_fraction: float  # share of new tiles; 1 - FAR_QUANTILE without drift
    cluster_shift: float
    domain_shift: float
    reasons: tuple[str, ...]


def fitted_clustering(clusters: SceneClusters, contents: NDArray[np.uint8]) -> FittedClustering:
    """The reusable part of a clustering just trained on tiles with content md5s (N, 16)."""
    assert clusters.fitted is not None, "cluster_pool gives it"
    return FittedClustering(
        clusters.fitted,
        clusters.centroids,
        clusters.quality,
        clusters.balance_over,
        contents,
        np.bincount(clusters.cluster, minlength=clusters.centroids.n_clusters),
        float(np.quantile(clusters.distance, FAR_QUANTILE)) if len(clusters.distance) else 0.0,
    )


def assign_new(read: Reader, n_tiles: int, kept: FittedClustering, progress: Progress = silent) -> SceneClusters:
    """Assign every tile to the scenes and clusters of a fitted clustering; `read` as for `cluster_pool`."""
    model = kept.fitted.scenes
    points, scene, novelty = project_pool(read, n_tiles, kept.fitted.space, model, progress)
    cluster, distance = assign(points, kept.centroids)
    apart = domain_shift(novelty) if model else 0.0
    return SceneClusters(
        scene=scene,
        scene_names=kept.fitted.scene_names,
        cluster=cluster,
        distance=distance,
        novelty=novelty,
        centroids=kept.centroids,
        quality=kept.quality,
        domain_shift=apart,
        balance_over=kept.balance_over,
        note=scene_note(apart if model else None, kept.balance_over, kept.centroids),
        fitted=kept.fitted,
    )


def drift(
    kept: FittedClustering,
    contents: NDArray[np.uint8],
    cluster: NDArray[np.int32],
    distance: NDArray[np.floating],
    apart: float,
) -> Drift:
    """The drift of a pool of N tiles: content md5s (N, 16), cluster and distance (N,), and domain shift."""
    new = ~_is_in(contents, kept.trained_on)
    n_new, n_far = int(new.sum()), int((distance[new] > kept.far_distance).sum())
    shift = stability_index(np.bincount(cluster, minlength=len(kept.counts)), kept.counts)
    kind = "scenes" if kept.fitted.scenes and apart < FOREIGN_FROM else "clusters"
    reasons = []
    if n_new and _is_more(n_far, n_new, MAX_FAR_FRACTION):
        reasons.append(f"{n_far:,} of {n_new:,} new tiles lie beyond the 99th percentile of the training distances")
    if shift > MAX_CLUSTER_SHIFT:
        reasons.append(f"the cluster sizes changed (population stability index {shift:.2f})")
    if n_new > MAX_GROWTH * len(kept.trained_on):
        reasons.append(f"{n_new:,} tiles were added to {len(kept.trained_on):,} training tiles")
    if kind != kept.balance_over:
        reasons.append(f"the pool is now balanced over {kind} (domain shift {apart:.2f})")
    return Drift(n_new, n_far / max(n_new, 1), shift, apart, tuple(reasons))


def stability_index(now: NDArray[np.int64], before: NDArray[np.int64]) -> float:
    """The population stability index of counts (k,): sum (p - q) ln(p / q), with 1/2 added to each count; 0: equal.

    Below 0.1: little change; above 0.25: another population (Siddiqi 2006, Credit Risk Scorecards).
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (now, before))
    return float(np.sum((p - q) * np.log(p / q)))


def _is_more(n_far: int, n_new: int, share: float) -> bool:
    """Whether significantly more than `share` is far: a one-sided binomial test."""
    from scipy.stats import binom

    return bool(n_far > share * n_new and binom.sf(n_far - 1, n_new, share) < BY_CHANCE)


def _is_in(contents: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which rows of (N, 16) are among the rows of (M, 16)."""
    rows, others = (np.ascontiguousarray(each).view("V16").ravel() for each in (contents, known))
    return np.isin(rows, others)
