"""The method from vectors to a ranking: scenes, clusters, quotas, herding. Assets and benchmarks call this.

`cluster_pool` is stage 2 and `rank_pool` stage 3; `select` chains them for arrays in memory. A pool that resembles the
reference is balanced over the reference's scenes. A foreign pool is balanced over clusters. The clustering space has
the discriminant axes of the reference's scenes and the principal axes of the pool, whitened by the within-scene
covariance. Without a reference that covariance is estimated from nearest neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.config.params import ClusteringParams, SelectionParams
from rsprune_dagster.pruning.clustering import (
    Centroids,
    ClusterQuality,
    assign,
    choose_k,
    stratified_sample,
    train_centroids,
)
from rsprune_dagster.pruning.numerics import blocks, one_thread
from rsprune_dagster.pruning.scenes import (
    LinearProjection,
    SceneModel,
    domain_shift,
    domain_shift_sentence,
    fit_principal_axes,
    fit_scene_model,
    fit_whitening,
    is_foreign,
    neighbour_scatter,
    shrunk,
)
from rsprune_dagster.pruning.selection import CLUSTER_HALF_SIZE, Reader, Target, no_target, rank_tiles
from rsprune_dagster.utils.progress import Progress, silent

FOREIGN_FROM: Final = 0.25
"""Foreignness from which the pool is balanced over clusters. Measured: at most 0.06 on pools of the same kind, 0.59
to 0.95 on others."""
TRAINING_TILES_PER_SCENE: Final = 1000
"""Largest number of a scene's tiles that train the centroids, so that the cost does not grow with the pool."""
CHUNK_TILES: Final = 2**14
"""Tiles read and assigned at a time."""
AXES_SAMPLE: Final = 20_000
"""Evenly spaced tiles from which the pool's principal axes and scene priors are computed."""
NEIGHBOUR_SAMPLE: Final = 4_000
"""Tiles whose nearest neighbours are searched if there is no reference."""
N_NEIGHBOURS: Final = 5
NEIGHBOUR_SHRINKAGE: Final = 0.3
"""Shrinkage of the covariance estimated from neighbours; about the value that references select."""
N_WHITENED_AXES: Final = 16
N_RESTARTS: Final = 5
"""Number of k-means runs, of which the best is used: a single run may leave a scene without a centroid."""
MIN_TARGET_TILES: Final = 20
"""Fewest reference tiles of a scene to serve as its target: fewer do not represent its variation."""
UNNAMED_SCENE: Final = "pool"


@dataclass(frozen=True)
class SceneClusters:
    """The result of stage 2: scene, cluster and distance of each of N tiles, and facts on the clustering."""

    scene: NDArray[np.int32]  # (N,) index into scene_names: the most probable reference scene
    scene_names: tuple[str, ...]
    cluster: NDArray[np.int32]  # (N,)
    distance: NDArray[np.float64]  # (N,) to the centroid, in the clustering space
    novelty: NDArray[np.float64]  # (N,) 0 to 1
    centroids: Centroids
    quality: tuple[ClusterQuality, ...]  # one per candidate number of clusters; empty without a reference
    domain_shift: float  # 0 to 1; 0 without a reference
    balance_over: str  # "scenes" or "clusters"
    note: str
    fitted: "Fitted | None" = None  # the fitted model, if available

    @property
    def is_foreign(self) -> bool:
        """Whether the pool is foreign to the reference, so that the assigned scenes are guesses."""
        return is_foreign(self.scene_names, self.balance_over)

    @property
    def strata(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """The stratum (N,) of each tile and the names: scenes, or clusters if the pool is foreign."""
        if self.is_foreign:
            return self.cluster, cluster_names(self.centroids.n_clusters)
        return self.scene, self.scene_names

    def of(self, rows: NDArray[np.int64]) -> "SceneClusters":
        """The subset of some tiles (n,)."""
        parts = {name: getattr(self, name)[rows] for name in ("scene", "cluster", "distance", "novelty")}
        return replace(self, **parts)


@dataclass(frozen=True)
class Selection:
    """All rows, best first, so that a keep fraction is a prefix; and the clusters."""

    order: NDArray[np.int64]  # (N,)
    clusters: SceneClusters

    @property
    def scene(self) -> NDArray[np.int32]:
        """The scene (N,) of each row."""
        return self.clusters.scene

    @property
    def cluster(self) -> NDArray[np.int32]:
        """The cluster (N,) of each row."""
        return self.clusters.cluster

    @property
    def quality(self) -> tuple[ClusterQuality, ...]:
        """How well the clusters recover the reference's scenes."""
        return self.clusters.quality


def select(
    vectors: np.ndarray,
    reference_vectors: np.ndarray | None,
    labels: np.ndarray | None,
    clustering: ClusteringParams,
    selection: SelectionParams,
    *,
    seed: int,
    use_gpu: bool = False,
    workers: int = 1,
) -> Selection:
    """Rank the unit `vectors` (N, d) in content order, with a labelled reference (M, d), (M,), or None and None."""
    pool = np.asarray(vectors, dtype=np.float32)
    reference = reference_vectors, labels
    clusters = cluster_pool(lambda rows: pool[rows], len(pool), *reference, clustering, seed=seed, use_gpu=use_gpu)
    order = rank_pool(lambda rows: pool[rows], clusters, *reference, selection, workers=workers)
    return Selection(order, clusters)


def cluster_pool(
    read: Reader,
    n_tiles: int,
    reference_vectors: np.ndarray | None,
    labels: np.ndarray | None,
    params: ClusteringParams,
    *,
    seed: int,
    use_gpu: bool = False,
    progress: Progress = silent,
) -> SceneClusters:
    """Stage 2 over a pool read in chunks; memory: a few numbers per tile and one chunk of vectors.

    Args:
        read: ascending row numbers (n,) to unit vectors (n, d); rows are in content order.
        reference_vectors, labels: (M, d) and (M,); None, or fewer than two scenes: one stratum.
        params: `n_clusters` 0: chosen by `choose_k` on the reference; without a reference, the first candidate.
    """
    known = reference_vectors is not None and labels is not None and len(np.unique(labels)) > 1
    model = fit_scene_model(np.asarray(reference_vectors), np.asarray(labels)) if known else None
    sample = read(strided_sample(n_tiles, AXES_SAMPLE))
    space = clustering_space(sample, model)
    model = with_pool_priors(model, sample) if model else None
    points, scene, novelty = project_pool(read, n_tiles, space, model, progress)
    k = params.n_clusters or params.candidates[0]
    quality: tuple[ClusterQuality, ...] = ()
    if model and not params.n_clusters:
        known_points = space.project(np.asarray(reference_vectors))
        k, quality = choose_k(known_points, np.asarray(labels), params.candidates, seed=seed)
    training = stratified_sample(scene, n_per_scene=TRAINING_TILES_PER_SCENE, seed=seed)
    centroids = train_centroids(points[training], k, seed=seed, n_restarts=N_RESTARTS, use_gpu=use_gpu)
    cluster, distance = assign(points, centroids)
    apart = domain_shift(novelty) if model else 0.0
    balance_over = "scenes" if model and apart < FOREIGN_FROM else "clusters"
    return SceneClusters(
        scene=scene,
        scene_names=model.names if model else (UNNAMED_SCENE,),
        cluster=cluster,
        distance=distance,
        novelty=novelty,
        centroids=centroids,
        quality=quality,
        domain_shift=apart,
        balance_over=balance_over,
        note=scene_note(apart if model else None, balance_over, centroids),
        fitted=Fitted(model, space),
    )


def cluster_names(n_clusters: int) -> tuple[str, ...]:
    """Names of a foreign pool's strata: `cluster 07`, padded so that they sort by number."""
    n_digits = len(str(n_clusters - 1))
    return tuple(f"cluster {number:0{n_digits}d}" for number in range(n_clusters))


def scene_note(apart: float | None, balance_over: str, centroids: Centroids) -> str:
    """A sentence about a clustering for the user; `apart`: its domain shift, None without a reference."""
    return " ".join(filter(None, [domain_shift_sentence(apart, balance_over), centroids.note()]))


@dataclass(frozen=True)
class Fitted:
    """The scene model with the pool's priors, and the clustering space."""

    scenes: SceneModel | None
    space: "ClusteringSpace"

    @property
    def scene_names(self) -> tuple[str, ...]:
        return self.scenes.names if self.scenes else (UNNAMED_SCENE,)


@dataclass(frozen=True)
class ClusteringSpace:
    """The projections whose concatenation is the clustering space, each scaled to unit variance over the pool."""

    parts: tuple[LinearProjection, ...]
    shifts: tuple[NDArray[np.float64], ...]
    scales: tuple[float, ...]

    def project(self, vectors: np.ndarray) -> NDArray[np.float32]:
        """Project `vectors` (n, d) to points (n, c): concatenated, then divided by the square root of their norm.

        The root damps outliers, so that they do not form clusters of their own.
        """
        sides = [
            (part.project(vectors) - shift) / scale
            for part, shift, scale in zip(self.parts, self.shifts, self.scales, strict=True)
        ]
        points = np.concatenate(sides, axis=1)
        length = np.sqrt(np.square(points).sum(axis=1, keepdims=True))
        return np.asarray(points / np.sqrt(np.maximum(length, 1e-12)), dtype=np.float32)


def strided_sample(n_tiles: int, n_rows: int) -> NDArray[np.int64]:
    """At most `n_rows` evenly spaced rows; content order is random, so they are a representative sample."""
    return np.unique(np.linspace(0, n_tiles - 1, min(n_tiles, n_rows)).astype(np.int64))


def with_pool_priors(model: SceneModel, sample: np.ndarray) -> SceneModel:
    """The model with priors estimated from a `sample` (n, d) of the pool; unchanged if the pool is foreign."""
    apart = domain_shift(model.assign(sample).novelty)
    return model.adapted(sample) if apart < FOREIGN_FROM else model


def clustering_space(sample: np.ndarray, model: SceneModel | None) -> ClusteringSpace:
    """The space in which clusters are searched, from an evenly spaced `sample` (n, d) of the pool.

    With a reference: its discriminant axes, and the pool's principal axes after whitening by the within-scene
    covariance. Without one: the principal axes only, with that covariance estimated from nearest neighbours.
    """
    whitened = fit_principal_axes(
        sample, N_WHITENED_AXES, whitening=model.whitening if model else unsupervised_whitening(sample)
    )
    parts = (model.discriminant.projection, whitened) if model else (whitened,)
    projected = [part.project(sample) for part in parts]
    shifts = tuple(points.mean(axis=0) for points in projected)
    scales = tuple(float(np.sqrt(points.var(axis=0).sum())) or 1.0 for points in projected)
    return ClusteringSpace(parts, shifts, scales)


def unsupervised_whitening(sample: np.ndarray) -> NDArray[np.float64]:
    """The whitening (d, d) by the within-scene covariance, estimated without labels from a `sample` (n, d)."""
    seen = sample[strided_sample(len(sample), NEIGHBOUR_SAMPLE)]
    scatter = neighbour_scatter(seen, min(N_NEIGHBOURS, len(seen) - 1)) if len(seen) > 1 else np.eye(sample.shape[1])
    with one_thread():
        return fit_whitening(shrunk(scatter, NEIGHBOUR_SHRINKAGE))


def project_pool(
    read: Reader, n_tiles: int, space: ClusteringSpace, model: SceneModel | None, progress: Progress = silent
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]]:
    """Every tile's point in the clustering space (N, c), scene (N,) and novelty (N,), computed in chunks."""
    n_axes = sum(part.n_axes for part in space.parts)
    points = np.empty((n_tiles, n_axes), np.float32)
    scene, novelty = np.zeros(n_tiles, np.int32), np.full(n_tiles, 0.5)
    with progress("scenes", n_tiles) as advance:
        for rows in blocks(n_tiles, CHUNK_TILES):
            vectors = read(np.arange(rows.start, rows.stop))
            points[rows] = space.project(vectors)
            if model:
                found = model.assign(vectors)
                scene[rows], novelty[rows] = found.scene, found.novelty
            advance(len(vectors))
    return points, scene, novelty


def rank_pool(
    read: Reader,
    clusters: SceneClusters,
    reference_vectors: np.ndarray | None,
    labels: np.ndarray | None,
    params: SelectionParams,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> NDArray[np.int64]:
    """Stage 3: all rows, best first. Balanced over scenes and herded toward the reference; if foreign, over
    clusters."""
    one_group = np.zeros(len(clusters.scene), np.int32)
    by_scene = clusters.balance_over == "scenes"
    return rank_tiles(
        read,
        clusters.scene if by_scene else one_group,
        one_group if by_scene else clusters.cluster,
        scene_exponent=params.scene_exponent,
        cluster_exponent=params.cluster_exponent,
        cluster_half_size=CLUSTER_HALF_SIZE,
        target=reference_targets(clusters.scene_names, reference_vectors, labels) if by_scene else no_target,
        workers=workers,
        progress=progress,
    )


def reference_targets(names: Sequence[str], reference_vectors: np.ndarray | None, labels: np.ndarray | None) -> Target:
    """The herding target of a scene: the reference's tiles of that scene, if there are enough."""
    if reference_vectors is None or labels is None:
        return no_target
    vectors, of = np.asarray(reference_vectors, np.float32), np.asarray(labels).astype(str)
    tiles = {index: vectors[of == name] for index, name in enumerate(names)}
    return lambda scene, cluster: tiles[scene] if len(tiles[scene]) >= MIN_TARGET_TILES else None
