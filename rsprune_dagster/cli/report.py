"""`rsprune report`: the HTML report of a prune."""

from pathlib import Path
from typing import Annotated

import typer

from rsprune_dagster.cli.out_folder import note_beside
from rsprune_dagster.config.params import load, project_root
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.terminal import say

app = typer.Typer(rich_markup_mode=None)


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder of a `prune`; default: the project", metavar="DIR")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Default: report.html in DIR, or in the project's .state", metavar="FILE"),
    ] = None,
) -> None:
    """Write one HTML page: the corpus, the kept tiles, and why the others were dropped. Needs no training."""
    from rsprune_dagster.stages.pruning_report import make_report
    from rsprune_dagster.tracking.places import Places
    from rsprune_dagster.tracking.report_origins import origins_of
    from rsprune_dagster.utils.atomic_write import atomic_write
    from rsprune_dagster.viz.folders import Folders

    project = project_root()
    places = Places.of_project(project) if out is None else Places.of_out(out)
    folders = Folders(places.assets)
    if missing := folders.missing():
        raise UsageError(f"{places.assets} holds no {missing[0]}: give --out DIR of a `rsprune prune`, or run it first")
    params = load(project / "params.yaml")
    made = make_report(
        places.assets,
        origins_of(places.assets, places.run_log, folders.present()),
        params.report,
        clustering=params.clustering,
        seed=params.compute.seed,
    )
    target = html or (out or project / ".state") / "report.html"
    with atomic_write(target) as draft:
        draft.write_text(made.html, encoding="utf-8")
    if out is not None:
        note_beside(out, target)
    say(str(target))
