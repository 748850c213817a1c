"""Rows of the assets' tables, and the tiles they name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.tables import query
from rsprune_dagster.errors import TileError
from rsprune_dagster.pruning.steps.scan import read_options

Rows = list[dict[str, Any]]


def rows_of(sql: str, tables: Mapping[str, Path]) -> Rows:
    """The rows that a query over Parquet files gives."""
    with query(sql, tables) as batches:
        rows: Rows = batches.read_all().to_pylist()
    return rows


def tiles_of(corpus: Path, rows: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """The tiles as the encoder sees them, each container opened once; one that vanished since is a grey square.

    Args:
        corpus: the folder that says how tiles are read: of raw_corpus, or of another manifest.
    """
    order = sorted(range(len(rows)), key=lambda index: str(rows[index]["uri"]))
    tiles: dict[int, np.ndarray] = {}
    with TileReader(read_options(corpus)) as reader:
        for index in order:
            tiles[index] = _read(reader, rows[index])
    return [tiles[index] for index in range(len(rows))]


def _read(reader: TileReader, row: Mapping[str, Any]) -> np.ndarray:
    try:
        return reader.read_rgb(row)
    except TileError:
        return np.full((16, 16, 3), 128, np.uint8)
