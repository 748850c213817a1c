"""Where the facts of pictures and page lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PRUNING = ("raw_corpus", "reference_scenes", "entropy_scores", "embeddings", "scene_clusters", "pruned_subset")
"""The assets of the pruning, in the order of the flow."""
LATER = ("diffusion_checkpoint", "evaluation_metrics", "pruning_study")
"""Shown where they are there."""
HTML, JSON = "report.html", "report.json"
"""The files of pruning_report."""


@dataclass(frozen=True)
class Folders:
    """The asset folders below `assets`; `drafts` are those that are being written, by asset."""

    assets: Path
    drafts: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, asset: str) -> Path:
        """Where an asset lies."""
        return self.drafts.get(asset, self.assets / asset)

    @property
    def corpus(self) -> Path:
        return self.folder("raw_corpus")

    @property
    def reference(self) -> Path:
        return self.folder("reference_scenes")

    @property
    def embeddings(self) -> Path:
        return self.folder("embeddings")

    @property
    def clusters(self) -> Path:
        return self.folder("scene_clusters")

    @property
    def subset(self) -> Path:
        return self.folder("pruned_subset")

    def table(self, name: str) -> Path:
        """A Parquet file of the pruning, by the name that queries know it by."""
        asset, file = TABLES[name]
        return self.folder(asset) / f"{file}.parquet"

    def tables(self, *names: str) -> dict[str, Path]:
        """The same for several."""
        return {name: self.table(name) for name in names}

    def later(self, asset: str) -> Path | None:
        """The folder of an asset of LATER; None where it has not been materialized."""
        folder = self.folder(asset)
        return folder if folder.is_dir() else None

    def missing(self) -> tuple[str, ...]:
        """The assets without which there is no page, and which are not there."""
        return tuple(name for name in PRUNING if not self.folder(name).is_dir())

    def present(self) -> tuple[str, ...]:
        """The assets that the page reads, in the order of the flow."""
        return (*PRUNING, *(name for name in LATER if self.later(name)))


TABLES = {
    "manifest": ("raw_corpus", "manifest"),
    "quarantine": ("raw_corpus", "quarantine"),
    "reference": ("reference_scenes", "manifest"),
    "scores": ("entropy_scores", "scores"),
    "assignment": ("scene_clusters", "assignment"),
    "decisions": ("pruned_subset", "decisions"),
    "ranking": ("pruned_subset", "ranking"),
    "subset": ("pruned_subset", "pruned_subset"),
}
"""Asset and file, by name."""
