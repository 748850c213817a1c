"""`rsprune`: the pipeline and queries of its results on the command line."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from rsprune_dagster.cli.help import GroupedCommands, show_version
from rsprune_dagster.cli.out_folder import check_writable, publish
from rsprune_dagster.cli.report import app as report_app
from rsprune_dagster.cli.reprune import app as reprune_app
from rsprune_dagster.cli.sample import app as training_app
from rsprune_dagster.cli.study import app as study_app
from rsprune_dagster.cli.study import materialize_study
from rsprune_dagster.cli.super_resolve import app as super_resolution_app
from rsprune_dagster.cli.synthesize import app as synthesis_app
from rsprune_dagster.cli.versions import app as lineage_app
from rsprune_dagster.config.effects import without_effect
from rsprune_dagster.config.layout import LEDGER, REPORT_HTML, STUDIES, TILES, Layout
from rsprune_dagster.config.params import Params, flat, load, parse_yaml, project_root
from rsprune_dagster.utils.errors import RunError, UsageError, UserError
from rsprune_dagster.utils.terminal import note, say, warn

app = typer.Typer(
    cls=GroupedCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    suggest_commands=False,  # click suggests them already
)

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended."""

MLFLOW_WAIT_S = 20.0
"""Seconds to wait for MLflow at exit."""

LONGEST_SHOWN = 120
"""Characters of a parameter's value in a message."""

PRUNING = (
    *("corpus", "reference", "entropy", "embedding", "clustering", "selection"),
    *("compute", "tracking", "checks"),
)
"""The sections of params.yaml that `prune` reads."""

CorpusArgument = Annotated[
    list[str], typer.Argument(help="Folders, tars, Parquet files or GeoTIFF scenes; local paths or fsspec URLs")
]
ResultOption = Annotated[
    Path | None, typer.Option("--out", help="Output folder of a `prune`; default: the project's assets", metavar="DIR")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any parameter, e.g. --set clustering.n_clusters=60", metavar="SECTION.KEY=VALUE"),
]


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 the run failed, 2 invalid usage, 130 interrupted."""
    try:
        result = app(standalone_mode=False)
    except UserError as error:
        _end(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message())
        sys.exit(UsageError.exit_code)
    except click.UsageError as error:
        _end(f"{error.format_message()} See `rsprune {_command(error)}--help`.", UsageError.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        result = INTERRUPTED
    except BrokenPipeError:
        sys.exit(RunError.exit_code)
    if result == INTERRUPTED:  # typer turns a KeyboardInterrupt into this
        _end("interrupted: finished work is kept, and the same command goes on from there", INTERRUPTED)
    sys.exit(result if isinstance(result, int) else 0)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print the version and exit")
    ] = False,
) -> None:
    """Prune a remote-sensing corpus to the tiles worth training on."""


@app.command()
def prune(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option("--out", help="Output folder", metavar="DIR")],
    reference: Annotated[
        list[str] | None, typer.Option("--reference", help="A labelled scene set, one folder per scene", metavar="DIR")
    ] = None,
    keep: Annotated[float | None, typer.Option("--keep", help="Share of readable tiles to keep, 0 to 1")] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="The encoder", metavar="NAME")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Its weights, a local file", metavar="FILE")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed")] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help="rsprune, or a baseline", metavar="NAME")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Threads over shards; 0: one per core")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda", metavar="NAME")] = None,
    changes: SetOption = None,
) -> None:
    """Prune CORPUS: write DIR/pruned_subset.parquet (kept tiles, best first) and DIR/decisions.parquet (every tile)."""
    from rsprune_dagster.cli.prune_summary import in_effect, next_steps, outcome
    from rsprune_dagster.dagster.assets import build_pruning_assets
    from rsprune_dagster.dagster.materialize import materialize as run
    from rsprune_dagster.pruning.ledger import count_decisions, scene_table
    from rsprune_dagster.tracking.run_recorder import folder_recorder

    params, given = _params(
        changes,
        PRUNING,
        corpus={"sources": corpus},
        reference={"sources": reference or []},
        embedding={"backbone": backbone, "weights": weights},
        selection={"keep_fraction": keep, "strategy": strategy},
        compute={"seed": seed, "workers": workers, "device": device},
        forced={"clustering": {"recluster": "always"}},  # no history: the same bytes each time
    )
    check_writable(out)
    note(in_effect(params, project_root() / "params.yaml", given))
    layout = Layout.of_out(out)
    recorder = folder_recorder(layout, params.tracking)

    def copy_results() -> None:
        for name in publish(layout.folder("pruned_subset"), out):
            warn(f"{out / name} told of the earlier subset and was removed")

    run_id = run(
        build_pruning_assets(params),
        params,
        layout,
        recorder=recorder,
        progress_on="terminal",
        warn=warn,
        finish=copy_results,
    )
    if params.reference.sources:
        note(json.loads(layout.file("quality").read_text())["note"])
    ledger = out / LEDGER
    say(outcome(count_decisions(ledger), scene_table(ledger), out))
    say(f"\n{next_steps(out, out / TILES)}")
    warn(json.loads(layout.file("summary").read_text())["shortfall"])
    warn(recorder.pending_in_mlflow(run_id, timeout_s=MLFLOW_WAIT_S))


@app.command()
def materialize(
    assets: Annotated[list[str] | None, typer.Argument(help="Assets by name; none: all but the studies")] = None,
    changes: SetOption = None,
) -> None:
    """Materialize the project's assets, as its web UI does: recorded in Dagster, dvc.lock and MLflow.

    A study is materialized only if it is named: it takes hours.

    With --set the run differs from params.yaml: its results are kept, but dvc.lock does not record them.
    """
    params, _ = _params(changes, tuple(Params.model_fields))
    studies = [name for name in assets or () if name in STUDIES]
    others = [name for name in assets or () if name not in STUDIES]
    if others or not studies:
        _materialize_project(params, others)
    for study in studies:
        materialize_study(study, params, params.study.arms_of(study), params.study.seeds)


@app.command()
def demo(changes: SetOption = None) -> None:
    """Run the whole pipeline on the corpus of params.yaml: a synthetic one, unless you changed it."""
    from rsprune_dagster.cli.prune_summary import outcome
    from rsprune_dagster.pruning.ledger import count_decisions, scene_table
    from rsprune_dagster.viz import super_resolution, synthesis
    from rsprune_dagster.viz.evaluation import headline
    from rsprune_dagster.viz.pictures import save_pictures

    project = project_root()
    layout = Layout.of_project(project)
    params, _ = _params(changes, tuple(Params.model_fields))
    _materialize_project(params, ())
    ledger = layout.file("decisions")
    say(outcome(count_decisions(ledger), scene_table(ledger), ledger.parent))
    pictures = save_pictures(layout, layout.state / "pictures")
    say(
        f"\nThe trained model, {layout.folder('diffusion_checkpoint')}, against held-out tiles (interval):\n"
        f"{headline(layout.folder('evaluation_metrics'))}\n\nSuper-resolution of held-out tiles (interval):\n"
        f"{super_resolution.headline(layout.folder('super_resolution_checkpoint'))}\n\n"
        "Masks that segmenters find, which learned from real or from real and drawn images (interval):\n"
        f"{synthesis.headline(layout.folder('semantic_synthesis_checkpoint'))}\n\n"
        "The report, to be opened in a browser: "
        f"{layout.folder('pruning_report') / REPORT_HTML}\nPictures of each asset: {pictures}"
        "\nThe web UI: make ui, then open http://127.0.0.1:3000"
    )


@app.command()
def explain(
    tile_id: Annotated[str, typer.Argument(help="As in decisions.parquet", metavar="TILE_ID")], out: ResultOption = None
) -> None:
    """Explain why a tile was kept or dropped: scores, scene, cluster, quota and the nearest kept tiles."""
    from rsprune_dagster.pruning.explain import explain_tile

    say(explain_tile(_pruned(out), tile_id))


@app.command()
def plan(
    corpus: CorpusArgument,
    backbone: Annotated[str | None, typer.Option("--backbone", help="The encoder", metavar="NAME")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Its weights, a local file", metavar="FILE")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Threads over shards; 0: one per core")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda", metavar="NAME")] = None,
    changes: SetOption = None,
) -> None:
    """Estimate the cost of pruning CORPUS from a sample: tiles, time, disk and memory. Writes nothing."""
    from rsprune_dagster.stages.estimate import estimate_cost
    from rsprune_dagster.utils.progress import terminal

    params, _ = _params(
        changes,
        PRUNING,
        corpus={"sources": corpus},
        embedding={"backbone": backbone, "weights": weights},
        compute={"workers": workers, "device": device},
    )
    say(estimate_cost(params, progress=terminal).sentences())


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="New folder, or new file for `list`")],
    form: Annotated[str, typer.Option("--form", help="webdataset, folder or list")] = "webdataset",
    out: ResultOption = None,
) -> None:
    """Export the kept tiles as WebDataset tars, a folder of images or a list of paths."""
    from rsprune_dagster.stages.export import export_kept
    from rsprune_dagster.utils.progress import terminal

    n_tiles = export_kept(_pruned(out), target, form=form, progress=terminal)
    say(f"{n_tiles:,} tiles in {target}")


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="Receives corpus/, reference/, held_out/ and truth.parquet")],
    tiles: Annotated[int, typer.Option("--tiles", help="Tiles of the pool")] = 1200,
    size: Annotated[int, typer.Option("--size", help="Edge of a tile, pixels")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Random seed")] = 0,
) -> None:
    """Generate a synthetic corpus with ground truth: scenes, blanks, copies, noise, GeoTIFFs and broken files."""
    from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus
    from rsprune_dagster.utils.progress import terminal

    write_corpus(folder, SyntheticPlan(n_tiles=tiles, size_px=size, seed=seed), progress=terminal)
    say(f"{folder}/corpus, {folder}/reference, {folder}/held_out, {folder}/truth.parquet")


def _params(
    changes: list[str] | None,
    reads: Sequence[str],
    *,
    forced: Mapping[str, dict[str, Any]] | None = None,
    **sections: dict[str, Any],
) -> tuple[Params, tuple[str, ...]]:
    """Parse params.yaml with the given options, `--set` last; return it with the given keys, as section.key.

    Args:
        reads: the sections that the command reads.
        forced: values that the command always uses.

    Raises:
        UsageError: a value is out of range or has no effect.
    """
    given = {
        name: {key: value for key, value in values.items() if value is not None} for name, values in sections.items()
    }
    for change in changes or []:
        section, key, value = _setting(change)
        if section not in reads:
            raise UsageError(f"--set {change} has no effect here: the command does not read `{section}:`")
        given.setdefault(section, {})[key] = value
    for name in ("corpus", "reference"):
        if "" in (given.get(name, {}).get("sources") or ()):
            raise UsageError(
                f"a source of the {name} is empty: name a folder, `.` for this one; is a variable not set?"
            )
    keys = tuple(flat(given))
    for key, value in flat(forced or {}).items():
        if key in keys:
            raise UsageError(f"--set {key} has no effect here: this command has {key}={value} always")
    params = load(project_root() / "params.yaml").with_values(given).with_values(forced or {})
    if idle := without_effect(params, keys):
        raise UsageError("; ".join(idle))
    return params, keys


def _materialize_project(params: Params, assets: Sequence[str]) -> None:
    """Materialize the project's assets and print the content hash of each."""
    from rsprune_dagster.dagster.assets import build_assets
    from rsprune_dagster.dagster.materialize import materialize as run
    from rsprune_dagster.dagster.materialize import project_home
    from rsprune_dagster.tracking.run_recorder import project_recorder

    project = project_root()
    recorder = project_recorder(project, params.tracking, say_on="terminal")
    run_id = run(
        build_assets(params),
        params,
        Layout.of_project(project),
        recorder=recorder,
        assets=assets,
        home=project_home(project),
        progress_on="terminal",
        warn=warn,
    )
    records = recorder.records_of(run_id)
    width = max((len(record.asset) for record in records), default=0)
    for record in records:
        kept = "in dvc.lock" if record.versioned else f"not in dvc.lock: {record.versioned_note}"
        say(f"{record.asset:<{width}}  {record.data_version:<36}  {kept}")
    warn(recorder.pending_in_mlflow(run_id, timeout_s=MLFLOW_WAIT_S))


def _setting(change: str) -> tuple[str, str, Any]:
    name, equals, value = change.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section in Params.model_fields):
        known = ", ".join(Params.model_fields)
        raise UsageError(f"--set {change}: expected SECTION.KEY=VALUE with a section of params.yaml ({known})")
    try:
        return section, key, parse_yaml(value)
    except ValueError:
        shown = value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}..."
        raise UsageError(f"--set {name}: {shown} is no YAML value; quote it, or close its brackets") from None


def _pruned(out: Path | None) -> Layout:
    layout = Layout.of_project(project_root()) if out is None else Layout.of_out(out)
    if not layout.has("pruned_subset"):
        where = out or layout.assets
        raise UsageError(f"no pruned subset in {where}: give --out DIR of a `rsprune prune`, or run it first")
    return layout


def _command(error: click.UsageError) -> str:
    name = error.ctx.info_name if error.ctx and error.ctx.parent else None
    return f"{name} " if name else ""


def _end(message: str, code: int) -> None:
    warn(message)
    sys.exit(code)


app.add_typer(lineage_app)
app.add_typer(report_app)
app.add_typer(study_app)
app.add_typer(training_app)
app.add_typer(super_resolution_app)
app.add_typer(synthesis_app)
app.add_typer(reprune_app)
