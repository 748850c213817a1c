"""embeddings: unit vectors of the informative, distinct tiles and of the reference."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import EmbeddingParams
from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions, read_options
from rsprune_dagster.corpus.tables import query, write_query
from rsprune_dagster.pruning.encoders.embedding import embed_stream
from rsprune_dagster.pruning.encoders.embedding_cache import DIGEST, EmbeddingCache, digests, find, read_digests
from rsprune_dagster.pruning.encoders.encoder import TileEncoder
from rsprune_dagster.pruning.encoders.tile_encoder import load_tile_encoder
from rsprune_dagster.pruning.encoders.vectors import create_vectors
from rsprune_dagster.utils.errors import RunError, TileError
from rsprune_dagster.utils.hashing import digest
from rsprune_dagster.utils.progress import Progress, silent

EMBED_VERSION = "2"
CHUNK_TILES = 1024
"""Vectors per cached chunk: the most that a killed run loses."""

INDEX = pa.schema(
    [
        pa.field("content_md5", pa.string(), nullable=False),
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("thumbnail", pa.binary(), nullable=False),
        pa.field("label", pa.string()),
    ]
)
"""The index: row i describes row i of the vectors; in content order."""

_POOL_SQL = """
SELECT manifest.* FROM manifest JOIN scores USING (tile_id) WHERE scores.informative AND scores.copy_of IS NULL
"""
_REFERENCE_SQL = """
SELECT * FROM reference WHERE label IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY content_md5 ORDER BY tile_id) = 1
"""


@dataclass(frozen=True)
class EmbedReport:
    backbone: str
    n_tiles: int
    n_reference: int
    n_computed: int
    n_reused: int
    dimension: int


@dataclass(frozen=True)
class TileTable:
    """The tiles to embed: `sql` over `tables` gives manifest rows with distinct content."""

    sql: str
    tables: dict[str, Path]


@dataclass(frozen=True)
class Embedder:
    """An encoder with read options and the cache of its vectors."""

    encoder: TileEncoder
    options: ReadOptions
    cache_root: Path
    batch_size: int
    chunk_size: int
    progress: Progress = silent

    @property
    def cache(self) -> EmbeddingCache:
        """The cache for this encoder and these read options."""
        identity = digest(EMBED_VERSION, self.encoder.identity, self.encoder.device.type, self.options.values())
        return EmbeddingCache(self.cache_root / "work" / "embeddings" / identity)


def embed_corpus(layout: Layout, params: EmbeddingParams, *, device: str, progress: Progress) -> EmbedReport:
    """Write the vectors of the informative tiles and, in `reference/`, of the labelled ones, without exact copies.

    Args:
        device: auto, cpu or cuda.

    Raises:
        UsageError: unknown backbone or unsuitable weights.
        RunError: a tile changed or vanished since the scan.
    """
    encoder = load_tile_encoder(params, device)
    options, of_reference = (read_options(layout.folder(asset)) for asset in ("raw_corpus", "reference_scenes"))
    pool = Embedder(encoder, options, layout.cache, params.batch_size, CHUNK_TILES, progress)
    labelled = replace(pool, options=of_reference)
    tiles = TileTable(_POOL_SQL, layout.tables("manifest", "scores"))
    n_tiles, n_computed = embed(pool, tiles, layout.file("index"), layout.file("vectors"), "embeddings")
    tiles = TileTable(_REFERENCE_SQL, layout.tables("reference"))
    targets = layout.file("reference_index"), layout.file("reference_vectors")
    n_reference, n_more = embed(labelled, tiles, *targets, "embeddings of the reference")
    layout.file("encoder").write_text(json.dumps(encoder.identity, indent=1, sort_keys=True) + "\n")
    n_new = n_computed + n_more
    n_reused = n_tiles + n_reference - n_new
    return EmbedReport(encoder.name, n_tiles, n_reference, n_new, n_reused, encoder.dimension)


def embed(embedder: Embedder, tiles: TileTable, index: Path, vectors: Path, label: str) -> tuple[int, int]:
    """Write the index and the vectors of the tiles.

    Returns:
        Number of tiles, and how many of them were computed (not cached).

    Raises:
        RunError: a tile changed or vanished since the scan.
    """
    index.parent.mkdir(parents=True, exist_ok=True)
    n_tiles = write_query(
        f"SELECT content_md5, tile_id, thumbnail, label FROM ({tiles.sql}) ORDER BY 1, 2", tiles.tables, index, INDEX
    )
    n_computed = compute_missing(embedder, tiles, label)
    gather(embedder.cache, read_digests(index), vectors, embedder.encoder.dimension)
    return n_tiles, n_computed


def compute_missing(embedder: Embedder, tiles: TileTable, label: str) -> int:
    """Embed the tiles that are not in the cache, in chunks; returns their number."""
    known = embedder.cache.known()
    n_missing = sum(len(batch) for batch in _missing(tiles, known))
    with embedder.progress(label, n_missing) as advance:
        batches = _batches(_missing(tiles, known), embedder)
        pending: list[tuple[np.ndarray, np.ndarray]] = []
        for md5, vectors in _embedded(batches, embedder):
            pending.append((md5, vectors))
            advance(len(md5))
            if sum(len(done) for done, _ in pending) >= embedder.chunk_size:
                _keep(embedder.cache, pending)
        _keep(embedder.cache, pending)
    return n_missing


def gather(cache: EmbeddingCache, wanted: np.ndarray, folder: Path, dimension: int) -> None:
    """Write the cached vectors of `wanted` (N,) S16, ascending, to a vector file in that order."""
    vectors = create_vectors(folder, len(wanted), dimension)
    missing = np.ones(len(wanted), bool)
    for md5, values in cache.blocks():
        rows = find(md5, wanted)
        vectors.write_rows(rows[rows >= 0], values[rows >= 0])
        missing[rows[rows >= 0]] = False
    if missing.any():
        raise RunError(f"{missing.sum():,} vectors vanished from {cache.folder} while they were gathered: run again")


def _missing(tiles: TileTable, known: np.ndarray) -> Iterator[list[dict[str, Any]]]:
    """Rows without a cached vector, in container order."""
    sql = f'SELECT * EXCLUDE (thumbnail) FROM ({tiles.sql}) ORDER BY uri, "offset", y, x, tile_id'
    with query(sql, tiles.tables) as batches:
        for batch in batches:
            absent = find(digests(batch.column("content_md5").to_pylist()), known) < 0
            rows = batch.filter(pa.array(absent))
            if rows.num_rows:
                yield rows.to_pylist()


def _batches(
    missing: Iterator[list[dict[str, Any]]], embedder: Embedder
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """(md5 (b,), tiles) of at most batch_size tiles, decoded."""
    with TileReader(embedder.options) as reader:
        for rows in missing:
            for start in range(0, len(rows), embedder.batch_size):
                batch = rows[start : start + embedder.batch_size]
                yield digests([row["content_md5"] for row in batch]), [_read(reader.read_rgb, row) for row in batch]


def _read(read_rgb: Callable[[dict[str, Any]], np.ndarray], row: dict[str, Any]) -> np.ndarray:
    try:
        return read_rgb(row)
    except TileError as error:
        raise RunError(
            f"{row['tile_id']} is not what it was when the corpus was scanned ({error}): run again, "
            "or materialize raw_corpus; touch the file first if it changed and kept its size and time"
        ) from error


def _embedded(
    batches: Iterator[tuple[np.ndarray, list[np.ndarray]]], embedder: Embedder
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    order: list[np.ndarray] = []

    def tiles() -> Iterator[list[np.ndarray]]:
        for md5, decoded in batches:
            order.append(md5)
            yield decoded

    for position, vectors in enumerate(embed_stream(tiles(), embedder.encoder)):
        yield order[position], vectors
        order[position] = np.zeros(0, DIGEST)


def _keep(cache: EmbeddingCache, pending: list[tuple[np.ndarray, np.ndarray]]) -> None:
    if pending:
        cache.add(np.concatenate([md5 for md5, _ in pending]), np.concatenate([vectors for _, vectors in pending]))
        pending.clear()
