"""Tiles of the corpus as data URIs, each of at most a few kilobytes."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.tables import query
from rsprune_dagster.errors import TileError
from rsprune_dagster.pruning.steps.scan import read_options

TILE_PX = 96
"""Longer edge of a tile on the page: sharp at twice the 48 px to 72 px it is shown with."""
QUALITIES = (84, 72, 58, 44, 30)
"""JPEG quality, the first that MAX_TILE_BYTES allow."""
MAX_TILE_BYTES = 4_200
MAX_SHEET_BYTES = 90_000

Rows = list[dict[str, Any]]


def read_tiles(corpus: Path, tile_ids: Iterable[str]) -> dict[str, str]:
    """By tile id a data URI, empty where the tile cannot be read any more; each container is opened once."""
    wanted = sorted(set(tile_ids))
    pictures = dict.fromkeys(wanted, "")
    with TileReader(read_options(corpus)) as reader:
        for row in rows_of(corpus, wanted):
            pictures[row["tile_id"]] = _read(reader, row)
    return pictures


def rows_of(corpus: Path, tile_ids: Sequence[str]) -> Rows:
    """The manifest's rows of some tiles, container by container."""
    if not tile_ids:
        return []
    listed = ", ".join(quoted(tile_id) for tile_id in tile_ids)
    sql = f"SELECT * EXCLUDE (thumbnail) FROM manifest WHERE tile_id IN ({listed}) ORDER BY uri, tile_id"
    return fetch(sql, {"manifest": corpus / "manifest.parquet"})


def fetch(sql: str, tables: Mapping[str, Path]) -> Rows:
    """The rows of a query over Parquet files."""
    with query(sql, tables) as batches:
        rows: Rows = batches.read_all().to_pylist()
    return rows


def quoted(text: str) -> str:
    """A string as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def tile_uri(pixels: np.ndarray) -> str:
    """A tile (H, W, 3) uint8 as a data URI: its longer edge TILE_PX at most, its quality what MAX_TILE_BYTES allow."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS, reducing_gap=None)
    return _jpeg(picture, MAX_TILE_BYTES)


def sheet_uri(picture: Image.Image) -> str:
    """A sheet of tiles, such as samples of a model, as a data URI of at most MAX_SHEET_BYTES."""
    return _jpeg(picture.convert("RGB"), MAX_SHEET_BYTES)


def _read(reader: TileReader, row: Mapping[str, Any]) -> str:
    try:
        return tile_uri(reader.read_rgb(row))
    except TileError:
        return ""


def _jpeg(picture: Image.Image, max_bytes: int) -> str:
    """The best quality that fits; at the lowest one the picture is shrunk until it does."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= max_bytes:
            return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    smaller = (max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4))
    return _jpeg(picture.resize(smaller, Image.Resampling.LANCZOS), max_bytes)
