"""Checks of scene_clusters: complete assignment, cluster sizes, agreement with the reference's scenes, drift."""

import json
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.pruning.checks.verdict import Verdict, row, within_bounds

MAX_CLUSTER_FRACTION: Final = 0.5
"""Largest share of the tiles in one cluster: above it there is little left to balance."""


def assigned_once(layout: Layout) -> Verdict:
    """The assignment has the rows of the embeddings, with valid scenes and clusters and finite numbers."""
    from rsprune_dagster.pruning.assignment import read_clusters

    found = read_clusters(layout)
    n_clusters = found.centroids.n_clusters
    joined = row(
        f"""
        SELECT count(*) AS n, count(*) FILTER (assignment.tile_id IS NULL) AS missing,
               count(*) FILTER (index_rows.tile_id IS NULL) AS strange,
               count(*) FILTER (NOT coalesce(cluster_id BETWEEN 0 AND {n_clusters - 1}, true)) AS unknown,
               count(*) FILTER (NOT coalesce(isfinite(distance) AND distance >= 0, true)) AS far,
               count(*) FILTER (NOT coalesce(novelty BETWEEN 0 AND 1, true)) AS odd
        FROM index_rows FULL JOIN assignment USING (tile_id, content_md5)
        """,
        {"index_rows": layout.file("index"), **layout.tables("assignment")},
    )
    faults = {
        "have no cluster": joined["missing"],
        "assigned tiles have no vector": joined["strange"],
        f"are in a cluster that is not 0 to {n_clusters - 1}": joined["unknown"],
        "have a distance that is negative or not finite": joined["far"],
        "have a novelty that is not 0 to 1": joined["odd"],
        "have a scene that is not in the list": int((found.scene < 0).sum()),
        "centroids are not finite": int((~np.isfinite(found.centroids.points).all(axis=1)).sum()),
    }
    return within_bounds(faults, joined["n"], what="embedded tiles", todo="materialize scene_clusters again")


def cluster_sizes(layout: Layout) -> Verdict:
    """No cluster is empty or holds more than MAX_CLUSTER_FRACTION of the tiles."""
    from rsprune_dagster.pruning.assignment import read_clusters

    cluster = pq.read_table(layout.file("assignment"), columns=["cluster_id"]).column(0).to_numpy()
    found = read_clusters(layout)
    sizes = np.bincount(cluster, minlength=found.centroids.n_clusters)
    largest = float(sizes.max() / max(sizes.sum(), 1))
    figures: dict[str, int | float | str] = {
        "n_clusters": len(sizes),
        "n_empty": int((sizes == 0).sum()),
        "n_tiles_of_smallest": int(sizes.min()),
        "largest_cluster_fraction": largest,
    }
    sentence = f"{len(sizes)} clusters of {sizes.min():,} to {sizes.max():,} tiles"
    if len(sizes) <= 2 or (sizes.min() > 0 and largest <= MAX_CLUSTER_FRACTION):
        return Verdict(True, f"{sentence}.", figures)
    wrong = [f"{figures['n_empty']} are empty"] if sizes.min() == 0 else []
    wrong += [f"one holds {largest:.0%} of all"] if largest > MAX_CLUSTER_FRACTION else []
    return Verdict(
        False,
        f"{sentence}: {' and '.join(wrong)}. Look at the montages: are the tiles all alike? Set "
        "clustering.recluster to always, or clustering.n_clusters to another number.",
        figures,
    )


def tells_scenes_apart(layout: Layout, *, min_nmi: float) -> Verdict:
    """The clusters recover the reference's scenes with a normalized mutual information of at least `min_nmi`."""
    from rsprune_dagster.pruning.assignment import read_domain_shift

    content: dict[str, Any] = json.loads(layout.file("quality").read_text())
    measured = {quality["n_clusters"]: quality for quality in content["quality"]}
    chosen = measured.get(content["n_clusters_asked"])
    if chosen is None:
        return Verdict(True, "not measured: there is no reference of two scenes, or n_clusters was given.", {})
    figures = {"nmi": chosen["nmi"], "purity": chosen["purity"], "domain_shift": read_domain_shift(content)}
    sentence = (
        f"{chosen['n_clusters']} clusters recover the reference's {len(content['scene_names'])} scenes with a "
        f"normalized mutual information of {chosen['nmi']:.2f} and a purity of {chosen['purity']:.2f}"
    )
    if chosen["nmi"] >= min_nmi:
        return Verdict(True, f"{sentence}.", figures)
    return Verdict(
        False,
        f"{sentence}, expected {min_nmi:.2f} or more: the embedding hardly separates these scenes. Try a network "
        "instead of the descriptor (embedding.backbone), or look for wrong labels in the reference.",
        figures,
    )


def no_drift(layout: Layout) -> Verdict:
    """The pool has not drifted from the one that trained the centroids."""
    from rsprune_dagster.pruning.clustering_files import drift_of

    found = drift_of(layout)
    if found is None:
        return Verdict(True, "this version kept no model to compare with.", {})
    figures: dict[str, int | float | str] = {
        "n_new": found.n_new,
        "far_fraction": found.far_fraction,
        "cluster_shift": found.cluster_shift,
        "domain_shift": found.domain_shift,
    }
    if not found.reasons:
        return Verdict(True, f"{found.n_new:,} tiles are new since the centroids were trained, and fit them.", figures)
    return Verdict(
        False,
        f"the pool has drifted from the one that trained the centroids: {'; '.join(found.reasons)}. Materialize "
        "scene_clusters with clustering.recluster set to always.",
        figures,
    )
