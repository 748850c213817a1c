"""A re-pruning: make the subset of a commit's parameters, code and corpus, check it against limits, and publish it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsprune_dagster.config.params import Params, load
from rsprune_dagster.dagster.check_results import CheckResult, raise_for_blocking
from rsprune_dagster.dagster.materialize import known_assets
from rsprune_dagster.dagster.publish import Publisher
from rsprune_dagster.dagster.updates import Make, Update, make_in_process
from rsprune_dagster.tracking.differences import SUBSET
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.dvc_command import DvcCommand
from rsprune_dagster.tracking.dvc_lock import DvcProject, Stage, version_in
from rsprune_dagster.tracking.format_repruning import commit_message, write_summary
from rsprune_dagster.tracking.git import Checkout
from rsprune_dagster.tracking.places import Places
from rsprune_dagster.tracking.repruning import (
    Repruning,
    Review,
    exchange_gate,
    pictures_of,
    review,
    shrink_gate,
)
from rsprune_dagster.tracking.restore import Say
from rsprune_dagster.tracking.staleness import with_upstream
from rsprune_dagster.tracking.version_history import VersionHistory
from rsprune_dagster.utils.errors import BlockingCheckError, RunError, UsageError


@dataclass(frozen=True)
class UpdateRequest:
    """What a re-pruning is asked for."""

    assets: tuple[str, ...]
    base: str
    """The revision that the summary compares with, and that the gate of exchanged tiles looks at."""
    scan: bool
    """Whether images are listed again."""
    push_data: bool
    """Whether the data goes to the DVC remote."""
    commit: bool
    """Whether dvc.lock is then committed and the branch pushed."""
    summary: Path | None
    run_url: str
    """Where a reader of the summary finds the pictures; empty: nowhere."""


def reprune(root: Path, request: UpdateRequest, say: Say, make: Make | None = None) -> tuple[Repruning, Review]:
    """Re-prune the project at `root`; what was done, and what it changed.

    Args:
        make: what materializes an asset; none: `make_in_process`.

    Raises:
        UsageError: the checkout, the assets' names or params.yaml are off; nothing was started.
        BlockingCheckError: a blocking check or a gate of `repruning` failed.
        RunError: a run failed, or publishing did. In all these cases nothing was published, and the summary says why.
    """
    project, checkout, command = _places_of(root)
    checkout.commit_of(request.base)
    order = with_upstream(project, known_assets(request.assets, tuple(project.stages())))
    publisher = Publisher(checkout, command, DvcCache.of(root))
    params = load(root / "params.yaml")
    if request.push_data:
        publisher.check(commits=request.commit)
    committed = _start_from_commit(project, order, say)
    publisher.pull_dvc_files(say)
    done = Update(project, committed, make or make_in_process(root, params), say).run(order, scan=request.scan)
    seen = _reviewed(root, request.base, command, order, done, say)
    done = _judged(done, seen, params)
    if request.summary is not None:
        _summarize(root, request.summary, done, seen, request.run_url)
    if done.error:
        kind = BlockingCheckError if isinstance(done.error, BlockingCheckError) else RunError
        raise kind(f"{done.refusal}. Nothing was committed or pushed; dvc.lock here is as the run left it")
    if request.push_data:
        publisher.push_data(_here(project, publisher.cache, order, done), say)
    if request.commit:
        publisher.commit_and_push(commit_message(done, seen), say)
    return done, seen


def _places_of(root: Path) -> tuple[DvcProject, Checkout, DvcCommand]:
    project, checkout = DvcProject(root), Checkout(root)
    if not project.exists():
        raise UsageError(f"{root} is no DVC project: run it in the folder of dvc.yaml")
    checkout.commit_of("HEAD")
    return project, checkout, DvcCommand.find(root)


def _start_from_commit(project: DvcProject, order: Sequence[str], say: Say) -> dict[str, Stage]:
    """The commit's dvc.lock, to which the working tree's is set back for the assets in `order`.

    Raises:
        UsageError: dvc.lock differs in another asset too, whose version is nobody's to publish here.
    """
    committed, now = project.lock_at("HEAD"), project.lock()
    differing = [asset for asset in {**committed, **now} if committed.get(asset) != now.get(asset)]
    if others := [asset for asset in differing if asset not in order]:
        raise UsageError(
            f"dvc.lock holds a version of {', '.join(others)} that is not committed: commit dvc.lock first, "
            "name the asset, or take it back with `git checkout dvc.lock`"
        )
    back = {asset: committed[asset] for asset in differing if asset in committed}
    if back:
        say(f"dvc.lock held uncommitted versions of {', '.join(back)}: starting from the commit's")
        project.record(back, say)
    return committed


def _reviewed(root: Path, base: str, command: DvcCommand, order: Sequence[str], done: Repruning, say: Say) -> Review:
    made = {each.asset for each in done.made}
    if done.error and SUBSET not in made:
        return Review(base, None, (), f"{SUBSET} was not made")
    return review(VersionHistory.load(Places.of_project(root)), base, command, order, say)


def _judged(done: Repruning, seen: Review, params: Params) -> Repruning:
    """The re-pruning with what the gates say that compare it with the base."""
    if done.error or seen.difference is None:
        return done
    said = {
        "exchanged": exchange_gate(seen.difference, params.repruning.max_exchanged_fraction),
        "not_shrunken": shrink_gate(seen.difference, params.checks.max_shrink_fraction),
    }
    try:
        raise_for_blocking(CheckResult(SUBSET, name, not said[name], True, said[name]) for name in said)
    except BlockingCheckError as error:
        return replace(done, error=error)
    return done


def _summarize(root: Path, target: Path, done: Repruning, seen: Review, run_url: str) -> None:
    pictures = pictures_of(VersionHistory.load(Places.of_project(root)), done.made)
    try:
        write_summary(target, done, seen, pictures, run_url=run_url)
    except OSError as error:
        raise RunError(f"--summary {target} cannot be written: {error.strerror or error}") from error


def _here(project: DvcProject, cache: DvcCache, order: Sequence[str], done: Repruning) -> dict[str, str]:
    """The versions that dvc.lock names and that were made now or lie in the cache; others were not needed."""
    locked = project.lock()
    made = {each.asset for each in done.made}
    versions = {asset: version_in(locked, asset) for asset in order}
    return {asset: version for asset, version in versions.items() if asset in made or cache.tree(version) is not None}
