"""Tiles of the corpus as pixels, and as data URIs of at most a few kilobytes."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsprune_dagster.config.layout import MANIFEST_FILE
from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import read_options
from rsprune_dagster.corpus.tables import query

TILE_PX = 96
"""Longer edge of a tile on the page: sharp at twice the 48 px to 72 px it is shown with."""
QUALITIES = (84, 72, 58, 44, 30)
"""JPEG quality, the first that MAX_TILE_BYTES allow."""
MAX_TILE_BYTES = 4_200

Pixels = np.ndarray
"""A tile, (H, W, 3) uint8."""
Rows = list[dict[str, Any]]


def fetch(sql: str, tables: Mapping[str, Path]) -> Rows:
    """The rows of a query over Parquet files."""
    with query(sql, tables) as batches:
        rows: Rows = batches.read_all().to_pylist()
    return rows


def read_tiles(corpus: Path, tile_ids: Sequence[str]) -> dict[str, Pixels | None]:
    """By tile id its pixels as the encoder sees them; None where it cannot be read any more.

    Args:
        corpus: the folder of raw_corpus, or of another manifest. Each container is opened once.
    """
    tiles: dict[str, Pixels | None] = dict.fromkeys(tile_ids)
    if not tiles:
        return {}
    listed = ", ".join("'" + tile_id.replace("'", "''") + "'" for tile_id in sorted(tiles))
    sql = f"SELECT * EXCLUDE (thumbnail) FROM manifest WHERE tile_id IN ({listed}) ORDER BY uri, tile_id"
    with TileReader(read_options(corpus)) as reader:
        for row in fetch(sql, {"manifest": corpus / MANIFEST_FILE}):
            pixels = reader.try_rgb(row)
            tiles[row["tile_id"]] = None if pixels is None else _small(pixels)
    return tiles


def decoded(png: bytes) -> Pixels:
    """The pixels of an encoded picture."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def tile_uri(pixels: Pixels) -> str:
    """A tile as a data URI: its longer edge TILE_PX at most, its quality what MAX_TILE_BYTES allow."""
    picture = Image.fromarray(_small(pixels))
    while True:
        for quality in QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= MAX_TILE_BYTES:
                return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        smaller = (max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4))
        picture = picture.resize(smaller, Image.Resampling.LANCZOS)


def _small(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(picture)
