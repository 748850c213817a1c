"""scene_clusters: scenes from the reference, centroids from a stratified sample, assignment of every tile."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import ClusteringParams
from rsprune_dagster.pruning.assignment import read_reference, write_clusters
from rsprune_dagster.pruning.clustering_files import contents_of, identity_of, read_fitted, write_fitted
from rsprune_dagster.pruning.encoders.vectors import open_vectors
from rsprune_dagster.pruning.incremental import Drift, FittedClustering, assign_new, drift, fitted_clustering
from rsprune_dagster.pruning.pipeline import SceneClusters, cluster_pool
from rsprune_dagster.utils.progress import Progress, silent


@dataclass(frozen=True)
class Outcome:
    """The clusters, the origin of the centroids (trained or reused), and the pool's drift."""

    clusters: SceneClusters
    origin: str
    kept: bool
    drift: Drift | None = None

    def figures(self) -> dict[str, Any]:
        """What the web UI shows as numbers and sentences."""
        drifted = {} if self.drift is None else {k: v for k, v in asdict(self.drift).items() if k != "reasons"}
        return {**figures(self.clusters), **drifted, "centroids": self.origin}


def cluster(
    layout: Layout,
    params: ClusteringParams,
    *,
    seed: int,
    use_gpu: bool,
    last: Layout | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Write assignment.parquet, centroids.safetensors, quality.json and the fitted model.

    Args:
        last: an earlier version whose centroids are reused; None: train centroids.
    """
    identity = identity_of(layout, params, seed)
    contents = contents_of(layout.file("index"))
    earlier = read_fitted(last) if last else None
    if earlier is None or earlier[1] != identity:
        why = "" if earlier is None else ": parameters, encoder or reference are others than those of the last version"
        outcome = Outcome(_trained(layout, params, seed, use_gpu, progress), f"trained{why}", kept=False)
    else:
        outcome = _assign_new(layout, earlier[0], contents, params, seed, use_gpu, progress)
    kept = earlier[0] if earlier and outcome.kept else fitted_clustering(outcome.clusters, contents)
    index = pq.read_table(layout.file("index"), columns=["content_md5", "tile_id"])
    write_clusters(outcome.clusters, index, layout)
    write_fitted(kept, identity, layout)
    return outcome


def _assign_new(
    layout: Layout,
    kept: FittedClustering,
    contents: NDArray[np.uint8],
    params: ClusteringParams,
    seed: int,
    use_gpu: bool,
    progress: Progress,
) -> Outcome:
    """Assign tiles to the existing centroids; None if the pool has drifted and `recluster` allows training."""
    vectors = open_vectors(layout.file("vectors"))
    found = assign_new(vectors.read_rows, vectors.n_rows, kept, progress)
    gone = drift(kept, contents, found.cluster, found.distance, found.domain_shift)
    reasons = "; ".join(gone.reasons)
    if gone.reasons and params.recluster != "never":
        trained = _trained(layout, params, seed, use_gpu, progress)
        return Outcome(trained, f"trained: {reasons}", kept=False, drift=gone)
    origin = f"kept from the version that {len(kept.trained_on):,} tiles trained; {gone.n_new:,} are new since"
    return Outcome(found, origin + (f"; they have drifted: {reasons}" if reasons else ""), kept=True, drift=gone)


def _trained(layout: Layout, params: ClusteringParams, seed: int, use_gpu: bool, progress: Progress) -> SceneClusters:
    vectors = open_vectors(layout.file("vectors"))
    reference = read_reference(layout)
    return cluster_pool(
        vectors.read_rows,
        vectors.n_rows,
        reference.vectors,
        reference.labels,
        params,
        seed=seed,
        use_gpu=use_gpu,
        progress=progress,
    )


def figures(clusters: SceneClusters) -> dict[str, Any]:
    """What the web UI shows as numbers and sentences."""
    chosen = {
        name: round(float(getattr(measured, name)), 4)
        for measured in clusters.quality
        if measured.n_clusters == clusters.centroids.n_asked
        for name in ("nmi", "purity")
    }
    return {
        "n_tiles": len(clusters.scene),
        "n_scenes": len(clusters.strata[1]),
        "n_clusters": clusters.centroids.n_clusters,
        "domain_shift": float(clusters.domain_shift),
        "balance_over": clusters.balance_over,
        "note": clusters.note,
        **chosen,
    }
