"""Scanning against merely decoding, and against cleanvision, on the same files in the same run.

    .venv/bin/python -m benchmarks.scan [--data ../shared/data] [--tiles 15000] [--rounds 5]

The first table is one thread: reading and decoding a tile, the same with its entropy, and the whole scan with content
hash, thumbnail and table. The second uses all cores on loose files: cleanvision's checks against the scan, and against
the scan with the search for exact and near-duplicates. cleanvision's own listing of the files is not counted; of ours
it is counted in the second row only, with the writing of the tables.
"""

import argparse
import contextlib
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from benchmarks.machine import heading
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.shards import Shard, ShardCache
from rsprune_dagster.corpus.sources import list_corpus, members
from rsprune_dagster.pruning.entropy import PATCH_GRID, tile_entropy
from rsprune_dagster.pruning.near_duplicates import near_duplicates
from rsprune_dagster.pruning.scan import scan_shard, scan_tiles
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.utils.progress import silent

_ALL_VALID = np.zeros((0, 0), np.bool_)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--tiles", type=int, default=15_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    tar = options.data / "eurosat" / "pool.tar"
    print(heading("benchmarks.scan"))
    one_thread(tar, options.tiles, options.rounds)
    against_cleanvision(tar, options.tiles, options.rounds)


def one_thread(tar: Path, n_tiles: int, rounds: int) -> None:
    """Decoding, entropy scoring and the whole scan of the tar, read in place, in alternating rounds."""
    options = ReadOptions()
    rows = pa.concat_tables(members(list_corpus([str(tar)]).containers[0], options=options)).slice(0, n_tiles)
    places = [(row["offset"], row["length"]) for row in rows.to_pylist()]
    descriptor = os.open(tar, os.O_RDONLY)

    def decode() -> None:
        for offset, length in places:
            simplejpeg.decode_jpeg(os.pread(descriptor, length, offset), "GRAY")

    def score() -> None:
        for offset, length in places:
            grey = simplejpeg.decode_jpeg(os.pread(descriptor, length, offset), "GRAY")
            tile_entropy(grey[:, :, 0], _ALL_VALID, PATCH_GRID)

    def whole() -> None:
        scan_tiles(rows, options)

    ways: dict[str, Callable[[], None]] = {"read and decode": decode, "entropy scoring": score, "whole scan": whole}
    seconds = alternate(ways, rounds)
    os.close(descriptor)
    print(f"\nOne thread, {len(places):,} JPEG tiles of 64 px\n")
    print("| | tiles/s | of the decoder's rate (median, range) | aim |\n|---|---:|---:|---:|")
    for name, wall_s in seconds.items():
        ratios = [base / own for base, own in zip(seconds["read and decode"], wall_s, strict=True)]
        aim = "0.8" if name == "entropy scoring" else ""
        print(f"| {name} | {len(places) / statistics.median(wall_s):,.0f} | {spread(ratios)} | {aim} |")


def against_cleanvision(tar: Path, n_tiles: int, rounds: int) -> None:
    """Both on loose files with all cores; cleanvision once, it takes long."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        unpack(tar, images, n_tiles)
        low_information = cleanvision(images, ["low_information"])
        three = cleanvision(images, ["low_information", "exact_duplicates", "near_duplicates"])
        shards = listed(images, Path(folder) / "listing")
        caches = iter(Path(folder) / f"cache-{number}" for number in range(4 * rounds))
        ways: dict[str, Callable[[], None]] = {
            "entropy scoring": lambda: scored(shards, next(caches)),
            "scan and duplicates": lambda: with_duplicates(scanned(images, next(caches))),
        }
        seconds = alternate(ways, rounds)
    n_tiles = min(n_tiles, 15_606)
    print(f"\nAll cores, {n_tiles:,} loose JPEG files of 64 px\n")
    print("| | tiles/s | peer | peer, tiles/s | ratio | aim |\n|---|---:|---|---:|---:|---:|")
    peers = {
        "entropy scoring": ("low_information", low_information, 15),
        "scan and duplicates": ("its three checks", three, 10),
    }
    for name, (peer, peer_s, aim) in peers.items():
        own_s = statistics.median(seconds[name])
        line = f"{n_tiles / own_s:,.0f} | cleanvision: {peer} | {n_tiles / peer_s:,.0f} | {peer_s / own_s:.1f} | {aim}"
        print(f"| {name} | {line} |")


def scanned(images: Path, cache: Path) -> Path:
    """The scan as the asset raw_corpus does it, tables included; returns the folder with the manifest."""
    folder = cache / "corpus"
    folder.mkdir(parents=True)
    scan([str(images)], folder, scanner(cache), labelled=False, label="scan")
    return folder


def listed(images: Path, cache: Path) -> list[Shard]:
    """The shards of the folder, not scanned yet."""
    return scanner(cache).shards(list_corpus([str(images)]), labelled=False)[0]


def scored(shards: list[Shard], cache: Path) -> None:
    """Read, hash, decode and score every tile, with all cores; the results are kept as Parquet files of a shard."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda shard: scan_shard(shard, ShardCache(cache), ReadOptions()), shards))


def scanner(cache: Path) -> Scanner:
    """A scanner as the asset raw_corpus has it."""
    return Scanner(ReadOptions(), 1024, ShardCache(cache), len(os.sched_getaffinity(0)), silent)


def with_duplicates(corpus: Path) -> None:
    """Exact copies by hash, near-duplicates by thumbnail, as the selection finds them."""
    manifest = pq.read_table(corpus / "manifest.parquet", columns=["content_md5", "thumbnail"])
    digests = np.asarray(manifest.column("content_md5").to_pylist())
    _, first = np.unique(digests, return_index=True)
    thumbnails = np.frombuffer(b"".join(manifest.column("thumbnail").take(first).to_pylist()), np.uint8)
    near_duplicates(thumbnails.reshape(-1, 256))


def cleanvision(images: Path, checks: list[str]) -> float:
    """Seconds that cleanvision takes for the named checks."""
    from cleanvision import Imagelab

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lab = Imagelab(data_path=str(images))
        started = time.perf_counter()
        lab.find_issues({check: {} for check in checks}, n_jobs=len(os.sched_getaffinity(0)))
    return time.perf_counter() - started


def unpack(tar: Path, folder: Path, n_tiles: int) -> None:
    """The first tiles of the tar as loose files."""
    folder.mkdir()
    with tarfile.open(tar) as archive:
        files = (member for member in archive if member.isfile())
        for _, member in zip(range(n_tiles), files, strict=False):
            content: Any = archive.extractfile(member)
            (folder / Path(member.name).name).write_bytes(content.read())


def alternate(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, the ways in turn, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
