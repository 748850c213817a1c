"""A project of its own for a test: this checkout's tracked files in a git repository, over a small synthetic corpus."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rsprune_command
import yaml
from pair_folders import CLASSES, write_place
from prune_runs import PLAN

from rsprune_dagster.config.params import load
from rsprune_dagster.corpus.synthetic import write_corpus
from rsprune_dagster.dagster.assets import build_assets
from rsprune_dagster.tracking.dvc_lock import DvcProject
from rsprune_dagster.tracking.run_log import RunLog

CHECKOUT = Path(__file__).resolve().parents[1]
ASSETS = tuple(yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())["stages"])
"""What a whole run materializes, in the order of the flow: all but what is made on request."""
UPSTREAM: Mapping[str, frozenset[str]] = {
    made.key.to_user_string(): frozenset(dep.asset_key.to_user_string() for dep in made.get_asset_spec().deps)
    for made in build_assets(load(CHECKOUT / "params.yaml"))
    if made.key.to_user_string() in ASSETS
}
"""What each of them is made from, as the asset graph has it."""

SHORT_TRAINING = {"n_images": 32, "batch_size": 8, "image_size_px": 16, "save_every_images": 32, "sample_steps": 2}
"""Parameters of a training that takes a moment."""
SHORT_EVALUATION = {"n_samples": 48, "sample_steps": 2}
"""Parameters of an evaluation that takes a moment."""
SHORT_SUPER_RESOLUTION = {"n_images": 32, "save_every_images": 32, "n_test_images": 8}
"""Parameters of a super-resolution that takes a moment."""
SHORT_SYNTHESIS = {
    "classes": list(CLASSES),
    "crop_px": 16,
    "n_images": 32,
    "save_every_images": 32,
    "n_test_images": 8,
    "n_drawn_images": 8,
    "n_segmenter_images": 16,
    "n_segmenters": 1,
}
"""Parameters of a semantic synthesis that takes a moment, on the pairs of `pair_folders`."""


def chain_of(asset: str) -> set[str]:
    """The asset and all that it is made from, directly or not."""
    return {asset}.union(*(chain_of(each) for each in UPSTREAM[asset]))


def following(asset: str) -> set[str]:
    """The asset and all that is made from it, directly or not: what is out of date when it changes."""
    return {each for each in ASSETS if asset in chain_of(each)}


@dataclass(frozen=True)
class Project:
    """A checkout with DVC, git, a Dagster home and a run log of its own."""

    root: Path

    @property
    def run_log(self) -> RunLog:
        return RunLog(self.root / ".state" / "lineage")

    @property
    def dvc(self) -> DvcProject:
        return DvcProject(self.root)

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a command in the project; its output, standard error after standard output."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(**environment), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def rsprune(self, *arguments: str, **environment: str) -> str:
        """Run a command of ours; what it said, errors after output."""
        code, said = rsprune_command.run(arguments, cwd=self.root, environment=self.environment(**environment))
        assert code == 0, f"rsprune {arguments} ended with {code}:\n{said}"
        return said

    def run_dvc(self, *arguments: str, **environment: str) -> str:
        return self.run(".venv-dvc/bin/dvc", *arguments, **environment)

    def environment(self, **more: str) -> dict[str, str]:
        ours = {"DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "none"}
        clean = {name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "RSPRUNE_PROJECT")}
        return {**clean, **ours, **more}

    def commit(self, message: str) -> str:
        """Commit all tracked and new files; the commit's hash."""
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", message)
        return self.run("git", "rev-parse", "HEAD").strip()

    def change(self, section: str, **values: Any) -> None:
        """Change params.yaml."""
        path = self.root / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params[section].update(values)
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def versions(self) -> dict[str, str]:
        """The hash that dvc.lock holds for each asset."""
        return {name: self.dvc.version(name) for name in ASSETS}

    def runs_of(self, asset: str) -> int:
        """How many times an asset was materialized."""
        return sum(record.asset == asset for record in self.run_log.records())


def new_project(folder: Path) -> Project:
    """Write the project, its corpus beside it, and commit it."""
    project = Project(folder / "project")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (CHECKOUT / name).is_file() and name != "dvc.lock":
            (project.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, project.root / name)
    link_environments(project)
    write_corpus(folder / "made", PLAN)
    project.change("corpus", sources=[str(folder / "made" / "corpus")])
    project.change("reference", sources=[str(folder / "made" / "reference")])
    project.change("compute", workers=1, device="cpu")
    project.change("training", **SHORT_TRAINING)
    project.change("evaluation", sources=[str(folder / "made" / "held_out")], **SHORT_EVALUATION)
    project.change("super_resolution", **SHORT_SUPER_RESOLUTION)
    project.change("semantic_synthesis", **SHORT_SYNTHESIS, **small_pairs(folder / "made_pairs"))
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.commit("start")
    return project


def small_pairs(folder: Path) -> dict[str, list[str]]:
    """Write pairs of two places; the parameters that name them."""
    write_place(folder / "here", 10, 0)
    write_place(folder / "there", 4, 100)
    return {"sources": [str(folder / "here")], "test_sources": [str(folder / "there")]}


def clone(project: Project, target: Path) -> Project:
    """A fresh clone of a project: only what git has."""
    project.run("git", "clone", "--quiet", str(project.root), str(target))
    cloned = Project(target)
    link_environments(cloned)
    return cloned


def link_environments(project: Project) -> None:
    """The environments of this checkout, which the commands in dvc.yaml name."""
    for name in (".venv", ".venv-dvc"):
        (project.root / name).symlink_to(Path(sys.prefix).with_name(name))
    exclude = project.root / ".git" / "info" / "exclude"
    exclude.parent.mkdir(parents=True, exist_ok=True)
    exclude.write_text(".venv\n.venv-dvc\n")


def workflow_script(step: str) -> str:
    """The script of a step of re-prune.yml."""
    workflow = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "re-prune.yml").read_text())
    steps = [each for job in workflow["jobs"].values() for each in job["steps"]]
    [script] = [each["run"] for each in steps if each.get("name") == step]
    return str(script)
