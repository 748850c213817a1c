"""All benchmarks in turn, with settings that take some minutes in all: benchmarks/results/NAME.md gets each table.

selection_quality, study, super_resolution, semantic_synthesis, downstream_study, augmentation and blind_upscaler take
longer: they are run only by name, or by themselves.

python -m benchmarks [NAME ...]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

SETTINGS: dict[str, list[str]] = {
    "scan": [],
    "embedding": ["--tiles", "1024", "--rounds", "3"],
    "near_duplicates": [],
    "clustering": [],
    "selection_speed": [],
    "memory": [],
    "prune": [],
    "training": [],
    "sampling": [],
    "report": [],
    "selection_quality": [],
    "study": [],
    "super_resolution": [],
    "semantic_synthesis": [],
    "downstream_study": [],
    "augmentation": [],
    "blind_upscaler": [],
}
"""What each is run with here; by itself it takes its own, longer defaults."""
BY_NAME = (
    "selection_quality",
    "study",
    "super_resolution",
    "semantic_synthesis",
    "downstream_study",
    "augmentation",
    "blind_upscaler",
)
WRITES_ITSELF = ("prune", *BY_NAME)


def main() -> None:
    """Run those that are named, or all; exit code 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SETTINGS))
    names = parser.parse_args().names or [name for name in SETTINGS if name not in BY_NAME]
    if unknown := set(names) - set(SETTINGS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    RESULTS.mkdir(exist_ok=True)
    failed = [name for name in names if not run(name)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(name: str) -> bool:
    """Run one, write its table, say how long it took; False when it failed."""
    started = time.perf_counter()
    command = [sys.executable, "-m", f"benchmarks.{name}", *SETTINGS[name]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=RESULTS.parents[1])
    print(f"{name}: {time.perf_counter() - started:.0f} s\n{done.stdout}", flush=True)
    if done.returncode == 0 and name not in WRITES_ITSELF:
        (RESULTS / f"{name}.md").write_text(done.stdout)
    return done.returncode == 0


if __name__ == "__main__":
    main()
