"""`rsprune reprune`: run by CI when parameters, code or corpus changed."""

import os
from pathlib import Path
from typing import Annotated

import typer

from rsprune_dagster.config.params import load, project_root
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.terminal import say, warn

app = typer.Typer(rich_markup_mode=None)


@app.command()
def reprune(
    assets: Annotated[
        list[str] | None, typer.Argument(help="Assets to update, with their upstream assets", metavar="ASSET")
    ] = None,
    base: Annotated[
        str, typer.Option("--base", help="Git revision that the summary compares with", metavar="REV")
    ] = "HEAD",
    summary: Annotated[
        Path | None,
        typer.Option(
            "--summary", help="Summary with pictures beside it; without pictures as FILE.comment.md", metavar="FILE.md"
        ),
    ] = None,
    push: Annotated[
        bool, typer.Option("--push", help="Push the data, then commit dvc.lock and push the branch")
    ] = False,
    push_data: Annotated[
        bool, typer.Option("--push-data", help="Push the data only; commit dvc.lock elsewhere")
    ] = False,
    scan: Annotated[
        bool, typer.Option("--scan/--no-scan", help="List the images again, or use the corpus recorded in dvc.lock")
    ] = True,
    dagster: Annotated[
        str, typer.Option("--dagster", help="Run on a running Dagster instance with these parameters", metavar="URL")
    ] = "",
    job: Annotated[str, typer.Option("--job", help="With --dagster: the job to launch")] = "prune",
) -> None:
    """Materialize only what changed since the commit's dvc.lock; with --push, publish it.

    Exit codes: 0 success, also if nothing changed; 1 a run or a blocking check failed, nothing published; 2 usage.
    """
    if summary is not None and summary.suffix != ".md":
        raise UsageError(f"--summary {summary}: expected the name of a Markdown file, such as summary.md")
    if dagster:
        _remotely(dagster, job, assets or [], summary, push=push or push_data)
    else:
        goes_out = {"push_data": push or push_data, "commit": push}
        _here(assets or ["pruned_subset"], base, summary, scan=scan, **goes_out)


def _here(assets: list[str], base: str, summary: Path | None, *, push_data: bool, commit: bool, scan: bool) -> None:
    from rsprune_dagster.dagster.repruning import UpdateRequest
    from rsprune_dagster.dagster.repruning import reprune as run

    request = UpdateRequest(tuple(assets), base, scan, push_data, commit, summary, _run_url())
    done, seen = run(project_root(), request, warn)
    for sentence in done.warnings:
        warn(sentence)
    for each in done.made:
        say(f"{each.asset:<17} {each.after:<36}  {'' if each.changed else 'unchanged, '}{each.why}")
    if seen.difference is not None:
        found = seen.difference.comparison
        say(f"{found.n_stayed:,} tiles stayed, {found.n_entered:,} entered, {found.n_left:,} left since {base}")
    if not done.changed:
        say("nothing changed")


def _remotely(url: str, job: str, assets: list[str], summary: Path | None, *, push: bool) -> None:
    from rsprune_dagster.dagster.assets import build_assets
    from rsprune_dagster.dagster.remote_run import run_config, run_remotely
    from rsprune_dagster.tracking.format_repruning import comment_of
    from rsprune_dagster.utils.atomic_write import atomic_write

    if push:
        raise UsageError(f"--push publishes what this checkout made, not what {url} makes: use one of the two options")
    params = load(project_root() / "params.yaml")
    run = run_remotely(url, job, assets, run_config(build_assets(params), params), warn)
    if summary is not None:
        summary.parent.mkdir(parents=True, exist_ok=True)
        for target in (summary, comment_of(summary)):
            with atomic_write(target) as draft:
                draft.write_text(run.as_markdown(), encoding="utf-8")
    say(run.link)
    run.judge()


def _run_url() -> str:
    """The URL of the GitHub workflow run; empty outside GitHub Actions."""
    server, repository, run = (os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    return f"{server}/{repository}/actions/runs/{run}" if server and repository and run else ""
