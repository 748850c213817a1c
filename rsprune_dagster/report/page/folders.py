"""Where the page's facts lie."""

from dataclasses import dataclass
from pathlib import Path

PRUNING = ("raw_corpus", "reference_scenes", "entropy_scores", "embeddings", "scene_clusters", "pruned_subset")
LATER = ("diffusion_checkpoint", "evaluation_metrics", "pruning_study")
"""Shown where they are there."""


@dataclass(frozen=True)
class Folders:
    """The asset folders below `assets`."""

    assets: Path

    @property
    def corpus(self) -> Path:
        return self.assets / "raw_corpus"

    @property
    def reference(self) -> Path:
        return self.assets / "reference_scenes"

    @property
    def scores(self) -> Path:
        return self.assets / "entropy_scores"

    @property
    def embeddings(self) -> Path:
        return self.assets / "embeddings"

    @property
    def clusters(self) -> Path:
        return self.assets / "scene_clusters"

    @property
    def subset(self) -> Path:
        return self.assets / "pruned_subset"

    @property
    def manifest(self) -> Path:
        return self.corpus / "manifest.parquet"

    @property
    def decisions(self) -> Path:
        return self.subset / "decisions.parquet"

    def later(self, asset: str) -> Path | None:
        """The folder of an asset of LATER; None where it has not been materialized."""
        folder = self.assets / asset
        return folder if folder.is_dir() else None

    def missing(self) -> tuple[str, ...]:
        """The assets without which there is no page, and which are not there."""
        return tuple(name for name in PRUNING if not (self.assets / name).is_dir())

    def present(self) -> tuple[str, ...]:
        """The assets that the page reads, in the order of the flow."""
        return (*PRUNING, *(name for name in LATER if self.later(name)))
