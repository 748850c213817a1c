"""Estimate the cost of pruning a corpus from a sample."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rsprune_dagster.config.params import Params
from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions, options_of
from rsprune_dagster.corpus.sources import list_corpus, members
from rsprune_dagster.pruning.encoders.encoder import TileEncoder
from rsprune_dagster.pruning.encoders.tile_encoder import load_tile_encoder
from rsprune_dagster.pruning.scan import scan_tiles
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import Progress

N_SCANNED = 1024
N_EMBEDDED = 192
TABLE_BYTES_PER_TILE = 1500
"""Measured bytes per tile: compressed rows of scan, manifest, scores, index, ranking and decisions."""
RESIDENT_BYTES_PER_TILE = 800
"""Memory per tile of the near-duplicate search, the largest of all steps: 256 for the thumbnail, 2 x 80 for its
feature in the index, the rest for candidates, tones and leaders. A test measures it."""
BASE_MEMORY_BYTES = 1.5e9
"""torch, faiss and DuckDB with their buffers."""
SELECTION_TILES_PER_S = 15_000
"""Measured by benchmarks/selection_speed.py on 2 cores."""


@dataclass(frozen=True)
class CostEstimate:
    n_tiles: int
    n_bytes: int
    usable_fraction: float
    scan_tiles_per_s: float
    embed_tiles_per_s: float
    dimension: int
    backbone: str

    @property
    def wall_s(self) -> float:
        usable = self.n_tiles * self.usable_fraction
        return self.n_tiles / self.scan_tiles_per_s + usable / self.embed_tiles_per_s + usable / SELECTION_TILES_PER_S

    @property
    def disk_bytes(self) -> float:
        """Cached and final vectors in half precision, and the tables."""
        return self.n_tiles * (2 * 2 * self.dimension + TABLE_BYTES_PER_TILE)

    @property
    def memory_bytes(self) -> float:
        return BASE_MEMORY_BYTES + self.n_tiles * RESIDENT_BYTES_PER_TILE

    def sentences(self) -> str:
        """The printed estimate."""
        return "\n".join(
            [
                f"{self.n_tiles:,} tiles, {_bytes(self.n_bytes)}; {self.usable_fraction:.1%} of a sample can be used",
                f"scan {self.scan_tiles_per_s:,.0f} tiles/s, {self.backbone} {self.embed_tiles_per_s:,.0f} tiles/s",
                f"time {_duration(self.wall_s)}, disk {_bytes(self.disk_bytes)}, memory {_bytes(self.memory_bytes)}",
            ]
        )


def estimate_cost(params: Params, *, progress: Progress) -> CostEstimate:
    """List the corpus, then scan and embed an evenly spaced sample. Writes nothing.

    Raises:
        UsageError: no corpus, unknown backbone, or no usable tile in the sample.
    """
    options = options_of(params.corpus)
    n_tiles, n_bytes, sample = _spread_sample(params.corpus.sources, options, progress)
    scan_tiles(sample.slice(0, 8), options)  # warm-up: loads the compiled kernels
    started = time.monotonic()
    scanned = scan_tiles(sample, options)
    scan_s = (time.monotonic() - started) / _cores(params.compute.workers)
    usable = [row for row in scanned.to_pylist() if row["quarantine"] is None]
    if not usable:
        raise UsageError(f"not one of {sample.num_rows} sampled tiles can be used: {scanned.column('quarantine')[0]}")
    encoder = load_tile_encoder(params.embedding, params.compute.device)
    rate = _embedding_rate(encoder, usable[:N_EMBEDDED], options)
    share = len(usable) / sample.num_rows
    return CostEstimate(n_tiles, n_bytes, share, sample.num_rows / scan_s, rate, encoder.dimension, encoder.name)


def _spread_sample(sources: Sequence[str], options: ReadOptions, progress: Progress) -> tuple[int, int, pa.Table]:
    """Number of tiles, their bytes if known, and up to N_SCANNED evenly spaced rows (every 2**k-th)."""
    step, n_tiles, n_bytes = 1, 0, 0
    kept: list[dict[str, object]] = []
    containers = list_corpus(sources).containers
    with progress("listing", len(containers)) as advance:
        for container in containers:
            for table in members(container, options=options):
                n_bytes += sum(length or 0 for length in table.column("length").to_pylist())
                kept += table.take(pa.array(np.arange(-n_tiles % step, table.num_rows, step))).to_pylist()
                n_tiles += table.num_rows
                while len(kept) > N_SCANNED:
                    kept, step = kept[::2], step * 2
            advance(1)
    return n_tiles, n_bytes, pa.Table.from_pylist(kept, schema=table.schema)


def _embedding_rate(encoder: TileEncoder, rows: Sequence[dict[str, object]], options: ReadOptions) -> float:
    with TileReader(options) as reader:
        tiles = [tile for row in rows if (tile := reader.try_rgb(row)) is not None]
    encoder.embed(tiles)  # warm-up: the first pass allocates memory
    started = time.monotonic()
    encoder.embed(tiles)
    return len(tiles) / (time.monotonic() - started)


def _cores(workers: int) -> int:
    return workers or len(os.sched_getaffinity(0))


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError("unreachable")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
