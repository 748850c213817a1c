"""Where files lie. A file name that only one module uses is private to that module; all others are here.

In a project, and in the folder of a `rsprune prune --out`:

    assets/<asset>/            .rsprune/assets/<asset>/    a folder for each asset
    .state/lineage/            .rsprune/lineage/           the run log
    .state/cache/              .rsprune/cache/             finished work; may be deleted, costs only time
    .state/mlflow/mlflow.db                                MLflow's store, where no server is named
    .state/dagster/                                        DAGSTER_HOME, where no other is named
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rsprune_dagster.utils.errors import RunError

PRUNING = ("raw_corpus", "reference_scenes", "entropy_scores", "embeddings", "scene_clusters", "pruned_subset")
"""The assets of a prune, in the order of the flow."""
DOWNSTREAM_STUDIES = ("super_resolution_study", "semantic_synthesis_study")
"""Studies of what is fine-tuned from the foundations of several subsets."""
STUDIES = ("pruning_study", *DOWNSTREAM_STUDIES)
"""Comparisons of subsets by what is learned from them; no other asset depends on them."""
LATER = (
    "diffusion_checkpoint",
    "evaluation_metrics",
    "super_resolution_checkpoint",
    "semantic_synthesis_checkpoint",
    *STUDIES,
)
"""The assets that are made from a subset; `pruning_report` shows those that are there."""

ASSETS = "assets"
STATE = ".state"
WORK = ".rsprune"
"""Below the --out of a `rsprune prune`: its assets and its state."""
MLFLOW_DB = "mlflow/mlflow.db"
"""Below the state."""

MANIFEST_FILE, QUARANTINE_FILE = "manifest.parquet", "quarantine.parquet"
"""The two tables of a scan: the usable tiles, and the quarantined ones with their reasons."""
TILES, LEDGER = "pruned_subset.parquet", "decisions.parquet"
"""The results of a prune, in its asset and in --out."""
FILES = {
    "manifest": ("raw_corpus", MANIFEST_FILE),
    "quarantine": ("raw_corpus", QUARANTINE_FILE),
    "reference": ("reference_scenes", MANIFEST_FILE),
    "scores": ("entropy_scores", "scores.parquet"),
    "threshold": ("entropy_scores", "threshold.json"),
    "index": ("embeddings", "index.parquet"),
    "vectors": ("embeddings", "vectors"),
    "reference_index": ("embeddings", "reference/index.parquet"),
    "reference_vectors": ("embeddings", "reference/vectors"),
    "encoder": ("embeddings", "encoder.json"),
    "assignment": ("scene_clusters", "assignment.parquet"),
    "centroids": ("scene_clusters", "centroids.safetensors"),
    "quality": ("scene_clusters", "quality.json"),
    "ranking": ("pruned_subset", "ranking.parquet"),
    "decisions": ("pruned_subset", LEDGER),
    "subset": ("pruned_subset", TILES),
    "scenes": ("pruned_subset", "scenes.csv"),
    "summary": ("pruned_subset", "summary.json"),
}
"""Asset and file name of the pruning's files, by the name that code and queries know them by."""

LOSS, TRAINING, SCENE_NAMES, SAMPLES_OVER_TRAINING = "loss.csv", "training.json", "scenes.json", "samples"
"""In a checkpoint, which may be any folder."""
METRICS, PROTOCOLS, SAMPLES = "metrics.json", "protocols.json", "samples.parquet"
SCENE_SCORES, RECOGNISED, COPIES, HELD_OUT = "scenes.csv", "recognised.csv", "copies.csv", "held_out"
"""In an evaluation, which may lie in DVC's cache."""
RESTORATION, EXAMPLES = "restoration.csv", "examples"
"""In super_resolution_checkpoint; the second also in semantic_synthesis_checkpoint."""
SEGMENTATION = "segmentation.csv"
"""In semantic_synthesis_checkpoint."""
STUDY_SUMMARY = "summary.json"
"""In pruning_study and in the studies of downstream tasks."""
REPORT_HTML, REPORT_JSON = "report.html", "report.json"
"""In pruning_report."""


@dataclass(frozen=True)
class Layout:
    """The folders of one pipeline."""

    assets: Path
    """Holds a folder for each asset."""
    state: Path
    """Holds what comes with them: run log, cache."""
    drafts: Mapping[str, Path] = field(default_factory=dict)
    """Folders of assets that are being written, by asset."""

    @classmethod
    def of_project(cls, root: Path) -> "Layout":
        return cls(root / ASSETS, root / STATE)

    @classmethod
    def of_out(cls, out: Path) -> "Layout":
        """What `rsprune prune --out` keeps beside its results."""
        return cls(out / WORK / ASSETS, out / WORK)

    def with_draft(self, asset: str, folder: Path) -> "Layout":
        """The layout while an asset is written into `folder`."""
        return replace(self, drafts={**self.drafts, asset: folder})

    @property
    def run_log(self) -> Path:
        return self.state / "lineage"

    @property
    def cache(self) -> Path:
        return self.state / "cache"

    @property
    def dagster_home(self) -> Path:
        return self.state / "dagster"

    def has(self, asset: str) -> bool:
        return self._path(asset).is_dir()

    def folder(self, asset: str) -> Path:
        """An asset's draft, else its last version.

        Raises:
            RunError: it has none yet.
        """
        if not self.has(asset):
            raise RunError(
                f"{asset} has not been materialized below {self.assets}: materialize it first, or run the whole job"
            )
        return self._path(asset)

    def file(self, name: str) -> Path:
        """A file of FILES. RunError: its asset has no version yet."""
        asset, file = FILES[name]
        return self.folder(asset) / file

    def tables(self, *names: str) -> dict[str, Path]:
        """Several of them, as a query takes its tables."""
        return {name: self.file(name) for name in names}

    def present(self) -> tuple[str, ...]:
        """The assets before the report that have a version, in the order of the flow."""
        return tuple(asset for asset in (*PRUNING, *LATER) if self.has(asset))

    def _path(self, asset: str) -> Path:
        return self.drafts.get(asset, self.assets / asset)
