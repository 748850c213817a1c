"""raw_corpus and reference_scenes: the manifest of usable tiles and the quarantine of unusable ones."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune_dagster.config.layout import MANIFEST_FILE, QUARANTINE_FILE
from rsprune_dagster.config.params import CorpusParams
from rsprune_dagster.corpus.options import ReadOptions, options_of, write_options
from rsprune_dagster.corpus.shards import Shard, ShardCache, ShardListing
from rsprune_dagster.corpus.sources import LISTING_VERSION, Container, Listing, list_corpus, members
from rsprune_dagster.corpus.tables import CONTENT_ORDER, scalar, write_query
from rsprune_dagster.corpus.tiles import LOCATION, SCAN
from rsprune_dagster.pruning.scan import same_bytes, scan_identity, scan_shard
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.progress import Progress
from rsprune_dagster.utils.sealed_files import is_intact

MANIFEST = pa.schema([field for field in SCAN if field.name not in ("stamp", "quarantine")])
"""A usable tile; rows are in content order. Without stamps, since touching a file does not change the tile."""

QUARANTINE = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ScanReport:
    n_tiles: int
    n_quarantined: int
    n_ignored: int
    n_shards: int
    n_shards_computed: int
    n_shards_reused: int


@dataclass(frozen=True)
class Scanner:
    """How tiles are read and measured: options, cache and number of threads.

    `home`: the project's folder; paths inside it are relative in the tables. None: every path is absolute.
    """

    options: ReadOptions
    shard_size: int
    cache: ShardCache
    workers: int
    progress: Progress
    home: Path | None = None

    @classmethod
    def of(
        cls, params: CorpusParams, cache_root: Path, workers: int, progress: Progress, home: Path | None = None
    ) -> "Scanner":
        """The scanner of params.yaml, with its finished work below `cache_root`."""
        return cls(options_of(params), params.shard_size, ShardCache(cache_root), workers, progress, home)

    def shards(self, listing: Listing, *, labelled: bool) -> tuple[list[Shard], Counter[str]]:
        """The shards of a corpus, reusing known ones, and the number of other files by suffix."""
        identity = (LISTING_VERSION, self.options.values(), self.shard_size, labelled)
        rows = partial(_rows, options=self.options, labelled=labelled)
        shards, ignored = self.cache.plan(
            listing.containers, ShardListing(rows, self._unchanged, self.shard_size, identity)
        )
        return shards, ignored + Counter(listing.ignored)

    def result(self, shard: Shard) -> Path:
        """The path of a shard's scan."""
        return self.cache.result("scan", shard, *scan_identity(self.options))

    def _unchanged(self, shard: Shard) -> bool:
        return same_bytes(shard, self.result(shard), self.options)


def scan(sources: Sequence[str], folder: Path, scanner: Scanner, *, labelled: bool, label: str) -> ScanReport:
    """Write manifest.parquet, quarantine.parquet and corpus.json of the tiles in `sources` into `folder`.

    Raises:
        UsageError: no sources, empty sources, or no scene folders in a reference.
        RunError: no tile can be used.
    """
    listing = list_corpus(sources, labelled=labelled)
    shards, ignored = scanner.shards(listing, labelled=labelled)
    if not shards:
        raise UsageError(f"no image in {', '.join(sources)}: give a folder, tar, Parquet file or GeoTIFF with images")
    scans = [scanner.result(shard) for shard in shards]
    with _pool(scanner.workers) as pool:
        done = list(pool.map(is_intact, scans))
    todo = [shard for shard, is_done in zip(shards, done, strict=True) if not is_done]
    _scan_all(todo, scanner, label)
    report = _write_tables(scans, folder, scanner.home, ignored, len(shards), len(todo))
    write_options(scanner.options, ignored, folder)
    if report.n_tiles == 0:
        seen = f"{report.n_quarantined:,} tiles in {', '.join(sources)}"
        raise RunError(f"not one of {seen} can be used; {_first_reason(scanner, shards)}")
    return report


def _rows(container: Container, *, options: ReadOptions, labelled: bool) -> tuple[pa.Table, Counter[str]]:
    ignored: Counter[str] = Counter()
    tables = list(members(container, options=options, labelled=labelled, ignored=ignored))
    return pa.concat_tables([LOCATION.empty_table(), *tables]), ignored


def _scan_all(shards: Sequence[Shard], scanner: Scanner, label: str) -> None:
    with scanner.progress(label, sum(shard.n_tiles for shard in shards)) as advance, _pool(scanner.workers) as pool:
        futures = [pool.submit(scan_shard, shard, scanner.cache, scanner.options) for shard in shards]
        try:
            for shard, future in zip(shards, futures, strict=True):
                future.result()
                advance(shard.n_tiles)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as pool:
        yield pool


def _write_tables(
    scans: Sequence[Path], folder: Path, home: Path | None, ignored: Counter[str], n_shards: int, n_computed: int
) -> ScanReport:
    uri = _uri(home)
    columns = ", ".join(uri if name == "uri" else f'"{name}"' for name in MANIFEST.names)
    tables = {"scan": scans}
    n_tiles = write_query(
        f"SELECT {columns} FROM scan WHERE quarantine IS NULL ORDER BY {CONTENT_ORDER}",
        tables,
        folder / MANIFEST_FILE,
        MANIFEST,
    )
    n_quarantined = write_query(
        f"SELECT tile_id, {uri}, quarantine AS reason FROM scan WHERE quarantine IS NOT NULL ORDER BY tile_id",
        tables,
        folder / QUARANTINE_FILE,
        QUARANTINE,
    )
    n_distinct = scalar("SELECT count(DISTINCT tile_id) FROM scan", tables)
    if n_distinct != n_tiles + n_quarantined:
        raise RunError(
            f"{n_tiles + n_quarantined - n_distinct} tile ids occur twice: rename files, or prune each source by itself"
        )
    return ScanReport(n_tiles, n_quarantined, sum(ignored.values()), n_shards, n_computed, n_shards - n_computed)


def _uri(home: Path | None) -> str:
    """SQL: the column `uri`, relative to `home` if inside it."""
    if home is None:
        return "uri"
    start = f"{home.absolute()}/"
    quoted = start.replace("'", "''")
    return f"CASE WHEN starts_with(uri, '{quoted}') THEN substr(uri, {len(start) + 1}) ELSE uri END AS uri"


def _first_reason(scanner: Scanner, shards: Sequence[Shard]) -> str:
    first = pq.read_table(scanner.result(shards[0]), columns=["tile_id", "quarantine"]).slice(0, 1).to_pylist()[0]
    return f"the first, {first['tile_id']}: {first['quarantine']}"
