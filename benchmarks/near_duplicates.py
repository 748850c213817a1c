"""The search for near-duplicates: time and memory as the number of tiles grows, and whether planted copies are found.

    python -m benchmarks.near_duplicates [--tiles 100000 1000000] [--workers 2]

Thumbnails are random pictures: smooth noise at three scales under a tone and a contrast of their own. Every hundredth
is a copy of the one before, turned, 3 % brighter and noisy. Every size runs in a process of its own; compiling is not
timed.
"""

import argparse
import multiprocessing
import resource
import time

import numpy as np
from scipy.ndimage import zoom

from benchmarks.machine import heading
from rsprune_dagster.pruning.near_duplicates import near_duplicates

AIMS = {100_000: "6 s", 1_000_000: "120 s, 2 GB"}
CHUNK, COPY_EVERY = 10_000, 100


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(heading("benchmarks.near_duplicates"), end="\n\n")
    print(f"{options.workers} workers\n\n| tiles | wall, s | µs a tile | peak memory, GB | copies found | aim |")
    print("|---:|---:|---:|---:|---:|---|")
    for n_tiles in options.tiles:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            wall_s, peak_gb, found = pool.apply(measure, (n_tiles, options.workers))
        figures = f"{wall_s:.1f} | {1e6 * wall_s / n_tiles:.1f} | {peak_gb:.2f} | {found:.3f}"
        print(f"| {n_tiles:,} | {figures} | {AIMS.get(n_tiles, '')} |", flush=True)


def measure(n_tiles: int, workers: int) -> tuple[float, float, float]:
    """Seconds, peak GB of this process, and the share of the copies that were found."""
    tiles = thumbnails(n_tiles)
    near_duplicates(tiles[:300])
    started = time.perf_counter()
    leader = near_duplicates(tiles, workers=workers)
    wall_s = time.perf_counter() - started
    copies = np.arange(COPY_EVERY - 1, n_tiles, COPY_EVERY)
    found = float(np.mean(leader[copies] == leader[copies - 1]))
    return wall_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, found


def thumbnails(n: int) -> np.ndarray:
    """(n, 256) uint8; row 99, 199, ... is a copy of the row before it."""
    tiles = np.empty((n, 16, 16), np.uint8)
    for start in range(0, n, CHUNK):
        part = pictures(min(CHUNK, n - start), np.random.default_rng(start))
        tiles[start : start + CHUNK] = np.clip(part, 0, 255)
    return tiles.reshape(n, 256)


def pictures(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 16, 16) grey levels, every hundredth a changed copy of the one before."""
    contrast = rng.uniform(0.4, 1.6, (n, 1, 1))
    picture = rng.uniform(60, 190, (n, 1, 1)) + np.zeros((n, 16, 16))
    for edge, levels in ((4, 20), (8, 12), (16, 3)):
        noise = rng.normal(0, levels, (n, edge, edge))
        picture += contrast * zoom(noise, (1, 16 / edge, 16 / edge), order=1)
    copied = picture[COPY_EVERY - 2 :: COPY_EVERY][: n // COPY_EVERY]
    picture[COPY_EVERY - 1 :: COPY_EVERY] = np.rot90(copied, axes=(1, 2)) * 1.03 + rng.normal(0, 0.5, copied.shape)
    return picture


if __name__ == "__main__":
    main()
