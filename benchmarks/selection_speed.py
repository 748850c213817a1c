"""Selection over a million tiles: time, peak memory, and whether time grows as the number of tiles does.

    python -m benchmarks.selection_speed [--tiles 250000 500000 1000000] [--dimension 256] [--workers 2]

Vectors are random halves on disk, in the project's own format, read a block at a time. Groups of skewed sizes (the
largest is twenty times the smallest) are what takes turns: 10 as scenes of a reference, 60 as clusters of a foreign
pool. Every size runs in a process of its own, so that its peak memory is its own. Writing the vectors is not timed;
compiling the herding loop is done before the clock starts.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import heading
from rsprune_dagster.pruning.encoders.vectors import ROWS_PER_PART, create_vectors, open_vectors
from rsprune_dagster.pruning.selection import herding_order, rank_tiles

AIM_S, AIM_GB, AIM_TILES = 60, 4, 1_000_000
N_GROUPS = {"scenes": 10, "clusters": 60}
SKEW = 20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(heading("benchmarks.selection_speed"), end="\n\n")
    print(f"Selection, {options.dimension} dimensions, {options.workers} workers. Aim: linear time.", end="\n\n")
    print("| tiles | groups | wall, s | µs a tile | peak memory, GB | aim |\n|---:|---:|---:|---:|---:|---|")
    for n_tiles in options.tiles:
        aim = f"{AIM_S} s, {AIM_GB} GB" if n_tiles == AIM_TILES else ""
        for name, wall_s, peak_gb in measured(n_tiles, options.dimension, options.workers):
            figures = f"{wall_s:.1f} | {1e6 * wall_s / n_tiles:.1f} | {peak_gb:.2f}"
            print(f"| {n_tiles:,} | {N_GROUPS[name]} {name} | {figures} | {aim} |", flush=True)


def measured(n_tiles: int, dimension: int, workers: int) -> list[tuple[str, float, float]]:
    """Kind of groups, seconds and GB of each run, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder), n_tiles, dimension)
        return [(name, *apart(Path(folder), n_tiles, n_groups, workers)) for name, n_groups in N_GROUPS.items()]


def apart(folder: Path, n_tiles: int, n_groups: int, workers: int) -> tuple[float, float]:
    """Seconds and GB of one run in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (folder, n_tiles, n_groups, workers))


def write_vectors(folder: Path, n_tiles: int, dimension: int) -> None:
    """Random unit vectors, part by part."""
    vectors = create_vectors(folder, n_tiles, dimension)
    for start in range(0, n_tiles, ROWS_PER_PART):
        rows = np.arange(start, min(start + ROWS_PER_PART, n_tiles))
        values = np.random.default_rng(start).standard_normal((len(rows), dimension), dtype=np.float32)
        vectors.write_rows(rows, values / np.linalg.norm(values, axis=1, keepdims=True))


def measure(folder: Path, n_tiles: int, n_groups: int, workers: int) -> tuple[float, float]:
    """Seconds of `rank_tiles`, and the peak memory of this process in GB."""
    shares = np.geomspace(1, SKEW, n_groups) / np.geomspace(1, SKEW, n_groups).sum()
    group = np.random.default_rng(0).choice(n_groups, n_tiles, p=shares)
    one = np.zeros(n_tiles, np.int64)
    read = open_vectors(folder).read_rows
    herding_order(read(np.arange(8)), read(np.arange(8)))
    start = time.perf_counter()
    order = rank_tiles(read, group, one, scene_exponent=0.0, cluster_exponent=0.0, workers=workers)
    wall_s = time.perf_counter() - start
    if not np.array_equal(np.sort(order), np.arange(n_tiles)):
        raise SystemExit("the order is not a permutation of the tiles")
    return wall_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
