"""Makes the assets that are not as the commit's dvc.lock says, and no others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.assets import build_assets
from rsprune_dagster.dagster.materialize import materialize, project_home
from rsprune_dagster.tracking.dvc_lock import DvcProject, Stage, version_in
from rsprune_dagster.tracking.places import Places
from rsprune_dagster.tracking.repruning import RematerializedAsset, Repruning
from rsprune_dagster.tracking.restore import Say, ensure_cached, place
from rsprune_dagster.tracking.run_recorder import project_recorder
from rsprune_dagster.tracking.staleness import why_stale, with_upstream
from rsprune_dagster.tracking.version_history import VersionHistory
from rsprune_dagster.utils.errors import BlockingCheckError, RunError

SCANS_SOURCES = ("raw_corpus", "reference_scenes")
"""Assets that list images, which are no dependency of any stage: only making these assets again finds new tiles."""

USES_PREVIOUS_VERSION = ("scene_clusters", "evaluation_metrics")
"""Assets that may start from their last version's centroids, or are compared with it, as with the champion's."""

Make = Callable[[str, Say], object]
"""Materializes and checks an asset of the project; the second argument gets the warnings of its checks.

Raises BlockingCheckError where a blocking check fails, and then the asset was made, else a RunError."""


def make_in_process(root: Path, params: Params) -> Make:
    """Assets of the project at `root`, materialized in this process, each in a run of its own."""
    recorder = project_recorder(root, params.tracking)

    def make(asset: str, warn: Say) -> str:
        return materialize(
            build_assets(params),
            params,
            Layout.of_project(root),
            recorder=recorder,
            assets=[asset],
            home=project_home(root),
            progress_on="terminal",
            warn=warn,
        )

    return make


@dataclass(frozen=True)
class Update:
    """The assets that are made again, in order.

    The gates accepted what a commit holds. They did not accept a version that only the working tree's dvc.lock holds,
    so that is made again, from finished work, and checked again.
    """

    project: DvcProject
    committed: Mapping[str, Stage]
    make: Make
    say: Say
    made: list[RematerializedAsset] = field(default_factory=list)

    def run(self, order: Sequence[str], *, scan: bool) -> Repruning:
        """Materialize the stale assets, until a run or a blocking check fails.

        Args:
            order: assets, each after what it is made from.
            scan: whether images are listed again.
        """
        locked, error = dict(self.committed), None
        try:
            for asset in order:
                listed_again = "images listed again" if scan and asset in SCANS_SOURCES else ""
                if why := why_stale(self.project, asset, locked) or listed_again:
                    self._bring_inputs(asset, locked)
                    self._make(asset, why)
                    locked[asset] = self.project.lock()[asset]
        except RunError as raised:
            error = raised
        return Repruning(tuple(self.made), error)

    def _bring_inputs(self, asset: str, locked: Mapping[str, Stage]) -> None:
        """Restore all assets upstream of an asset, which its pictures and checks read too.

        A version in neither the cache nor a remote is made again, and must have the same hash.
        """
        names = [name for name in with_upstream(self.project, [asset]) if name != asset]
        for name, lacking in self._bring(names, locked).items():
            self.say(f"{lacking}: making {name} anew")
            after, expected = self._make(name, "its data was lost").after, version_in(locked, name)
            if after != expected:
                raise RunError(
                    f"{name} came out as {after}, not as dvc.lock has it ({expected}): its images changed; run again "
                    "with --scan"
                )
        if asset in USES_PREVIOUS_VERSION and asset in self.committed:
            for lacking in self._bring([asset], self.committed).values():
                self.say(f"{lacking}: {asset} is made as if for the first time")

    def _bring(self, assets: Sequence[str], locked: Mapping[str, Stage]) -> dict[str, str]:
        """Put versions in place; those that cannot be had, and why."""
        history = VersionHistory.load(Places.of_project(self.project.root))
        places, lacking = history.places, {}
        assert places.cache is not None, "a project has one"
        for asset in assets:
            if history.present(asset) == version_in(locked, asset):
                continue
            version = history.version(asset, version_in(locked, asset))
            try:
                ensure_cached(places, places.cache, [version], self.say)
            except RunError as error:
                lacking[asset] = str(error)
            else:
                place(places, places.cache, version, self.say)
        return lacking

    def _make(self, asset: str, why: str) -> RematerializedAsset:
        """Make one asset. What was made is in `made` also where a blocking check fails then."""
        self.say(f"making {asset}: {why}")
        warnings: list[str] = []
        refused: BlockingCheckError | None = None
        try:
            self.make(asset, warnings.append)
        except BlockingCheckError as error:
            refused = error
        except RunError as error:
            raise RunError(f"{asset} was not made: {error}") from error
        records = [each for each in Places.of_project(self.project.root).run_log.records() if each.asset == asset]
        if not records:
            raise RunError(
                f"the run log of the assets holds no record of {asset}, which was just made: is assets/ written to?"
            )
        remade = RematerializedAsset(asset, why, version_in(self.committed, asset), records[-1], tuple(warnings))
        self.made.append(remade)
        if refused:
            raise refused
        if not remade.record.versioned:
            raise RunError(f"dvc.lock could not record {asset}: {remade.record.versioned_note}")
        return remade
