"""A small pruned corpus and a study that takes seconds, for the tests of the study."""

from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any, Self

import numpy as np
from diffusion_runs import small_options
from prune_runs import Outcome

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.assets import build_assets
from rsprune_dagster.dagster.materialize import materialize
from rsprune_dagster.evaluation.evaluate import Settings
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.image_set import image_set_of, small
from rsprune_dagster.evaluation.intervals import Resampling
from rsprune_dagster.study.arms import parse_arm
from rsprune_dagster.study.results import ArmResult, Point
from rsprune_dagster.study.trainings import EvaluationSetup, Study
from rsprune_dagster.tracking.run_recorder import folder_recorder

NETWORK = FeatureNetwork("averages", "ab" * 32, "none", 16, 12, lambda images: small(images, 2))
KERNEL = "kernel_averages"
SETTINGS = Settings(
    resampling=Resampling(level=0.95, n_resamples=2, seed=0),
    n_neighbours=3,
    min_per_scene=4,
    held_out_quantile=0.05,
    copy_neighbours=3,
    near_duplicate_correlation=0.94,
    on_leak="refuse",
)


def small_study(**changes: Any) -> Study:
    values = {
        "training": small_options(save_every_images=8),
        "image_size_px": 16,
        "checkpoints": (16, 32),
        "n_samples": 24,
        "sampler": "dpm_solver",
        "sample_steps": 2,
        "sample_batch_size": 12,
    }
    return replace(Study(**values), **changes)


def setup(*, seed: int = 0) -> EvaluationSetup:
    """Held-out noise: what the scores are is nobody's concern here."""
    images = np.random.default_rng(seed).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    return EvaluationSetup([NETWORK], image_set_of([images], [NETWORK], pixel_edge_px=16), SETTINGS)


def result(arm: str, seed: int, values: dict[int, float], *, score: str = KERNEL, study: str = "one") -> ArmResult:
    """A result with the given curve."""
    points = tuple(Point(n_images, 0.1, {score: value}) for n_images, value in values.items())
    chosen = parse_arm(arm)
    n_tiles = 100 if chosen.keep_fraction else 0
    return ArmResult(arm, chosen.strategy, chosen.keep_fraction, seed, n_tiles, "tiles", study, points)


@dataclass(frozen=True)
class StudyWorld:
    """A pruned corpus and the folders of its assets."""

    made: Path
    """Where the synthetic corpus lies."""
    work: Path

    @classmethod
    def of(cls, synthetic: Path, pruned: Outcome, work: Path) -> Self:
        """With a copy of the pruned corpus."""
        copytree(pruned.work, work / "pruned")
        return cls(synthetic, work)

    @property
    def layout(self) -> Layout:
        return Outcome(self.work / "pruned").layout

    def materialize(self, study: str, arm: str, seed: int, params: Params) -> Path:
        """Materialize a partition of a study; its folder."""
        materialize(
            build_assets(params),
            params,
            self.layout,
            recorder=folder_recorder(self.layout, params.tracking),
            assets=[study],
            partition={"arm": arm, "seed": str(seed)},
        )
        return self.layout.assets / study
