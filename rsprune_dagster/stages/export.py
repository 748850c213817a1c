"""Export of the kept tiles, read through the index and checked against their content hash."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.export import export_subset
from rsprune_dagster.corpus.options import read_options
from rsprune_dagster.corpus.storage import escaped_name, located
from rsprune_dagster.utils.progress import Progress


def export_kept(layout: Layout, target: Path, *, form: str, progress: Progress) -> int:
    """Export the pruned subset; returns the number of tiles.

    Raises:
        UsageError: unknown form, or `target` is not empty.
        RunError: a tile changed or vanished since pruning.
    """
    options = read_options(layout.folder("raw_corpus"))
    subset = pq.read_table(layout.file("subset"))
    uris = pa.array([escaped_name(located(uri, options.base)) for uri in subset.column("uri").to_pylist()], pa.string())
    subset = subset.set_column(subset.schema.get_field_index("uri"), subset.schema.field("uri"), uris)
    with TileReader(options) as reader:
        export_subset(subset, target, form=form, read_bytes=reader.read_bytes, progress=progress)
    return int(subset.num_rows)
