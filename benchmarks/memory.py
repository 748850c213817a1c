"""Peak memory of a whole prune: what a corpus of more tiles adds, by the tile.

    python -m benchmarks.memory [--tiles 4000 40000] [--size 64] [--runs 3]

Tiles are random pictures with detail at several scales, as JPEG in one tar; the descriptor embeds them, there is no
reference. `rsprune prune` runs in a process of its own from nothing, and the kernel tells its largest resident set;
the median of the runs counts, as one peak differs from the next by a hundred MB and more.
Libraries and buffers take most of it whatever the corpus, so a ratio of peaks would say nothing: the bytes that a tile
beyond those of the first row adds are what is bounded, by AIM_BYTES. Exit code 1 where they are more.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.machine import heading

AIM_BYTES = 4_000
"""A tile's row in every table and step at once. A prune that held the tiles (12,288 bytes of 64 px) would miss it."""
BLOCK_TILES = 500


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[4_000, 40_000])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(heading("benchmarks.memory"), end="\n\n")
    print(f"`rsprune prune` of JPEG tiles of {options.size} px, medians of {options.runs} runs\n")
    print("| tiles | wall, s | peak memory, MB | least, most | bytes a further tile | aim |")
    print("|---:|---:|---:|---:|---:|---|")
    peaks_mb: list[float] = []
    for n_tiles in options.tiles:
        runs_s, runs_mb = zip(*prune(n_tiles, options.size, options.runs), strict=True)
        peaks_mb.append(statistics.median(runs_mb))
        measured = f"{statistics.median(runs_s):.0f} | {peaks_mb[-1]:.0f} | {min(runs_mb):.0f}, {max(runs_mb):.0f}"
        print(f"| {n_tiles:,} | {measured} |{_further(options.tiles, peaks_mb)}", flush=True)
    if bytes_a_tile(options.tiles, peaks_mb) > AIM_BYTES:
        raise SystemExit(f"a further tile takes more than {AIM_BYTES:,} bytes")


def bytes_a_tile(n_tiles: list[int], peaks_mb: list[float]) -> float:
    """Bytes that a further tile adds, from the first to the last peak; 0 for a single peak."""
    further = n_tiles[len(peaks_mb) - 1] - n_tiles[0]
    return (peaks_mb[-1] - peaks_mb[0]) * 1e6 / further if further else 0.0


def _further(n_tiles: list[int], peaks_mb: list[float]) -> str:
    return f" {bytes_a_tile(n_tiles, peaks_mb):,.0f} | {AIM_BYTES:,} |" if len(peaks_mb) > 1 else " | |"


def prune(n_tiles: int, size_px: int, n_runs: int) -> list[tuple[float, float]]:
    """Seconds and peak MB of prunes of that many tiles, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "tiles.tar"
        write_tar(tar, n_tiles, size_px)
        script = "from rsprune_dagster.cli.commands import main; main()"
        command = [sys.executable, "-c", script, "prune", str(tar), "--keep", "0.3", "--out"]
        environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
        return [usage([*command, str(Path(folder) / f"out{run}")], environment) for run in range(n_runs)]


def usage(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and peak MB of one command, by itself; SystemExit with its words when it fails."""
    measure = (
        "import resource, subprocess, sys, time; started = time.perf_counter(); "
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3); "
        "sys.exit(done.returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, *command], check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    wall_s, peak_mb = done.stdout.split()
    return float(wall_s), float(peak_mb)


def write_tar(target: Path, n_tiles: int, size_px: int) -> None:
    """The corpus: every tile another one, and the first of it the same however many there are."""
    with tarfile.open(target, "w") as tar:
        for start in range(0, n_tiles, BLOCK_TILES):
            for number, picture in enumerate(pictures(min(BLOCK_TILES, n_tiles - start), size_px, seed=start), start):
                content = jpeg(picture)
                member = tarfile.TarInfo(f"{number:07d}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def pictures(n: int, size_px: int, *, seed: int) -> np.ndarray:
    """(n, size, size, 3) uint8: noise at three scales under a tone of its own."""
    rng = np.random.default_rng(seed)
    picture = rng.uniform(60, 190, (n, 1, 1, 3)) + np.zeros((n, size_px, size_px, 3))
    for scale, contrast in ((16, 30), (8, 20), (2, 10)):
        coarse = rng.normal(0, contrast, (n, size_px // scale, size_px // scale, 3)) * rng.uniform(
            0.3, 1.5, (n, 1, 1, 1)
        )
        picture += coarse.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.clip(picture, 0, 255).astype(np.uint8)


def jpeg(picture: np.ndarray) -> bytes:
    """Encoded at quality 85."""
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=85))


if __name__ == "__main__":
    main()
