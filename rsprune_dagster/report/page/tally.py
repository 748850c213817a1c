"""Counts over the ledger and the manifest: DuckDB streams the tables, a few rows come back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rsprune_dagster.pruning.steps.ledger import count_decisions
from rsprune_dagster.report.page.album import Rows, fetch
from rsprune_dagster.report.page.folders import Folders

DECISIONS = ("kept", "unselected", "duplicate", "low_information", "quarantined")
"""In the order in which the page speaks of them."""


@dataclass(frozen=True)
class SceneTally:
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
class Tally:
    """The counts that all sections speak of."""

    decisions: Mapping[str, int]
    scenes: tuple[SceneTally, ...]
    """The largest first."""
    n_exact_copies: int
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
    def n_near_copies(self) -> int:
        return self.decisions["duplicate"] - self.n_exact_copies

    @property
    def has_scenes(self) -> bool:
        """Whether a reference named any, or clusters stand for them."""
        return len(self.scenes) > 1

    @property
    def is_foreign(self) -> bool:
        """Whether clusters stand for the scenes, as the reference does not know the pool."""
        return len(self.quality["scene_names"]) > 1 and self.quality["balance_over"] == "clusters"


def tally(folders: Folders) -> Tally:
    """Count what became of every tile."""
    found = count_decisions(folders.decisions)
    sql = """
        SELECT scene, count(*) AS n_tiles, count(DISTINCT cluster_id) AS n_clusters,
               count(*) FILTER (decision = 'kept') AS n_kept,
               count(*) FILTER (decision = 'unselected') AS n_unselected,
               count(*) FILTER (decision = 'duplicate') AS n_duplicate
        FROM decisions WHERE scene IS NOT NULL GROUP BY scene ORDER BY n_tiles DESC, scene
    """
    return Tally(
        decisions={name: found.get(name, 0) for name in DECISIONS},
        scenes=tuple(SceneTally(**row) for row in fetch(sql, {"decisions": folders.decisions})),
        n_exact_copies=read_json(folders.scores / "threshold.json")["n_exact_copies"],
        summary=read_json(folders.subset / "summary.json"),
        threshold=read_json(folders.scores / "threshold.json"),
        quality=read_json(folders.clusters / "quality.json"),
    )


def cluster_counts(folders: Folders, limit: int) -> Rows:
    """Tiles of each cluster, and how many of them are kept; the largest first."""
    sql = f"""SELECT cluster_id, count(*) AS n_tiles, count(*) FILTER (decision = 'kept') AS n_kept
              FROM decisions WHERE cluster_id IS NOT NULL
              GROUP BY cluster_id ORDER BY n_tiles DESC, cluster_id LIMIT {limit}"""
    return fetch(sql, {"decisions": folders.decisions})


def corpus_rows(folders: Folders) -> dict[str, Rows]:
    """What the manifest says of the readable tiles: `kinds`, `sizes`, `samples`, `sums`."""
    tables = {"manifest": folders.manifest}
    return {
        "kinds": fetch(
            "SELECT kind, count(*) AS n, count(DISTINCT uri) AS n_uris FROM manifest GROUP BY kind ORDER BY n DESC",
            tables,
        ),
        "sizes": fetch(_most_common("width_px, height_px"), tables),
        "samples": fetch(_most_common("n_bands, dtype"), tables),
        "sums": fetch(
            """SELECT sum(length) AS n_bytes, count(length) AS n_sized, count(crs) AS n_crs,
                      count(DISTINCT crs) AS n_crs_kinds, count(lon) AS n_placed, min(gsd_m) AS gsd_low_m,
                      max(gsd_m) AS gsd_high_m, count(gsd_m) AS n_gsd FROM manifest""",
            tables,
        ),
    }


def quarantine_rows(folders: Folders, limit: int) -> Rows:
    """Reasons, alike but for their numbers, with how many tiles met each and one of them; the most frequent first."""
    sql = f"""
        SELECT count(*) AS n, min(tile_id) AS tile_id, arg_min(reason, tile_id) AS reason
        FROM quarantine GROUP BY regexp_replace(reason, '[0-9][0-9.,]*', '#', 'g')
        ORDER BY n DESC, reason LIMIT {limit}
    """
    return fetch(sql, {"quarantine": folders.corpus / "quarantine.parquet"})


def reference_counts(folders: Folders) -> Rows:
    """Tiles of each scene of the reference, with five places of their entropy in bits; the lowest median first."""
    quantiles = ", ".join(
        f"quantile_cont(entropy_bits, {at}) AS {name}"
        for name, at in (("low", 0.02), ("first", 0.25), ("median", 0.5), ("third", 0.75), ("high", 0.98))
    )
    sql = f"""SELECT label, count(*) AS n, {quantiles} FROM manifest WHERE label IS NOT NULL
              GROUP BY label ORDER BY median, label"""
    return fetch(sql, {"manifest": folders.reference / "manifest.parquet"})


def n_rows(table: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pq.ParquetFile(table).metadata.num_rows)


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def balance(counts: Sequence[int]) -> float:
    """How many times the largest of some counts is the smallest that is not 0; 1 where there are none."""
    present = [n for n in counts if n]
    return max(present) / min(present) if present else 1.0


def _most_common(columns: str) -> str:
    return f"SELECT {columns}, count(*) AS n FROM manifest GROUP BY {columns} ORDER BY n DESC, {columns} LIMIT 4"
