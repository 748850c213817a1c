"""pruned_subset: remove duplicates, rank the other candidates, keep the first ones, write the ledger."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import SelectionParams
from rsprune_dagster.corpus.tables import ROWS_PER_GROUP, rows_at, write_batches
from rsprune_dagster.pruning.entropy import THUMBNAIL_PX
from rsprune_dagster.pruning.ledger import (
    RANKING,
    count_decisions,
    n_to_keep,
    scene_table,
    write_decisions,
    write_subset,
)
from rsprune_dagster.pruning.near_duplicates import near_duplicates
from rsprune_dagster.pruning.strategies import order_candidates
from rsprune_dagster.utils.csv_files import formula_escaped
from rsprune_dagster.utils.progress import Progress, silent


@dataclass(frozen=True)
class SelectReport:
    """Counts of tiles by decision; `n_wanted` is round(keep_fraction x readable tiles)."""

    decisions: Mapping[str, int]
    n_readable: int
    n_wanted: int
    n_kept: int

    @property
    def n_missing(self) -> int:
        """Number of tiles missing from the subset."""
        return self.n_wanted - self.n_kept

    def shortfall(self) -> str:
        """A sentence if the subset is smaller than requested or empty; else empty."""
        if not self.n_wanted:
            return f"no tile is kept: the keep fraction of {self.n_readable:,} readable tiles rounds to 0"
        if not self.n_missing:
            return ""
        return (
            f"{self.n_kept:,} tiles are kept, not the {self.n_wanted:,} asked: no more survive the entropy threshold "
            "and the search for duplicates"
        )

    def metadata(self) -> dict[str, Any]:
        """Figures for the web UI."""
        went = {f"n_{decision}": n for decision, n in self.decisions.items() if decision != "kept"}
        wanted = {"n_readable": self.n_readable, "n_wanted": self.n_wanted, "n_kept": self.n_kept}
        return {**wanted, "n_missing": self.n_missing, **went}


def select(
    layout: Layout,
    params: SelectionParams,
    *,
    seed: int,
    workers: int,
    progress: Progress = silent,
) -> SelectReport:
    """Write ranking.parquet, pruned_subset.parquet, decisions.parquet, scenes.csv and summary.json.

    Raises:
        UsageError: unknown strategy.
    """
    leader = _near_copies(layout.file("index"), params.near_duplicate_correlation, workers)
    candidates = np.flatnonzero(leader == np.arange(len(leader)))
    n_readable = pq.ParquetFile(layout.file("manifest")).metadata.num_rows
    n_wanted = n_to_keep(n_readable, params.keep_fraction)
    order = order_candidates(
        layout, candidates, params, n_wanted=n_wanted, seed=seed, workers=workers, progress=progress
    )
    _write_ranking(layout, candidates[order], leader)
    report = _write_ledger(layout, n_readable, n_wanted, min(n_wanted, len(candidates)))
    summary = {**params.model_dump(), **asdict(report), "shortfall": report.shortfall()}
    layout.file("summary").write_text(json.dumps(summary, indent=1) + "\n")
    return report


def _near_copies(index: Path, correlation: float, workers: int) -> np.ndarray:
    """The row (N,) that each row is a near-duplicate of; its own if it is none."""
    batches = pq.ParquetFile(index).iter_batches(columns=["thumbnail"])
    thumbnails = np.empty((pq.ParquetFile(index).metadata.num_rows, THUMBNAIL_PX**2), np.uint8)
    n_read = 0
    for batch in batches:
        pixels = b"".join(batch.column(0).to_pylist())
        thumbnails[n_read : n_read + len(batch)] = np.frombuffer(pixels, np.uint8).reshape(len(batch), -1)
        n_read += len(batch)
    return near_duplicates(thumbnails, correlation=correlation, workers=workers)


def _write_ranking(layout: Layout, order: np.ndarray, leader: np.ndarray) -> None:
    """Write the candidates in content order with their rank; `order` (n,) are row numbers, best first."""
    rank = np.zeros(len(leader), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    write_batches(_ranking(layout, rank, leader), layout.file("ranking"), RANKING)


def _ranking(layout: Layout, rank: np.ndarray, leader: np.ndarray) -> Iterator[pa.RecordBatch]:
    """RANKING in batches; only the ids of tiles with near-duplicates are in memory together."""
    index = layout.file("index")
    has_copies = np.unique(leader[leader != np.arange(len(leader))])
    copied = rows_at(index, ["tile_id"], has_copies).column("tile_id")
    tiles = pq.ParquetFile(index).iter_batches(ROWS_PER_GROUP, columns=["content_md5", "tile_id"])
    clusters = pq.ParquetFile(layout.file("assignment")).iter_batches(ROWS_PER_GROUP, columns=["scene", "cluster_id"])
    start = 0
    for some, assigned in zip(tiles, clusters, strict=True):
        rows = np.arange(start, start + len(some))
        ranks, leaders = rank[rows], leader[rows]
        originals = pa.array(np.searchsorted(has_copies, leaders), mask=leaders == rows)
        columns = {
            **{name: some.column(name) for name in some.schema.names},
            **{name: assigned.column(name) for name in assigned.schema.names},
            "rank": pa.array(ranks, mask=ranks == 0),
            "near_copy_of": copied.take(originals),
        }
        yield from pa.table(columns).to_batches()
        start += len(some)


def _write_ledger(layout: Layout, n_readable: int, n_wanted: int, n_kept: int) -> SelectReport:
    write_decisions(layout, n_kept)
    write_csv(_escaped(scene_table(layout.file("decisions"))), layout.file("scenes"))
    n_written = write_subset(layout, n_kept)
    assert n_written == n_kept, "ranks are 1 to the number of candidates"
    return SelectReport(count_decisions(layout.file("decisions")), n_readable, n_wanted, n_kept)


def _escaped(scenes: pa.Table) -> pa.Table:
    """The table with scene names (the first column) escaped for a CSV file."""
    names = [formula_escaped(name) for name in scenes.column("scene").to_pylist()]
    return scenes.set_column(0, "scene", pa.array(names, pa.string()))
