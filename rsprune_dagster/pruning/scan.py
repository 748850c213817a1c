"""The single pass over a corpus: each tile is read and decoded once.

It yields a tile's content hash, size and geolocation, whether it is usable, its entropy, and the thumbnail for the
near-duplicate search.
"""

from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.pixels import Pixels
from rsprune_dagster.corpus.shards import Shard, ShardCache
from rsprune_dagster.corpus.tiles import FACTS, SCAN
from rsprune_dagster.pruning.entropy import PATCH_GRID, thumbnail, tile_entropy
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.errors import TileError
from rsprune_dagster.utils.sealed_files import is_intact, sealed_table

SCAN_VERSION = "2"

_ALL_VALID = np.zeros((0, 0), np.bool_)
_measured = attrgetter(*(name for name in FACTS.names if name in Pixels._fields))
_NOTHING = (None,) * (len(FACTS) - 1)


def scan_identity(options: ReadOptions) -> tuple[object, ...]:
    """Everything that a shard's scan depends on besides its tiles."""
    return SCAN_VERSION, options.values()


def scan_shard(shard: Shard, cache: ShardCache, options: ReadOptions) -> Path:
    """Scan a shard unless the result is cached; returns the Parquet file of its SCAN rows."""
    target = cache.result("scan", shard, *scan_identity(options))
    if not is_intact(target):
        table = scan_tiles(shard.rows(), options)
        with atomic_write(target) as draft:
            draft.write_bytes(sealed_table(table))
    return target


def scan_tiles(rows: pa.Table, options: ReadOptions) -> pa.Table:
    """SCAN rows for LOCATION rows, in the same order. `quarantine` holds the reason of an unusable tile."""
    with TileReader(options) as reader:
        facts = [_facts(reader, row) for row in rows.to_pylist()]
    columns = zip(*facts, strict=True) if facts else [()] * len(FACTS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, FACTS, strict=True)]
    return pa.table([*rows.columns, *arrays], schema=SCAN)


def same_bytes(shard: Shard, scan: Path, options: ReadOptions) -> bool:
    """Whether the tiles of a shard have the same bytes as when scanned; they are hashed, not decoded."""
    if not is_intact(scan):
        return True  # not scanned yet: it will be
    seen = pq.read_table(scan, columns=["content_md5"]).column(0).to_pylist()
    with TileReader(options) as reader:
        rows = zip(shard.rows().to_pylist(), seen, strict=True)
        return all(before is None or _md5(reader, row) == before for row, before in rows)


def _md5(reader: TileReader, row: dict[str, Any]) -> str | None:
    try:
        return reader.read_md5(row)
    except TileError:
        return None


def _facts(reader: TileReader, row: dict[str, Any]) -> tuple[Any, ...]:
    """The FACTS of a tile, in column order."""
    try:
        pixels = reader.read_grey(row)
    except TileError as error:
        return (*_NOTHING, str(error))
    valid = pixels.valid
    entropy_bits, patch_entropy_bits = tile_entropy(pixels.grey, _ALL_VALID if valid is None else valid, PATCH_GRID)
    small = thumbnail(pixels.grey).tobytes()
    valid_fraction = 1.0 if valid is None else float(valid.mean())
    return (*_measured(pixels), valid_fraction, entropy_bits, patch_entropy_bits, small, None)
