"""The tables of scene_clusters and of its reference: which scene and which cluster each tile has."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.corpus.tables import write_batches
from rsprune_dagster.pruning.clustering import Centroids, ClusterQuality
from rsprune_dagster.pruning.encoders.vectors import open_vectors
from rsprune_dagster.pruning.pipeline import SceneClusters


def reference_column(assignment: Path) -> str:
    """The column with the likeliest reference scene; versions before 2026-11-29 store it as `scene`."""
    return "reference_scene" if "reference_scene" in pq.read_schema(assignment).names else "scene"


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


_FIGURES = ("scene_names", "domain_shift", "balance_over", "note")


@dataclass(frozen=True)
class ReferenceSet:
    """The labelled vectors (M, d) and their labels (M,), in content order; both None without a reference."""

    vectors: NDArray[np.float32] | None
    labels: NDArray[np.str_] | None


def read_reference(layout: Layout) -> ReferenceSet:
    """The reference in the asset `embeddings`."""
    labels = pq.read_table(layout.file("reference_index"), columns=["label"]).column(0).to_pylist()
    if not labels:
        return ReferenceSet(None, None)
    vectors = open_vectors(layout.file("reference_vectors"))
    return ReferenceSet(vectors.read(0, vectors.n_rows), np.asarray(labels))


def write_clusters(clusters: SceneClusters, index: pa.Table, layout: Layout) -> None:
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
    write_batches(table.to_batches(), layout.file("assignment"), ASSIGNMENT)
    centroids = save({"centroids": clusters.centroids.points})
    layout.file("centroids").write_bytes(centroids)  # save_file does not report a full disk
    figures = {name: getattr(clusters, name) for name in _FIGURES}
    quality = [asdict(measured) for measured in clusters.quality]
    content = {**figures, "n_clusters_asked": clusters.centroids.n_asked, "quality": quality}
    layout.file("quality").write_text(json.dumps(content, indent=1) + "\n")


def read_domain_shift(quality: Mapping[str, Any]) -> float:
    """The domain shift of quality.json; versions before 2026-12 have it as `foreignness`."""
    return float(quality["domain_shift"] if "domain_shift" in quality else quality["foreignness"])


def read_clusters(layout: Layout) -> SceneClusters:
    """Read the clusters from the asset scene_clusters."""
    content: dict[str, Any] = json.loads(layout.file("quality").read_text())
    path = layout.file("assignment")
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
        centroids=Centroids(load_file(layout.file("centroids"))["centroids"], content["n_clusters_asked"]),
        quality=tuple(ClusterQuality(**measured) for measured in content["quality"]),
        domain_shift=read_domain_shift(content),
        balance_over=content["balance_over"],
        note=content["note"],
    )
