"""Sensitivity of the subset: to the keep fraction, read from the ranking, and to the seed, measured on a sample."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import ClusteringParams, SelectionParams
from rsprune_dagster.corpus.tables import query
from rsprune_dagster.pruning.assignment import ReferenceSet, read_reference
from rsprune_dagster.pruning.baselines import BASELINES, Candidates
from rsprune_dagster.pruning.encoders.vectors import open_vectors
from rsprune_dagster.pruning.ledger import n_to_keep
from rsprune_dagster.pruning.pipeline import cluster_pool, rank_pool, strided_sample
from rsprune_dagster.pruning.selection import Reader
from rsprune_dagster.pruning.strategies import RSPRUNE

SEED_SAMPLE_TILES: Final = 10_000
"""Largest number of candidates ranked with other seeds: one or two seconds per seed for any corpus."""


@dataclass(frozen=True)
class KeptAtFractions:
    """Kept tiles per scene (S) and keep fraction (F), the scene with the most candidates first."""

    fractions: tuple[float, ...]
    scenes: tuple[str, ...]
    n_candidates: tuple[int, ...]  # (S,)
    n_kept: tuple[tuple[int, ...], ...]  # (S, F)


@dataclass(frozen=True)
class SeedOverlap:
    """Overlap of the subsets of two seeds."""

    seed: int
    shared: float
    """Share of the kept tiles, 0 to 1, that both seeds keep; for two random draws it equals the keep fraction."""


@dataclass(frozen=True)
class SeedSensitivity:
    """Subsets of the same candidates with several seeds, each compared with the first."""

    n_candidates: int
    n_sampled: int
    """Number of evenly spaced candidates that were clustered and ranked again."""
    n_kept: int
    """Number of kept tiles among them."""
    overlaps: tuple[SeedOverlap, ...]


def kept_at_fractions(layout: Layout, n_readable: int, fractions: Sequence[float]) -> KeptAtFractions:
    """Count prefixes of ranking.parquet by scene; a tile without rank counts at no fraction."""
    counts = ", ".join(
        f"count(*) FILTER (rank <= {n_to_keep(n_readable, fraction)}) AS f{i}" for i, fraction in enumerate(fractions)
    )
    sql = f"""SELECT scene, count(*) FILTER (near_copy_of IS NULL) AS n_candidates, {counts}
              FROM ranking GROUP BY scene ORDER BY n_candidates DESC, scene"""
    with query(sql, layout.tables("ranking")) as batches:
        rows = batches.read_all().to_pylist()
    return KeptAtFractions(
        fractions=tuple(fractions),
        scenes=tuple(row["scene"] for row in rows),
        n_candidates=tuple(row["n_candidates"] for row in rows),
        n_kept=tuple(tuple(row[f"f{i}"] for i in range(len(fractions))) for row in rows),
    )


def seed_sensitivity(
    layout: Layout,
    clustering: ClusteringParams,
    *,
    seed: int,
    n_other_seeds: int,
    max_tiles: int = SEED_SAMPLE_TILES,
) -> SeedSensitivity:
    """Cluster and rank again with `seed` and the next `n_other_seeds`, on at most `max_tiles` candidates.

    The number of clusters, the strategy and the quotas are those of the subset (summary.json).
    """
    summary = json.loads(layout.file("summary").read_text())
    selection = SelectionParams(**{name: summary[name] for name in SelectionParams.model_fields})
    asked = json.loads(layout.file("quality").read_text())["n_clusters_asked"]
    clustering = clustering.model_copy(update={"n_clusters": asked})
    near_copy_of = pq.read_table(layout.file("ranking"), columns=["near_copy_of"]).column(0)
    candidates = np.flatnonzero(pc.is_null(near_copy_of).to_numpy())
    rows = candidates[strided_sample(len(candidates), max_tiles)]
    n_kept = round(len(rows) * summary["n_kept"] / max(len(candidates), 1))
    vectors, reference = open_vectors(layout.file("vectors")), read_reference(layout)

    def kept(some_seed: int) -> np.ndarray:
        order = _ranked(
            lambda at: vectors.read_rows(rows[at]), len(rows), reference, clustering, selection, n_kept, some_seed
        )
        return order[:n_kept]

    own = kept(seed)
    others = [(seed + step, np.intersect1d(own, kept(seed + step))) for step in range(1, n_other_seeds + 1)]
    overlaps = tuple(SeedOverlap(other, len(both) / max(n_kept, 1)) for other, both in others)
    return SeedSensitivity(len(candidates), len(rows), n_kept, overlaps)


def _ranked(
    read: Reader,
    n_tiles: int,
    reference: ReferenceSet,
    clustering: ClusteringParams,
    selection: SelectionParams,
    n_kept: int,
    seed: int,
) -> np.ndarray:
    """Rows (n_tiles,), best first, computed from the vectors without results of another seed."""
    if selection.strategy != RSPRUNE:
        return BASELINES[selection.strategy](Candidates(read, n_tiles=n_tiles, n_kept=n_kept, seed=seed))
    found = cluster_pool(read, n_tiles, reference.vectors, reference.labels, clustering, seed=seed)
    return rank_pool(read, found, reference.vectors, reference.labels, selection)
