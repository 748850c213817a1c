"""The fitted clustering stored by scene_clusters for later runs: `model.safetensors` and `model.json`.

It may be reused only with the same identity: parameters, seed, encoder and reference. It stores the content hashes of
its training tiles, so that a later version can tell new tiles from training tiles.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import ClusteringParams
from rsprune_dagster.pruning.assignment import read_clusters
from rsprune_dagster.pruning.clustering import Centroids, ClusterQuality
from rsprune_dagster.pruning.incremental import Drift, FittedClustering, drift
from rsprune_dagster.pruning.pipeline import ClusteringSpace, Fitted
from rsprune_dagster.pruning.scenes import Discriminant, HeldOut, LinearProjection, SceneModel

FITTED_VERSION: Final = 2
TRAINING_PARAMS: Final = ("n_clusters", "candidates")
"""The parameters that affect how centroids are trained; `recluster` affects when."""
_MODEL: Final = "model.json"
_ARRAYS: Final = "model.safetensors"
_NO_WHITENING: Final = np.zeros((0, 0))
"""Not stored: it is large and needed only to fit a new space."""


def identity_of(layout: Layout, params: ClusteringParams, seed: int) -> dict[str, Any]:
    """What must be equal for a stored clustering to be reusable."""
    labelled = pq.read_table(layout.file("reference_index"), columns=["content_md5", "label"])
    rows = "\n".join(f"{md5} {label}" for md5, label in zip(*labelled.to_pydict().values(), strict=True))
    return {
        "version": FITTED_VERSION,
        "params": json.loads(params.model_dump_json(include=set(TRAINING_PARAMS))),
        "seed": seed,
        "encoder": json.loads(layout.file("encoder").read_text()),
        "reference": hashlib.sha256(rows.encode()).hexdigest(),
    }


def contents_of(table: Path) -> NDArray[np.uint8]:
    """The content md5s (N, 16) of the rows of an index or assignment."""
    batches = pq.ParquetFile(table).iter_batches(columns=["content_md5"])
    parts = [bytes.fromhex("".join(batch.column(0).to_pylist())) for batch in batches]
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, 16)


def write_fitted(kept: FittedClustering, identity: dict[str, Any], layout: Layout) -> None:
    """Write the files of `read_fitted`, except centroids and quality, which `write_clusters` writes."""
    arrays = {"trained_on": kept.trained_on, "counts": kept.counts, **_space_arrays(kept.fitted.space)}
    content: dict[str, Any] = {
        "identity": identity,
        "trained_on": {
            "n_tiles": len(kept.trained_on),
            "sha256": hashlib.sha256(kept.trained_on.tobytes()).hexdigest(),
        },
        "balance_over": kept.balance_over,
        "far_distance": kept.far_distance,
        "n_clusters_asked": kept.centroids.n_asked,
        "quality": [asdict(measured) for measured in kept.quality],
        "scales": list(kept.fitted.space.scales),
        "scenes": None,
    }
    if scenes := kept.fitted.scenes:
        held_out = asdict(scenes.held_out)
        arrays |= {"held_out": held_out.pop("distances"), "priors": scenes.priors}
        arrays |= {
            "prototypes": scenes.discriminant.prototypes,
            **_projection(scenes.discriminant.projection, "scenes"),
        }
        content["scenes"] = {"names": list(scenes.names), "held_out": held_out}
    folder = layout.folder("scene_clusters")
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    (folder / _ARRAYS).write_bytes(save(whole))
    (folder / _MODEL).write_text(json.dumps(content, indent=1) + "\n")


def read_fitted(layout: Layout) -> tuple[FittedClustering, dict[str, Any]] | None:
    """The clustering of an earlier version and its identity; None if that version stored none."""
    folder = layout.folder("scene_clusters")
    if not (folder / _MODEL).is_file():
        return None
    content: dict[str, Any] = json.loads((folder / _MODEL).read_text())
    arrays = load_file(folder / _ARRAYS)
    n_parts = len(content["scales"])
    space = ClusteringSpace(
        tuple(LinearProjection(arrays[f"part{i}.mean"], arrays[f"part{i}.axes"]) for i in range(n_parts)),
        tuple(arrays[f"part{i}.shift"] for i in range(n_parts)),
        tuple(content["scales"]),
    )
    kept = FittedClustering(
        Fitted(_read_scenes(content["scenes"], arrays), space),
        Centroids(load_file(layout.file("centroids"))["centroids"], content["n_clusters_asked"]),
        tuple(ClusterQuality(**measured) for measured in content["quality"]),
        content["balance_over"],
        arrays["trained_on"],
        arrays["counts"],
        content["far_distance"],
    )
    return kept, content["identity"]


def _read_scenes(content: dict[str, Any] | None, arrays: dict[str, np.ndarray]) -> SceneModel | None:
    if content is None:
        return None
    projection = LinearProjection(arrays["scenes.mean"], arrays["scenes.axes"])
    return SceneModel(
        tuple(content["names"]),
        Discriminant(projection, arrays["prototypes"]),
        _NO_WHITENING,
        HeldOut(distances=arrays["held_out"], **content["held_out"]),
        arrays["priors"],
    )


def _space_arrays(space: ClusteringSpace) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for i, (part, shift) in enumerate(zip(space.parts, space.shifts, strict=True)):
        found |= {**_projection(part, f"part{i}"), f"part{i}.shift": shift}
    return found


def _projection(projection: LinearProjection, name: str) -> dict[str, np.ndarray]:
    return {f"{name}.mean": projection.mean, f"{name}.axes": projection.axes}


def drift_of(layout: Layout) -> Drift | None:
    """The drift of a version's tiles from its training tiles; None if it stored no model."""
    earlier = read_fitted(layout)
    if earlier is None:
        return None
    found = read_clusters(layout)
    contents = contents_of(layout.file("assignment"))
    return drift(earlier[0], contents, found.cluster, found.distance, found.domain_shift)
