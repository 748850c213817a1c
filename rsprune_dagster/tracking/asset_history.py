"""Earlier versions of assets, for checks, sensors and incremental clustering: from the run log and DVC's cache."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.dvc_lock import DvcProject, version_in
from rsprune_dagster.tracking.run_log import Record, RunLog
from rsprune_dagster.tracking.run_recorder import RunRecorder
from rsprune_dagster.utils.errors import RunError

SOURCES = "corpus.sources"
KEPT_BY_SCENE = "kept_by_scene"
"""The fact that pruned_subset leaves in its record."""
STRATA = "strata"
"""The fact that pruned_subset leaves of what its scenes are; a record without it has scenes of the reference."""
CENTROIDS_FROM = "centroids_from"
"""The fact that scene_clusters leaves where it kept centroids: the version whose centroids it kept."""
LISTING = "listing"
"""The fact that raw_corpus leaves: the fingerprint of its sources before they were scanned."""


@dataclass(frozen=True)
class AssetHistory:
    """The finished records of a pipeline, and what lies in its folders now."""

    run_log: RunLog
    layout: Layout
    project: DvcProject | None

    @classmethod
    def of(cls, recorder: RunRecorder, layout: Layout) -> "AssetHistory":
        return cls(RunLog(Path(recorder.run_log)), layout, recorder.project_of(layout))

    def finished(self, asset: str) -> list[Record]:
        """The finished records of an asset, newest first."""
        records = [each for each in self.run_log.records() if (each.asset, each.status) == (asset, "FINISHED")]
        return records[::-1]

    def present(self, asset: str) -> str:
        """The hash of what lies in the asset's folder; empty where there is none."""
        if not self.layout.has(asset):
            return ""
        return tree_of(self.layout.folder(asset), memory=self.run_log.memory(asset)).digest

    def tiles_of_last_subset(self) -> int | None:
        """Usable tiles of the corpus that the last subset was made from, if the sources are still the same ones.

        A corpus on which a check failed had no subset, so it is never what the next one is compared with.
        """
        corpora = self.finished("raw_corpus")
        made_from = next((each.inputs.get("raw_corpus", "") for each in self.finished("pruned_subset")), "")
        same = [each for each in corpora if each.data_version == made_from]
        if not same or same[0].params.get(SOURCES) != corpora[0].params.get(SOURCES):
            return None
        return int(same[0].metrics["n_tiles"])

    def listing(self) -> Mapping[str, Any]:
        """The fingerprint of the sources that the corpus was last scanned from; empty where there is none."""
        corpora = self.finished("raw_corpus")
        return dict(corpora[0].facts.get(LISTING, {})) if corpora else {}

    def scenes_of_last_subset(self, strata: str) -> Mapping[str, int]:
        """Kept tiles of each scene in the version before the present one; empty where that had other `strata`."""
        present = self.present("pruned_subset")
        earlier = (each for each in self.finished("pruned_subset") if each.data_version != present)
        facts = next((each.facts for each in earlier), {})
        return dict(facts.get(KEPT_BY_SCENE, {})) if facts.get(STRATA, "scenes") == strata else {}

    def age_s(self, asset: str) -> float | None:
        """Seconds since what lies there was made; None where the run log does not know it."""
        present = self.present(asset)
        makers = [each.ended_at for each in self.finished(asset) if each.data_version == present and each.ended_at]
        return time.time() - max(makers) if makers else None

    def stale_inputs(self, asset: str) -> dict[str, str]:
        """The upstream assets of which another version lies there than this one was made from, with that version."""
        present = self.present(asset)
        record = next((each for each in self.finished(asset) if each.data_version == present), None)
        now = {name: self.present(name) for name in (record.inputs if record else ())}
        return {name: version for name, version in now.items() if record and version != record.inputs[name]}

    def champion(self) -> Mapping[str, Path]:
        """The files of the evaluation that the last commit holds; empty where there is none, or not in the cache."""
        if self.project is None:
            return {}
        try:
            committed = version_in(self.project.lock_at("HEAD"), "evaluation_metrics")
        except RunError:  # no commit yet
            return {}
        if not committed or committed == self.present("evaluation_metrics"):
            return {}
        cache = DvcCache.of(self.project.root)
        tree = cache.tree(committed)
        files = {entry.relpath: cache.path(entry.md5) for entry in tree.entries} if tree else {}
        return files if files and all(path.is_file() for path in files.values()) else {}
