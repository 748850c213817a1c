"""The study stage on folders, for the asset pruning_study, one arm and seed at a time."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rsprune_dagster.config.layout import MANIFEST_FILE, STUDY_SUMMARY, Layout
from rsprune_dagster.config.params import EvaluationParams, Params
from rsprune_dagster.diffusion.latents import space_of
from rsprune_dagster.diffusion.tile_set import tile_set
from rsprune_dagster.diffusion.training import training_options
from rsprune_dagster.evaluation.evaluate import Settings
from rsprune_dagster.evaluation.intervals import LEVEL, Resampling
from rsprune_dagster.evaluation.leakage import raise_on_leaks
from rsprune_dagster.evaluation.networks import named_networks
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.study.arms import FULL, Arm, PrunedCorpus, parse_arm, read_pruned
from rsprune_dagster.study.results import ArmResult, read_results
from rsprune_dagster.study.summary import Summary, summarize
from rsprune_dagster.study.trainings import (
    EvaluationSetup,
    Study,
    arm_tiles,
    held_out_leaks,
    image_set_of_tiles,
    run_arm,
    study_folder,
)
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.csv_files import write_sheet
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import Progress, silent

N_RESAMPLES = 2
"""The minimum, since the study's intervals are over seeds, not over halves of one run's samples."""
CURVES, LEAK_FREE = "curves.csv", "held_out_is_apart.json"


@dataclass(frozen=True)
class StudyReport:
    """The result of one arm and seed, and the summary of all so far."""

    result: ArmResult
    summary: Summary
    n_runs: int

    def figures(self) -> dict[str, Any]:
        """Figures for the web UI: of this run and of its arm so far."""
        own = next(arm for arm in self.summary.arms if arm.arm == self.result.arm)
        figures: dict[str, Any] = {
            "arm": self.result.arm,
            "seed": self.result.seed,
            "n_tiles": self.result.n_tiles,
            "n_images": self.result.n_images,
            "n_epochs": self.result.n_images / self.result.n_tiles,
            "n_runs": self.n_runs,
            "n_seeds": len(own.seeds),
        }
        return {**figures, **self.result.points[-1].scores}


def study_arm(
    layout: Layout,
    sources: Sequence[str],
    params: Params,
    scanner: Scanner,
    *,
    arm: str,
    seed: int,
    device: str,
    progress: Progress = silent,
) -> StudyReport:
    """Run one arm and seed, and write all results of the study so far.

    States and results lie in the cache: an interrupted run resumes, a finished one is not repeated.

    Args:
        sources: labelled images unused by pruning and training.

    Raises:
        UsageError: no sources, an unknown arm or network, checkpoints that are no multiples of a batch.
        RunError: held-out tiles are in the corpus; the deciding score was not measured.
    """
    if not sources:
        raise UsageError("the study needs labelled images that nothing was trained on: name some in evaluation.sources")
    corpus, chosen = read_pruned(layout, params.selection), parse_arm(arm)
    folder, work = layout.folder("pruning_study"), layout.cache / "study"
    space = space_of(params.training)
    study = study_of(params)
    setup = _evaluation_setup(sources, folder / "held_out", study, params.evaluation, scanner, device, progress)
    own = study_folder(work, study, setup, corpus)
    _check_apart(own, study, corpus, setup, scanner.workers, progress)
    result = run_arm(
        study,
        chosen,
        corpus,
        setup,
        work,
        seed=seed,
        workers=scanner.workers,
        device=device,
        space=space,
        progress=progress,
    )
    results = read_results(own)
    summary = summarize(results, score=params.study.score, level=LEVEL)
    _write(folder, own, results, summary)
    return StudyReport(result, summary, len(results))


def study_of(params: Params) -> Study:
    """The study of params.yaml: options of `training` and `evaluation`, unconditional."""
    training = training_options(params.training, 0, space_of(params.training))
    return Study(
        training=training,
        image_size_px=params.training.image_size_px,
        checkpoints=params.study.checkpoints,
        n_samples=params.evaluation.n_samples,
        sampler=params.evaluation.sampler,
        sample_steps=params.evaluation.sample_steps,
        sample_batch_size=params.evaluation.batch_size,
    )


def _evaluation_setup(
    sources: Sequence[str],
    folder: Path,
    study: Study,
    params: EvaluationParams,
    scanner: Scanner,
    device: str,
    progress: Progress,
) -> EvaluationSetup:
    networks, _ = named_networks(params.networks, image_size_px=params.network_size_px, device=device)
    folder.mkdir()
    scan(sources, folder, scanner, labelled=True, label="held-out tiles")
    table = pq.read_table(folder / MANIFEST_FILE)
    tiles = tile_set(table, scanner.options, image_size_px=study.image_size_px, scene_column="label")
    settings = Settings(Resampling(n_resamples=N_RESAMPLES), on_leak=params.on_leak)
    return EvaluationSetup(networks, image_set_of_tiles(tiles, networks, progress), settings)


def _check_apart(
    own: Path, study: Study, corpus: PrunedCorpus, setup: EvaluationSetup, workers: int, progress: Progress
) -> None:
    """Check once per study that no held-out tile is in the corpus, which contains every arm. RunError: one is."""
    marker = own / LEAK_FREE
    if marker.exists():
        return
    everything = image_set_of_tiles(arm_tiles(study, Arm(FULL, 1), corpus, seed=0, workers=workers), [], progress)
    held_out, settings = setup.held_out, setup.settings
    correlation = settings.near_duplicate_correlation
    found = held_out_leaks(held_out, everything, correlation=correlation, workers=workers)
    if settings.on_leak == "refuse":
        raise_on_leaks(found, held_out.identities, everything.identities, what="held-out")
    with atomic_write(marker) as draft:
        draft.write_text(json.dumps({"n_held_out": len(held_out), "n_tiles": len(everything), "n_leaked": len(found)}))


def _write(folder: Path, own: Path, results: Sequence[ArmResult], summary: Summary) -> None:
    """Write every run and the summary of the deciding score."""
    write_runs(folder, own, results)
    shutil.copyfile(own / LEAK_FREE, folder / LEAK_FREE)
    (folder / STUDY_SUMMARY).write_text(json.dumps(summary.as_json(), indent=1, allow_nan=False) + "\n")


def write_runs(folder: Path, own: Path, results: Sequence[ArmResult]) -> None:
    """Copy every result and picture from `own`, and write all scores in one table."""
    for result in results:
        (folder / result.arm).mkdir(exist_ok=True)
        for suffix in ("json", "png"):
            shutil.copyfile(
                own / result.arm / f"{result.seed}.{suffix}", folder / result.arm / f"{result.seed}.{suffix}"
            )
    points = (
        (result.arm, result.seed, result.n_tiles, point.n_images, score, f"{value:.6g}")
        for result in results
        for point in result.points
        for score, value in point.scores.items()
    )
    write_sheet(folder / CURVES, ("arm", "seed", "n_tiles", "n_images", "score", "value"), points)
