"""`rsprune report`: the HTML report of a prune."""

from pathlib import Path
from typing import Annotated

import typer

from rsprune_dagster.cli.out_folder import note_beside
from rsprune_dagster.config.layout import PRUNING, REPORT_HTML, Layout
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
    from rsprune_dagster.tracking.report_origins import origins_of
    from rsprune_dagster.utils.atomic_write import atomic_write

    project = project_root()
    layout = Layout.of_project(project) if out is None else Layout.of_out(out)
    if missing := [asset for asset in PRUNING if not layout.has(asset)]:
        raise UsageError(f"{layout.assets} holds no {missing[0]}: give --out DIR of a `rsprune prune`, or run it first")
    params = load(project / "params.yaml")
    origins, seed = origins_of(layout), params.compute.seed
    made = make_report(layout, origins, params.report, clustering=params.clustering, seed=seed)
    target = html or (out or layout.state) / REPORT_HTML
    with atomic_write(target) as draft:
        draft.write_text(made.html, encoding="utf-8")
    if out is not None:
        note_beside(out, target)
    say(str(target))
