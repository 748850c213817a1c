"""`rsprune lineage`, `restore` and `diff`: questions about versions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsprune_dagster.config.params import project_root
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.terminal import say, warn

if TYPE_CHECKING:
    from rsprune_dagster.tracking.version_history import VersionHistory

app = typer.Typer(rich_markup_mode=None)


@app.command()
def lineage(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="An asset, champion, a hash, a run, a file or folder, ASSET@REVISION", metavar="WHAT"),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Re-hash the assets and compare all places that know their versions")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder a prune wrote; default: the project", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
    dagster_url: Annotated[
        str, typer.Option("--dagster-url", envvar="DAGSTER_URL", help="Where Dagster's web UI is served")
    ] = "http://127.0.0.1:3000",
) -> None:
    """What WHAT was made from, back to the raw corpus: hashes, parameters, commits, links.

    With --verify: whether disk, dvc.lock, run log, Dagster, MLflow and DVC's cache agree on each asset; exit 1 if not.
    """
    history = _history(out)
    if verify:
        _verify(history, what or [], as_json=as_json)
    elif what:
        _chain(history, what, dagster_url, as_json=as_json)
    else:
        raise UsageError("give an asset, a hash, a Dagster run or a folder, or --verify")


@app.command()
def restore(
    version: Annotated[str, typer.Argument(help="A hash or its beginning, or ASSET@REVISION", metavar="VERSION")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Into a new folder, leaving the assets alone", metavar="DIR")
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Not what it was made from")] = False,
) -> None:
    """Bring a version back, with all it was made from: from DVC's cache, else from the DVC remote."""
    from rsprune_dagster.tracking.find import find_one
    from rsprune_dagster.tracking.restore import restore as bring_back
    from rsprune_dagster.tracking.restore import restore_to

    history = _history()
    found = find_one(history, version)
    if to is not None:
        restore_to(history.places, found, to, warn)
        say(f"{found.asset} {found.data_version} is in {to}")
    else:
        say("\n".join(bring_back(history, found, only=only, say=warn)))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="A hash, a git revision, the --out of a prune, or now", metavar="A")],
    b: Annotated[str, typer.Argument(help="The same", metavar="B")] = "now",
    save: Annotated[
        Path | None, typer.Option("--save", help="Write every tile that entered or left", metavar="FILE.parquet")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Examples of each kind of change")] = 5,
    markdown: Annotated[bool, typer.Option("--markdown", help="For a pull request")] = False,
) -> None:
    """Which tiles entered and left the pruned subset between two versions, and why."""
    from rsprune_dagster.pruning.compare import write_changes
    from rsprune_dagster.tracking.differences import difference, side
    from rsprune_dagster.tracking.format_diff import as_markdown, as_text
    from rsprune_dagster.utils.atomic_write import atomic_write

    history = _history()
    before, after = side(history, a, warn), side(history, b, warn)
    found = difference(before, after, n_examples=limit)
    say(as_markdown(found) if markdown else as_text(found))
    if save is not None:
        with atomic_write(save) as draft:
            n_tiles = write_changes(before.ledger, after.ledger, found.comparison.clusters, draft)
        warn(f"{n_tiles:,} tiles in {save}")


def _history(out: Path | None = None) -> "VersionHistory":
    """The versions of the project, or of the folder that a prune wrote."""
    from rsprune_dagster.tracking.places import Places
    from rsprune_dagster.tracking.version_history import VersionHistory

    return VersionHistory.load(Places.of_project(project_root()) if out is None else Places.of_out(out))


def _chain(history: "VersionHistory", what: list[str], dagster_url: str, *, as_json: bool) -> None:
    from rsprune_dagster.tracking.find import find
    from rsprune_dagster.tracking.format import chain_values, format_chain

    chain = history.chain(*(version for name in what for version in find(history, name)))
    where = (history.places.run_log, dagster_url)
    say(json.dumps(chain_values(chain, *where), indent=1) if as_json else format_chain(chain, *where))


def _verify(history: "VersionHistory", assets: list[str], *, as_json: bool) -> None:
    from rsprune_dagster.tracking.verify import verdict_table, verdict_values, verify

    verdicts = verify(history, assets)
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    if as_json:
        say(json.dumps(verdict_values(verdicts), indent=1))
    else:
        say("\n".join([verdict_table(verdicts), "", *(problems or ["everything at hand agrees"])]))
    if trouble := history.places.elsewhere.trouble:
        warn(f"MLflow does not answer, so it was not asked: {trouble[0]}")
    if problems:
        raise typer.Exit(1)
