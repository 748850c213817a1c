"""The kept tiles, handed on: read through the index, checked against their hash, written in the form asked for."""

from pathlib import Path

import pyarrow.parquet as pq

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.export import export_subset
from rsprune_dagster.progress import Progress
from rsprune_dagster.pruning.steps.scan import read_options


def export_kept(assets: Path, target: Path, *, form: str, progress: Progress) -> int:
    """Export the pruned subset; returns the number of tiles.

    Raises:
        UsageError: unknown form, or `target` holds something already.
        RunError: a tile changed or vanished since pruning.
    """
    subset = pq.read_table(assets / "pruned_subset" / "pruned_subset.parquet")
    with TileReader(read_options(assets / "raw_corpus")) as reader:
        export_subset(subset, target, form=form, read_bytes=reader.read_bytes, progress=progress)
    return int(subset.num_rows)
