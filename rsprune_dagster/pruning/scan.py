"""The one pass over a corpus: each tile is read once and decoded once.

That read tells a tile's identity, size and place, whether it can be used at all, its entropy, and the thumbnail that
near-duplicates are looked for by.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.pixels import Pixels
from rsprune_dagster.corpus.shards import Shard, ShardCache, written_whole
from rsprune_dagster.corpus.tiles import FACTS, SCAN
from rsprune_dagster.errors import TileError
from rsprune_dagster.pruning.entropy import thumbnail, tile_entropy

SCAN_VERSION = "1"

_ALL_VALID = np.zeros((0, 0), np.bool_)
_FACT_NAMES = tuple(FACTS.names)
_MEASURED = tuple(name for name in _FACT_NAMES if name in Pixels._fields)


def scan_identity(options: ReadOptions, patch_grid: int) -> tuple[object, ...]:
    """All that decides a shard's scan besides its tiles."""
    return SCAN_VERSION, asdict(options), patch_grid


def scan_shard(shard: Shard, cache: ShardCache, options: ReadOptions, patch_grid: int) -> Path:
    """Scan a shard, unless that is done already; returns the Parquet file of its SCAN rows."""
    target = cache.result("scan", shard, *scan_identity(options, patch_grid))
    if not target.exists():
        table = scan_tiles(shard.rows(), options, patch_grid)
        with written_whole(target) as draft:
            pq.write_table(table, draft)
    return target


def scan_tiles(rows: pa.Table, options: ReadOptions, patch_grid: int) -> pa.Table:
    """SCAN rows of LOCATION rows, in the same order. A tile that cannot be used gets its reason in `quarantine`."""
    facts: dict[str, list[Any]] = {name: [] for name in _FACT_NAMES}
    with TileReader(options) as reader:
        for row in rows.to_pylist():
            for name, value in _facts(reader, row, patch_grid).items():
                facts[name].append(value)
    columns = [pa.array(facts[field.name], field.type) for field in FACTS]
    return pa.table([*rows.columns, *columns], schema=SCAN)


def same_bytes(shard: Shard, scan: Path, options: ReadOptions) -> bool:
    """Whether the tiles of a shard still have the bytes that its scan saw: read and hashed, not decoded."""
    if not scan.exists():
        return True  # it will be scanned anyway
    seen = pq.read_table(scan, columns=["content_md5", "kind"]).to_pylist()
    with TileReader(options) as reader:
        return all(
            _md5(reader, row) == before["content_md5"]
            for row, before in zip(shard.rows().to_pylist(), seen, strict=True)
        )


def _md5(reader: TileReader, row: dict[str, Any]) -> str | None:
    try:
        return hashlib.md5(reader.read_bytes(row)).hexdigest()
    except TileError:
        return None


def _facts(reader: TileReader, row: dict[str, Any], patch_grid: int) -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(_FACT_NAMES)
    try:
        pixels = reader.read_grey(row)
    except TileError as error:
        facts["quarantine"] = str(error)
        return facts
    for name in _MEASURED:
        facts[name] = getattr(pixels, name)
    valid = _ALL_VALID if pixels.valid is None else pixels.valid
    facts["entropy_bits"], facts["patch_entropy_bits"] = tile_entropy(pixels.grey, valid, patch_grid)
    facts["valid_fraction"] = 1.0 if pixels.valid is None else float(pixels.valid.mean())
    facts["thumbnail"] = thumbnail(pixels.grey).tobytes()
    return facts
