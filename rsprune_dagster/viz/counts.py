"""Counts over the ledger: DuckDB streams the tables, a few rows come back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.pruning.ledger import count_decisions
from rsprune_dagster.viz.thumbnails import fetch

DECISIONS = ("kept", "unselected", "duplicate", "low_information", "quarantined")
"""In the order in which the page speaks of them."""


@dataclass(frozen=True)
class SceneCounts:
    """What became of the tiles of one scene."""

    scene: str
    n_tiles: int
    n_kept: int
    n_unselected: int
    n_duplicate: int
    n_clusters: int

    @property
    def n_candidates(self) -> int:
        return self.n_kept + self.n_unselected


@dataclass(frozen=True)
class Counts:
    """What became of all tiles, and the figures that the assets left."""

    decisions: Mapping[str, int]
    scenes: tuple[SceneCounts, ...]
    """The largest first."""
    summary: Mapping[str, Any]
    """summary.json of the subset."""
    threshold: Mapping[str, Any]
    """threshold.json of the entropy scores."""
    quality: Mapping[str, Any]
    """quality.json of the clusters."""

    @property
    def n_seen(self) -> int:
        return sum(self.decisions.values())

    @property
    def n_readable(self) -> int:
        return self.n_seen - self.decisions["quarantined"]

    @property
    def n_kept(self) -> int:
        return self.decisions["kept"]

    @property
    def n_exact_copies(self) -> int:
        return int(self.threshold["n_exact_copies"])

    @property
    def n_near_copies(self) -> int:
        return self.decisions["duplicate"] - self.n_exact_copies

    @property
    def has_scenes(self) -> bool:
        """Whether a reference named any, or clusters stand for them."""
        return len(self.scenes) > 1

    @property
    def over_clusters(self) -> bool:
        """Whether the quotas are those of clusters."""
        return bool(self.quality["balance_over"] == "clusters")

    def balance(self) -> tuple[float, float]:
        """How many times the largest scene is the smallest, before and after."""
        return (
            _balance([scene.n_tiles for scene in self.scenes]),
            _balance([scene.n_kept for scene in self.scenes]),
        )


def count_tiles(layout: Layout) -> Counts:
    """Count what became of every tile."""
    found = count_decisions(layout.file("decisions"))
    sql = """
        SELECT scene, count(*) AS n_tiles, count(DISTINCT cluster_id) AS n_clusters,
               count(*) FILTER (decision = 'kept') AS n_kept,
               count(*) FILTER (decision = 'unselected') AS n_unselected,
               count(*) FILTER (decision = 'duplicate') AS n_duplicate
        FROM decisions WHERE scene IS NOT NULL GROUP BY scene ORDER BY n_tiles DESC, scene
    """
    return Counts(
        decisions={name: found.get(name, 0) for name in DECISIONS},
        scenes=tuple(SceneCounts(**row) for row in fetch(sql, layout.tables("decisions"))),
        summary=read_json(layout.file("summary")),
        threshold=read_json(layout.file("threshold")),
        quality=read_json(layout.file("quality")),
    )


def n_rows(table: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pq.read_metadata(table).num_rows)


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _balance(counts: Sequence[int]) -> float:
    """1 where there are none."""
    present = [n for n in counts if n]
    return max(present) / min(present) if present else 1.0
