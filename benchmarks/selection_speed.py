"""Selection over a million tiles: time, peak memory, and whether both grow as the number of tiles does.

    .venv/bin/python benchmarks/selection_speed.py [--tiles 100000 300000 1000000] [--dimension 256] [--workers 2]

Vectors are random halves on disk, in the project's own format, read a block at a time; 10 scenes of skewed sizes with
30 clusters each. Every size runs in a process of its own, so that its peak memory is its own. Writing the vectors is
not timed; compiling the herding loop is done before the clock starts.
"""

import argparse
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rsprune_dagster.pruning.selection import herding_order, rank_tiles
from rsprune_dagster.pruning.vectors import ROWS_PER_PART, create_vectors, open_vectors

AIM_S, AIM_GB, AIM_TILES = 60, 4, 1_000_000
N_SCENES, N_CLUSTERS = 10, 30


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(heading(options.dimension, options.workers))
    for n_tiles in options.tiles:
        wall_s, peak_gb = apart(n_tiles, options.dimension, options.workers)
        aim = f"{AIM_S} s, {AIM_GB} GB" if n_tiles == AIM_TILES else ""
        print(f"| {n_tiles:,} | {wall_s:.1f} | {1e6 * wall_s / n_tiles:.1f} | {peak_gb:.2f} | {aim} |", flush=True)


def heading(dimension: int, workers: int) -> str:
    """What was run, where and when, and the head of the table."""
    command = "python " + " ".join(["benchmarks/selection_speed.py", *sys.argv[1:]])
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {workers} workers, "
        f"{dimension} dimensions\n\n| tiles | wall, s | µs a tile | peak memory, GB | aim |\n|---|---|---|---|---|"
    )


def apart(n_tiles: int, dimension: int, workers: int) -> tuple[float, float]:
    """Seconds and GB of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder), n_tiles, dimension)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(measure, (Path(folder), n_tiles, workers))


def write_vectors(folder: Path, n_tiles: int, dimension: int) -> None:
    """Random unit vectors, part by part."""
    vectors = create_vectors(folder, n_tiles, dimension)
    for start in range(0, n_tiles, ROWS_PER_PART):
        rows = np.arange(start, min(start + ROWS_PER_PART, n_tiles))
        values = np.random.default_rng(start).standard_normal((len(rows), dimension), dtype=np.float32)
        vectors.write_rows(rows, values / np.linalg.norm(values, axis=1, keepdims=True))


def measure(folder: Path, n_tiles: int, workers: int) -> tuple[float, float]:
    """Seconds of `rank_tiles`, and the peak memory of this process in GB."""
    rng = np.random.default_rng(0)
    scene = rng.choice(N_SCENES, n_tiles, p=np.geomspace(1, 20, N_SCENES) / np.geomspace(1, 20, N_SCENES).sum())
    cluster = rng.integers(0, N_CLUSTERS, n_tiles)
    read = open_vectors(folder).read_rows
    herding_order(read(np.arange(8)), read(np.arange(8)))
    start = time.perf_counter()
    order = rank_tiles(read, scene, cluster, scene_exponent=0.0, cluster_exponent=0.5, workers=workers)
    wall_s = time.perf_counter() - start
    if not np.array_equal(np.sort(order), np.arange(n_tiles)):
        raise SystemExit("the order is not a permutation of the tiles")
    return wall_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
