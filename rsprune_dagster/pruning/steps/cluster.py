"""scene_clusters: scenes from the reference, centroids from a stratified sample, assignment of every tile."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from rsprune_dagster.corpus.tables import write_batches
from rsprune_dagster.params import ClusteringParams
from rsprune_dagster.progress import Progress, silent
from rsprune_dagster.pruning.clustering import Centroids, ClusterQuality
from rsprune_dagster.pruning.frozen import Drift, Frozen, drift, frozen, topped_up
from rsprune_dagster.pruning.method import SceneClusters, cluster_pool
from rsprune_dagster.pruning.steps.keep import contents_of, identity_of, limits_of, read_kept, write_kept
from rsprune_dagster.pruning.steps.ledger import reference_column
from rsprune_dagster.pruning.vectors import open_vectors

ASSIGNMENT = pa.schema(
    [
        pa.field("content_md5", pa.string(), nullable=False),
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("scene", pa.string(), nullable=False, metadata={"doc": "stratum; see SceneClusters.strata"}),
        pa.field(
            "reference_scene",
            pa.string(),
            nullable=False,
            metadata={"doc": "likeliest scene of the reference; a guess where the pool is foreign to it"},
        ),
        pa.field(
            "novelty", pa.float32(), nullable=False, metadata={"doc": "share of known tiles that lie nearer, 0 to 1"}
        ),
        pa.field("cluster_id", pa.int32(), nullable=False, metadata={"doc": "nearest centroid"}),
        pa.field(
            "distance", pa.float32(), nullable=False, metadata={"doc": "to the centroid, in the clustering's space"}
        ),
    ]
)
"""One row per vector, in content order."""

_FIGURES = ("scene_names", "foreignness", "balance_over", "note")


@dataclass(frozen=True)
class ReferenceSet:
    """The labelled vectors (M, d) and their labels (M,), in content order; both None without a reference."""

    vectors: NDArray[np.float32] | None
    labels: NDArray[np.str_] | None


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
    embeddings: Path,
    folder: Path,
    params: ClusteringParams,
    *,
    seed: int,
    use_gpu: bool,
    last: Path | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Write assignment.parquet, centroids.safetensors, quality.json and the fitted model into `folder`.

    Args:
        last: an earlier version whose centroids are reused; None: train centroids.
    """
    identity = identity_of(embeddings, params, seed)
    contents = contents_of(embeddings / "index.parquet")
    earlier = read_kept(last) if last else None
    if earlier is None or earlier[1] != identity:
        why = "" if earlier is None else ": parameters, encoder or reference are others than those of the last version"
        outcome = Outcome(_trained(embeddings, params, seed, use_gpu, progress), f"trained{why}", kept=False)
    else:
        outcome = _assign_new(embeddings, earlier[0], contents, params, seed, use_gpu, progress)
    kept = earlier[0] if earlier and outcome.kept else frozen(outcome.clusters, contents)
    write_clusters(
        outcome.clusters, pq.read_table(embeddings / "index.parquet", columns=["content_md5", "tile_id"]), folder
    )
    write_kept(kept, identity, folder)
    return outcome


def _assign_new(
    embeddings: Path,
    kept: Frozen,
    contents: NDArray[np.uint8],
    params: ClusteringParams,
    seed: int,
    use_gpu: bool,
    progress: Progress,
) -> Outcome:
    """Assign tiles to the existing centroids; None if the pool has drifted and `recluster` allows training."""
    vectors = open_vectors(embeddings / "vectors")
    found = topped_up(vectors.read_rows, vectors.n_rows, kept, progress)
    gone = drift(kept, contents, found.cluster, found.distance, found.foreignness, limits_of(params))
    reasons = "; ".join(gone.reasons)
    if gone.reasons and params.recluster != "never":
        trained = _trained(embeddings, params, seed, use_gpu, progress)
        return Outcome(trained, f"trained: {reasons}", kept=False, drift=gone)
    origin = f"kept from the version that {len(kept.trained_on):,} tiles trained; {gone.n_new:,} are new since"
    return Outcome(found, origin + (f"; they have drifted: {reasons}" if reasons else ""), kept=True, drift=gone)


def drift_of(folder: Path, params: ClusteringParams) -> Drift | None:
    """The drift of a version's tiles from its training tiles; None if it stored no model."""
    earlier = read_kept(folder)
    if earlier is None:
        return None
    found = read_clusters(folder)
    contents = contents_of(folder / "assignment.parquet")
    return drift(earlier[0], contents, found.cluster, found.distance, found.foreignness, limits_of(params))


def _trained(embeddings: Path, params: ClusteringParams, seed: int, use_gpu: bool, progress: Progress) -> SceneClusters:
    vectors = open_vectors(embeddings / "vectors")
    reference = read_reference(embeddings)
    return cluster_pool(
        vectors.read_rows,
        vectors.n_rows,
        reference.vectors,
        reference.labels,
        n_clusters=params.n_clusters,
        candidates=params.candidates,
        sample_per_scene=params.sample_per_scene,
        n_iterations=params.n_iterations,
        seed=seed,
        use_gpu=use_gpu,
        progress=progress,
    )


def read_reference(embeddings: Path) -> ReferenceSet:
    """The reference in the folder of the asset `embeddings`."""
    labels = pq.read_table(embeddings / "reference" / "index.parquet", columns=["label"]).column(0).to_pylist()
    if not labels:
        return ReferenceSet(None, None)
    vectors = open_vectors(embeddings / "reference" / "vectors")
    return ReferenceSet(vectors.read(0, vectors.n_rows), np.asarray(labels))


def write_clusters(clusters: SceneClusters, index: pa.Table, folder: Path) -> None:
    """Write the files of `read_clusters`."""
    table = index
    for column, (number, names) in (
        ("scene", clusters.strata),
        ("reference_scene", (clusters.scene, clusters.scene_names)),
    ):
        table = table.append_column(column, pa.array(np.asarray(names, dtype=object)[number], pa.string()))
    for name, values in (
        ("novelty", clusters.novelty),
        ("cluster_id", clusters.cluster),
        ("distance", clusters.distance),
    ):
        table = table.append_column(name, pa.array(values, ASSIGNMENT.field(name).type, safe=False))
    write_batches(table.to_batches(), folder / "assignment.parquet", ASSIGNMENT)
    centroids = save({"centroids": clusters.centroids.points})
    (folder / "centroids.safetensors").write_bytes(centroids)  # save_file does not report a full disk
    figures = {name: getattr(clusters, name) for name in _FIGURES}
    quality = [asdict(measured) for measured in clusters.quality]
    content = {**figures, "n_clusters_asked": clusters.centroids.n_asked, "quality": quality}
    (folder / "quality.json").write_text(json.dumps(content, indent=1) + "\n")


def read_clusters(folder: Path) -> SceneClusters:
    """Read the clusters from the folder of the asset scene_clusters."""
    content: dict[str, Any] = json.loads((folder / "quality.json").read_text())
    path = folder / "assignment.parquet"
    guesses = reference_column(path)
    table = pq.read_table(path, columns=[guesses, "novelty", "cluster_id", "distance"])
    names = tuple(content["scene_names"])
    scene = pc.index_in(table.column(guesses), pa.array(names))
    return SceneClusters(
        scene=scene.to_numpy().astype(np.int32),
        scene_names=names,
        cluster=table.column("cluster_id").to_numpy(),
        distance=table.column("distance").to_numpy(),
        novelty=table.column("novelty").to_numpy(),
        centroids=Centroids(load_file(folder / "centroids.safetensors")["centroids"], content["n_clusters_asked"]),
        quality=tuple(ClusterQuality(**measured) for measured in content["quality"]),
        foreignness=content["foreignness"],
        balance_over=content["balance_over"],
        note=content["note"],
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
        "foreignness": float(clusters.foreignness),
        "balance_over": clusters.balance_over,
        "note": clusters.note,
        **chosen,
    }
