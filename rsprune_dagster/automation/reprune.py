"""A re-pruning: what a commit's parameters, code and corpus ask for is made, held against the gates, and published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.assets import build_assets
from rsprune_dagster.automation.publish import Publisher
from rsprune_dagster.automation.run import materialize, project_home
from rsprune_dagster.errors import RunError, UsageError
from rsprune_dagster.lineage.history import History
from rsprune_dagster.lineage.kept import Say, make_whole
from rsprune_dagster.lineage.places import Places
from rsprune_dagster.lineage.repruning import Remade, Repruning, Review, check_exchanged, pictures_of, review
from rsprune_dagster.lineage.restore import place
from rsprune_dagster.lineage.staleness import upstream, wanted, why_stale
from rsprune_dagster.lineage.tell_repruning import commit_message, write_summary
from rsprune_dagster.params import Params, load, suggest
from rsprune_dagster.resources.checkout import Checkout
from rsprune_dagster.resources.dvc_cache import DvcCache
from rsprune_dagster.resources.dvc_command import DvcCommand
from rsprune_dagster.resources.dvc_lock import DvcProject, Stage, version_in
from rsprune_dagster.resources.lineage import project_lineage

LISTED = ("raw_corpus", "reference_scenes")
"""The assets that list images, which are no dependency of any stage: only making them anew finds new tiles."""


@dataclass(frozen=True)
class Wish:
    """What a re-pruning is asked for."""

    assets: tuple[str, ...]
    base: str
    """The revision that the summary compares with, and that the gate of exchanged tiles looks at."""
    scan: bool
    """Whether images are listed again."""
    push: bool
    summary: Path | None
    run_url: str
    """Where a reader of the summary finds the pictures; empty: nowhere."""


def reprune(root: Path, wish: Wish, say: Say) -> tuple[Repruning, Review]:
    """Re-prune the project at `root`; what was done, and what it changed.

    Raises:
        UsageError: the checkout, the assets' names or params.yaml are off; nothing was started.
        RunError: a run or a gate failed, after the summary was written, and nothing was published; or publishing did.
    """
    project, checkout, command = _places_of(root)
    base = checkout.commit_of(wish.base) and wish.base
    order = wanted(project, _known(project, wish.assets))
    publisher = Publisher(checkout, command, DvcCache.of(root))
    params = load(root / "params.yaml")
    committed = _start_from_commit(project, order, say)
    if wish.push:
        publisher.check()
    publisher.pull_pointers(say)
    done = _Remaking(project, params, committed, wish.scan, say).all_of(order)
    done, seen = _judged(done, _review(root, command, base, order, say), params)
    if wish.summary is not None:
        _summarize(root, wish.summary, done, seen, wish.run_url)
    if done.refusal:
        raise RunError(f"{done.refusal}. Nothing was committed or pushed; dvc.lock here is as the run left it")
    if wish.push:
        publisher.push_data(_here(project, publisher.cache, order, done), say)
        publisher.commit_and_push(commit_message(done, seen), say)
    return done, seen


@dataclass(frozen=True)
class _Remaking:
    """Making anew what is not as the commit's dvc.lock says, and nothing else.

    What a commit holds was let through by the gates; a version that only the working tree's dvc.lock holds was not, so
    it is made again, from finished work, and checked again.
    """

    project: DvcProject
    params: Params
    committed: Mapping[str, Stage]
    scan: bool
    say: Say

    def all_of(self, order: Sequence[str]) -> Repruning:
        """The assets in order, until a run fails."""
        made: list[Remade] = []
        locked = dict(self.committed)
        for asset in order:
            why = why_stale(self.project, asset, locked) or self._listed_again(asset)
            if not why:
                continue
            try:
                made += self._upstream_in_place(asset, locked)
                made.append(self._make(asset, why))
            except RunError as error:
                return Repruning(tuple(made), f"{asset} was not made: {error}")
            locked[asset] = self.project.lock()[asset]
        return Repruning(tuple(made))

    def _listed_again(self, asset: str) -> str:
        return "images listed again" if self.scan and asset in LISTED else ""

    def _upstream_in_place(self, asset: str, locked: Mapping[str, Stage]) -> list[Remade]:
        """Have on disk what the asset is made from; what neither the cache nor a remote has is made anew."""
        made: list[Remade] = []
        for name in upstream(self.project.stages()[asset]):
            lacking = self._bring(name, version_in(locked, name))
            if lacking:
                self.say(f"{lacking}: making {name} anew")
                made += self._upstream_in_place(name, locked)
                made.append(self._remake_alike(name, locked))
        return made

    def _bring(self, asset: str, version: str) -> str:
        """Put a version in place; empty, or why it cannot be had."""
        history = History.load(Places.of_project(self.project.root))
        if history.present(asset) == version:
            return ""
        places, found = history.places, history.version(asset, version)
        assert places.cache is not None, "a project has one"
        try:
            make_whole(places, places.cache, [found], self.say)
        except RunError as error:
            return str(error)
        place(places, places.cache, found, self.say)
        return ""

    def _remake_alike(self, asset: str, locked: Mapping[str, Stage]) -> Remade:
        remade = self._make(asset, "its data was lost")
        if remade.after != version_in(locked, asset):
            raise RunError(
                f"{asset} came out as {remade.after}, not as dvc.lock has it ({version_in(locked, asset)}): its images "
                "changed; run again with --scan"
            )
        return remade

    def _make(self, asset: str, why: str) -> Remade:
        self.say(f"making {asset}: {why}")
        lineage = project_lineage(self.project.root, self.params.tracking)
        run_id = materialize(
            build_assets(self.params),
            self.params,
            root=self.project.root / "assets",
            cache_root=self.project.root / ".state" / "cache",
            lineage=lineage,
            assets=[asset],
            home=project_home(self.project.root),
            progress_on="terminal",
        )
        record = next(record for record in lineage.records_of(run_id) if record.asset == asset)
        if not record.versioned:
            raise RunError(f"dvc.lock could not record {asset}: {record.versioned_note}")
        return Remade(asset, why, version_in(self.committed, asset), record)


def _places_of(root: Path) -> tuple[DvcProject, Checkout, DvcCommand]:
    project, checkout = DvcProject(root), Checkout(root)
    if not project.exists():
        raise UsageError(f"{root} is no DVC project: run it in the folder of dvc.yaml")
    checkout.commit_of("HEAD")
    return project, checkout, DvcCommand.find(root)


def _known(project: DvcProject, assets: Sequence[str]) -> Sequence[str]:
    known = tuple(project.stages())
    for name in assets:
        if name not in known:
            raise UsageError(f"no asset is called {name}{suggest(name, known)}; there are {', '.join(known)}")
    return assets


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


def _review(root: Path, command: DvcCommand, base: str, order: Sequence[str], say: Say) -> Review:
    return review(History.load(Places.of_project(root)), base, command, order, say)


def _judged(done: Repruning, seen: Review, params: Params) -> tuple[Repruning, Review]:
    """The re-pruning with what its own gates say."""
    if done.refusal or seen.difference is None:
        return done, seen
    try:
        check_exchanged(seen.difference, params.repruning.max_exchanged_fraction)
    except RunError as error:
        return Repruning(done.made, str(error)), seen
    return done, seen


def _summarize(root: Path, target: Path, done: Repruning, seen: Review, run_url: str) -> None:
    pictures = pictures_of(History.load(Places.of_project(root)), done.made)
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
