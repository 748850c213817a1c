"""`rsprune study`: measure whether pruning helps on this corpus, for each arm and seed."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import NO_FOUNDATION, Params, load, project_root, suggest
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.terminal import say, warn

app = typer.Typer(rich_markup_mode=None)

TASKS = {
    "": "pruning_study",
    "super_resolution": "super_resolution_study",
    "semantic_synthesis": "semantic_synthesis_study",
}
"""The asset of the study, by --task."""


@app.command()
def study(
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Arm of params.yaml, repeatable; default: all")] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed of params.yaml, repeatable; default: all")
    ] = None,
    task: Annotated[
        str, typer.Option("--task", help="Downstream task to compare by: super_resolution or semantic_synthesis")
    ] = "",
) -> None:
    """Train each arm of params.yaml with each seed and compare. Finished runs are not repeated."""
    params = load(project_root() / "params.yaml")
    if task not in TASKS:
        known_tasks = tuple(name for name in TASKS if name)
        raise UsageError(f"--task {task}{suggest(task, known_tasks)}: there are {', '.join(known_tasks)}")
    arms = params.study.arms_of(TASKS[task])
    for name, asked, known in (("arm", arm, arms), ("seed", seed, params.study.seeds)):
        texts = tuple(str(each) for each in known)
        for each in asked or ():
            if str(each) not in texts:
                hint = suggest(str(each), texts)
                if each == NO_FOUNDATION:
                    raise UsageError(
                        f"--arm {each}: only the studies of downstream tasks have it; name one with --task"
                    )
                raise UsageError(
                    f"--{name} {each}{hint}: there are {', '.join(texts)}; add it to study.{name}s of params.yaml"
                )
    materialize_study(TASKS[task], params, arm or arms, seed or params.study.seeds)


def materialize_study(study: str, params: Params, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Materialize the partitions of these arms and seeds, seed by seed, and print the result."""
    from rsprune_dagster.dagster.assets import build_assets
    from rsprune_dagster.dagster.materialize import materialize, project_home
    from rsprune_dagster.tracking.run_recorder import project_recorder

    project = project_root()
    layout = Layout.of_project(project)
    recorder = project_recorder(project, params.tracking)
    runs = [(arm, seed) for seed in seeds for arm in arms]
    started = time.monotonic()
    for number, (arm, seed) in enumerate(runs):
        warn(f"{arm}, seed {seed} ({number + 1} of {len(runs)}{_left(number, len(runs), started)})")
        materialize(
            build_assets(params),
            params,
            layout,
            recorder=recorder,
            assets=[study],
            partition={"arm": arm, "seed": str(seed)},
            home=project_home(project),
            progress_on="terminal",
        )
    _tell(layout.folder(study))


def _left(n_done: int, n_runs: int, started: float) -> str:
    """The estimated time left, assuming equal times per arm; empty before the first is done."""
    if not n_done:
        return ""
    minutes = (time.monotonic() - started) / n_done * (n_runs - n_done) / 60
    return f", about {minutes:.0f} min left"


def _tell(folder: Path) -> None:
    from rsprune_dagster.viz.pictures import downstream_study_pictures, study_pictures

    pictures = study_pictures(folder) if folder.name == TASKS[""] else downstream_study_pictures(folder)
    say("\n\n".join(str(pictures[title]) for title in ("arms", "differences", "verdicts") if title in pictures))
    say(f"\n{folder}")
