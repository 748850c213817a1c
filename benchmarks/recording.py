"""What lineage and versioning cost a prune: the same run with and without them, by turns, from nothing each time.

    python -m benchmarks.recording --corpus TAR --reference DIR [--backbone NAME --weights FILE] [--rounds 3]

`recorded` is `rsprune materialize` in a project: versions kept in DVC's cache, dvc.lock written, records copied to
MLflow in SQLite by a process whose work on the same cores counts, as does the wait for it at the end. `bare` is the
same run with the run log alone. Both are timed from the start of their process to its end.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.machine import heading

AIM = 0.05
CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT_FILES = ("params.yaml", "dvc.yaml", "dagster.yaml", ".dvc/config")
BARE = """
import sys
from pathlib import Path
from rsprune_dagster.dagster.assets import build_pruning_assets
from rsprune_dagster.dagster.materialize import materialize, project_home
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import load
from rsprune_dagster.tracking.run_recorder import folder_recorder
here = Path.cwd()
params = load(here / "params.yaml")
layout = Layout.of_project(here)
materialize(build_pruning_assets(params), params, layout, home=project_home(here),
            recorder=folder_recorder(layout, params.tracking), progress_on="terminal")
"""
PRUNING = "raw_corpus reference_scenes entropy_scores embeddings scene_clusters pruned_subset"
RECORDED = (
    f"import sys; sys.argv[1:] = 'materialize {PRUNING}'.split(); from rsprune_dagster.cli.commands import main; main()"
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--backbone", default="descriptor")
    parser.add_argument("--weights", default="")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    changes = {
        "corpus": {"sources": [str(Path(options.corpus).resolve())]},
        "reference": {"sources": [str(Path(options.reference).resolve())]},
        "embedding": {
            "backbone": options.backbone,
            "weights": str(Path(options.weights).resolve()) if options.weights else "",
        },
    }
    rounds = [(seconds(BARE, changes, "none"), seconds(RECORDED, changes, "")) for _ in range(options.rounds)]
    costs = [recorded / bare - 1 for bare, recorded in rounds]
    print(heading("benchmarks.recording"), end="\n\n")
    print("| round | bare, s | recorded, s | cost | aim |\n|---:|---:|---:|---:|---|")
    for number, ((bare, recorded), cost) in enumerate(zip(rounds, costs, strict=True), 1):
        print(f"| {number} | {bare:.1f} | {recorded:.1f} | {cost:+.1%} | {AIM:.0%} |")
    print(f"\nMedian cost {statistics.median(costs):+.1%}, from {min(costs):+.1%} to {max(costs):+.1%}.")


def seconds(script: str, changes: dict[str, dict[str, object]], tracking_uri: str) -> float:
    """Wall seconds of one run in a new project; SystemExit with its words when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        write_project(project, changes)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "MLFLOW_"))
        }
        if tracking_uri:
            environment["MLFLOW_TRACKING_URI"] = tracking_uri
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        taken_s = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        wait_for_syncs(project)
        return taken_s


def write_project(project: Path, changes: dict[str, dict[str, object]]) -> None:
    """A project of its own, in a git repository, with the code of this checkout."""
    for name in PROJECT_FILES:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, project / name)
    (project / "rsprune_dagster").symlink_to(CHECKOUT / "rsprune_dagster")
    params = yaml.safe_load((project / "params.yaml").read_text())
    for section, values in changes.items():
        params[section].update(values)
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git = ["git", "-C", str(project), "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    for command in (["init", "--quiet"], ["add", "params.yaml"], ["commit", "--quiet", "-m", "start"]):
        subprocess.run([*git, *command], check=True)


def wait_for_syncs(project: Path) -> None:
    """Until the sync with MLflow has ended: it must not slow the next round down, nor write into a folder that goes."""
    lock = project / ".state" / "lineage" / "mlflow_sync.lock"
    while lock.exists() and subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False).returncode:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
