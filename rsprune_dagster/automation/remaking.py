"""What a re-pruning makes anew: what is not as the commit's dvc.lock says, and nothing else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.assets import build_assets
from rsprune_dagster.automation.run import materialize, project_home
from rsprune_dagster.errors import GateError, RunError
from rsprune_dagster.lineage.places import Places
from rsprune_dagster.lineage.repruning import Remade, Repruning
from rsprune_dagster.lineage.restore import Say, make_whole, place
from rsprune_dagster.lineage.staleness import wanted, why_stale
from rsprune_dagster.lineage.version_history import VersionHistory
from rsprune_dagster.params import Params
from rsprune_dagster.resources.dvc_lock import DvcProject, Stage, version_in
from rsprune_dagster.resources.lineage import project_lineage

LISTED = ("raw_corpus", "reference_scenes")
"""The assets that list images, which are no dependency of any stage: only making them anew finds new tiles."""

FROM_THE_LAST = ("scene_clusters", "evaluation_metrics")
"""Assets that may start from their last version, by its centroids, or are compared with it, as with the champion's."""

Make = Callable[[str, Say], object]
"""Materializes and checks an asset of the project; the second argument is told what its checks warn of.

Raises GateError where a blocking check fails, and then the asset was made, else a RunError."""


def made_here(root: Path, params: Params) -> Make:
    """Assets of the project at `root`, materialized in this process, each as a run of its own."""
    lineage = project_lineage(root, params.tracking)

    def make(asset: str, warn: Say) -> str:
        return materialize(
            build_assets(params),
            params,
            root=root / "assets",
            cache_root=root / ".state" / "cache",
            lineage=lineage,
            assets=[asset],
            home=project_home(root),
            progress_on="terminal",
            warn=warn,
        )

    return make


@dataclass(frozen=True)
class Remaking:
    """Making anew what is not as the commit's dvc.lock says.

    What a commit holds was let through by the gates; a version that only the working tree's dvc.lock holds was not, so
    it is made again, from finished work, and checked again.
    """

    project: DvcProject
    committed: Mapping[str, Stage]
    scan: bool
    """Whether images are listed again."""
    make: Make
    say: Say

    def all_of(self, order: Sequence[str]) -> Repruning:
        """The assets in order, until a run or a blocking check fails."""
        made: list[Remade] = []
        try:
            for each in self._one_by_one(order):
                made.append(each)  # noqa: PERF402  # extend() would lose what came before an error
        except RunError as error:
            return Repruning(tuple(made), error)
        return Repruning(tuple(made))

    def _one_by_one(self, order: Sequence[str]) -> Iterator[Remade]:
        locked = dict(self.committed)
        for asset in order:
            why = why_stale(self.project, asset, locked) or self._listed_again(asset)
            if why:
                yield from self._inputs_in_place(asset, locked)
                yield from self._make(asset, why)
                locked[asset] = self.project.lock()[asset]

    def _listed_again(self, asset: str) -> str:
        return "images listed again" if self.scan and asset in LISTED else ""

    def _inputs_in_place(self, asset: str, locked: Mapping[str, Stage]) -> Iterator[Remade]:
        """Have on disk what an asset, its pictures and its checks read: all that it is made from, directly or not.

        What neither the cache nor a remote has is made anew.
        """
        names = [name for name in wanted(self.project, [asset]) if name != asset]
        for name, lacking in self._bring({name: version_in(locked, name) for name in names}).items():
            self.say(f"{lacking}: making {name} anew")
            yield from self._make_alike(name, locked)
        if asset in FROM_THE_LAST and asset in self.committed:
            for lacking in self._bring({asset: version_in(self.committed, asset)}).values():
                self.say(f"{lacking}: {asset} is made as if for the first time")

    def _bring(self, versions: Mapping[str, str]) -> dict[str, str]:
        """Put versions in place, by asset; those that cannot be had, and why."""
        history = VersionHistory.load(Places.of_project(self.project.root))
        absent = {asset: version for asset, version in versions.items() if history.present(asset) != version}
        lacking = _fetch(history, absent, self.say)
        for asset, version in absent.items():
            if asset not in lacking:
                assert history.places.cache is not None, "a project has one"
                place(history.places, history.places.cache, history.version(asset, version), self.say)
        return lacking

    def _make_alike(self, asset: str, locked: Mapping[str, Stage]) -> Iterator[Remade]:
        for remade in self._make(asset, "its data was lost"):
            yield remade
            if remade.after != version_in(locked, asset):
                raise RunError(
                    f"{asset} came out as {remade.after}, not as dvc.lock has it ({version_in(locked, asset)}): its "
                    "images changed; run again with --scan"
                )

    def _make(self, asset: str, why: str) -> Iterator[Remade]:
        """One asset: what was made is told also where a blocking check fails then."""
        self.say(f"making {asset}: {why}")
        warnings: list[str] = []
        try:
            self.make(asset, warnings.append)
        except GateError:
            yield self._remade(asset, why, warnings)
            raise
        except RunError as error:
            raise RunError(f"{asset} was not made: {error}") from error
        remade = self._remade(asset, why, warnings)
        yield remade
        if not remade.record.versioned:
            raise RunError(f"dvc.lock could not record {asset}: {remade.record.versioned_note}")

    def _remade(self, asset: str, why: str, warnings: Sequence[str]) -> Remade:
        records = Places.of_project(self.project.root).journal.records()
        record = next((each for each in reversed(records) if each.asset == asset), None)
        if record is None:
            raise RunError(
                f"the journal of assets holds no record of {asset}, which was just made: is assets/ written to?"
            )
        return Remade(asset, why, version_in(self.committed, asset), record, tuple(warnings))


def _fetch(history: VersionHistory, versions: Mapping[str, str], say: Say) -> dict[str, str]:
    """Have versions in the cache, by asset; those that cannot be had, and why."""
    assert history.places.cache is not None, "a project has one"
    asked = [history.version(asset, version) for asset, version in versions.items()]
    try:
        make_whole(history.places, history.places.cache, asked, say)
    except RunError as error:
        if len(versions) == 1:
            return dict.fromkeys(versions, str(error))
        return {name: why for asset in versions for name, why in _fetch(history, {asset: versions[asset]}, say).items()}
    return {}
