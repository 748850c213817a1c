"""How long `rsprune prune` takes from nothing, from the command to its last file, with each encoder.

    python -m benchmarks.prune [--data ../shared/data] [--runs 3]

The corpus is a tar of EuroSAT tiles (15,606 JPEGs of 64 px), the reference 2,000 labelled ones; 15 % is kept. The
network is MobileNetV2 at the size in params.yaml, from a local file; the other encoder is the download-free descriptor.
Every run has an empty folder, so nothing is reused but the files that the system has in memory: one run of each goes
first and is not counted.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.labelled_sets import ENCODERS
from benchmarks.machine import heading
from benchmarks.memory import usage

RESULTS = Path(__file__).parent / "results" / "prune.md"


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    lines = [heading("benchmarks.prune"), "", (__doc__ or "").split("\n\n", 2)[2]]
    lines += ["| encoder | runs | wall, s (median) | fastest, slowest | peak memory, MB |", "|---|---:|---:|---:|---:|"]
    lines += [row(encoder, options.data, options.runs) for encoder in ("mobilenet_v2", "descriptor")]
    print("\n".join(lines))
    RESULTS.write_text("\n".join(lines) + "\n")


def row(encoder: str, data: Path, n_runs: int) -> str:
    """A row of the table: `n_runs` prunes after one that warms the system's memory of files."""
    runs = [prune(encoder, data) for _ in range(n_runs + 1)][1:]
    walls = [wall_s for wall_s, _ in runs]
    times = f"{statistics.median(walls):.1f} | {min(walls):.1f}, {max(walls):.1f}"
    return f"| {encoder} | {n_runs} | {times} | {max(peak_mb for _, peak_mb in runs):,.0f} |"


def prune(encoder: str, data: Path) -> tuple[float, float]:
    """Seconds and peak MB of one prune in a process of its own. SystemExit with its words when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        script = "from rsprune_dagster.cli.commands import main; main()"
        eurosat = data / "eurosat"
        command = [sys.executable, "-c", script, "prune", str(eurosat / "pool.tar"), "--out", str(Path(folder) / "out")]
        command += ["--reference", str(eurosat / "reference"), "--keep", "0.15", "--backbone", encoder]
        command += ["--weights", str(data / ENCODERS[encoder])] if encoder in ENCODERS else []
        return usage(command, {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"})


if __name__ == "__main__":
    main()
