"""semantic_synthesis_checkpoint: fine-tune the foundation to draw images of masks, and measure. Without Dagster."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from rsprune_dagster.config.layout import EXAMPLES, METRICS, SEGMENTATION, TRAINING, Layout
from rsprune_dagster.config.params import SemanticSynthesisParams, TrainingParams
from rsprune_dagster.diffusion.checkpoint import load_checkpoint, model_digest
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.downstream.fine_tuning import fine_tuned
from rsprune_dagster.downstream.masks import Palette
from rsprune_dagster.downstream.pairs import PairSet, read_pairs
from rsprune_dagster.downstream.restoration import sheet_cells
from rsprune_dagster.downstream.synthesis import CONDITION_DROPOUT, Synthesis, Task, card, write_synthesis
from rsprune_dagster.downstream.synthesis_measures import LEAST_PAIRS, Protocol, Results, SegmentationScore, measured
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.leakage import N_EXAMPLES
from rsprune_dagster.stages.diffusion_checkpoint import sampling_options
from rsprune_dagster.utils.csv_files import write_sheet
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.progress import Progress, silent

HELD_BACK_EVERY: Final = 5
"""Of the training pairs, one in so many is not learned from: they are test images of the same places."""
NOT_MEASURED: Final = "There are no test pairs: name some in semantic_synthesis.test_sources."


@dataclass(frozen=True)
class SynthesisReport:
    """Figures for the web UI; `metrics` is the content of metrics.json."""

    classes: tuple[str, ...]
    n_images: int
    n_pairs: int
    """Pairs that were learned from."""
    n_test_images: int
    n_segmenters: int
    """Segmenters of each kind: trained on real images, and on real and drawn ones."""
    n_weights: int
    first_loss: float
    final_loss: float
    n_threads: int
    not_measured: str
    metrics: dict[str, float]

    def figures(self) -> dict[str, float | int | str]:
        """All of it, flat; without what was not measured, which stands among the pictures."""
        left_out = ("metrics", "classes", "not_measured")
        own = {name: value for name, value in asdict(self).items() if name not in left_out}
        return {**own, "classes": ", ".join(self.classes), **self.metrics}


@dataclass(frozen=True)
class PairSources:
    """Folders of pairs. No test sources: nothing is measured."""

    training: Sequence[str]
    test: Sequence[str]


@dataclass(frozen=True)
class TaskPairs:
    """The pairs of a fine-tuning."""

    training: PairSet
    held_back: PairSet
    """Pairs of the same places, which are measured on."""
    test: PairSet | None
    """Pairs of other places; None: nothing is measured."""

    def fingerprint(self) -> str:
        """A hash of all of them."""
        sets = [one.fingerprint() for one in (self.training, self.held_back, self.test) if one]
        return hashlib.sha256(" ".join(sets).encode()).hexdigest()


def train_synthesis(
    layout: Layout,
    params: SemanticSynthesisParams,
    training: TrainingParams,
    sources: PairSources,
    networks: Sequence[FeatureNetwork],
    *,
    seed: int,
    device: str,
    progress: Progress = silent,
) -> SynthesisReport:
    """Read the pairs (`read_task_pairs`), fine-tune and measure (`fine_tune`).

    Raises:
        UsageError, RunError: as these two, or the foundation cannot be loaded.
    """
    foundation, _ = load_checkpoint(layout.folder("diffusion_checkpoint"))
    pairs = read_task_pairs(params, sources, image_size_px=foundation.space.image_size_px)
    return fine_tune(layout, foundation, params, training, pairs, networks, seed=seed, device=device, progress=progress)


def read_task_pairs(params: SemanticSynthesisParams, sources: PairSources, *, image_size_px: int) -> TaskPairs:
    """Read the pairs and hold some back.

    Args:
        image_size_px: the edge of the foundation's images.

    Raises:
        UsageError: no pairs, bad pairs (`pairs.read_pairs`), pairs smaller than a crop, or too few with labels.
        RunError: a test image is also a training image.
    """
    palette = Palette.of(params.classes)
    make = partial(PairSet, n_classes=len(palette), image_size_px=image_size_px, crop_px=params.crop_px)
    pairs = make(read_pairs(sources.training, palette))
    test = make(read_pairs(sources.test, palette)) if sources.test else None
    tiles = make(tuple(pair for number, pair in enumerate(pairs.pairs) if (number + 1) % HELD_BACK_EVERY))
    held_back = make(pairs.pairs[HELD_BACK_EVERY - 1 :: HELD_BACK_EVERY])
    _check(pairs, test)
    return TaskPairs(tiles, held_back, test)


def fine_tune(
    layout: Layout,
    foundation: Model,
    params: SemanticSynthesisParams,
    training: TrainingParams,
    pairs: TaskPairs,
    networks: Sequence[FeatureNetwork],
    *,
    seed: int,
    device: str,
    progress: Progress = silent,
) -> SynthesisReport:
    """Fine-tune on crops of the training pairs, measure on crops of the test pairs, and write the checkpoint.

    The training states lie in the cache: an interrupted training resumes.

    Args:
        foundation: the model of diffusion_checkpoint.
        training: batches, precision and sampler.
        networks: for the Fréchet distances.

    Raises:
        UsageError, RunError: as `training.train`.
    """
    folder, tiles = layout.folder("semantic_synthesis_checkpoint"), pairs.training
    palette, on = Palette.of(params.classes), str(resolve_device(device))
    trained, options = fine_tuned(
        tiles,
        foundation,
        params,
        training,
        parent=model_digest(layout.folder("diffusion_checkpoint")),
        n_channels=len(palette),
        states=layout.cache / "semantic_synthesis",
        seed=seed,
        device=on,
        progress=progress,
        condition=f"mask of {', '.join(palette.names)}",
        condition_dropout=CONDITION_DROPOUT,
    )
    model = Synthesis(trained.model.to(on), Task(params.classes, params.crop_px))
    protocol = Protocol(
        params.n_test_images,
        params.n_drawn_images,
        params.n_segmenter_images,
        params.n_segmenters,
        replace(sampling_options(training, seed), guidance=params.guidance),
        networks,
        on,
        progress,
    )
    results = measured(model, tiles, pairs.held_back, pairs.test, protocol) if pairs.test else None
    report = SynthesisReport(
        classes=palette.names,
        n_images=trained.n_images,
        n_pairs=len(tiles.pairs),
        n_test_images=results.n_test_images if results else 0,
        n_segmenters=params.n_segmenters if results else 0,
        n_weights=trained.model.n_weights,
        first_loss=trained.losses[0],
        final_loss=trained.final_loss,
        n_threads=trained.n_threads,
        not_measured=results.not_measured if results else NOT_MEASURED,
        metrics=results.metrics if results else {},
    )
    trained = trained.moved("cpu")
    write_synthesis(folder, trained, model.task, card(trained, model.task, options))
    _write(folder, report, results, palette)
    return report


def _check(pairs: PairSet, test: PairSet | None) -> None:
    """Before the training.

    Raises:
        UsageError: too few pairs have labelled pixels.
        RunError: a test image is also a training image.
    """
    sets = (("sources", pairs, 1), ("test_sources", test, LEAST_PAIRS))
    for name, one, least in sets:
        if one and one.n_labelled < least:
            raise UsageError(
                f"{one.n_labelled} of {len(one.pairs):,} pairs of semantic_synthesis.{name} have crops that are half "
                f"labelled, expected {least} or more: give more, or correct semantic_synthesis.classes"
            )
    known = {pair.digest for pair in pairs.pairs}
    shared = sorted(pair.name for pair in (test.pairs if test else ()) if pair.digest in known)
    if shared:
        raise RunError(
            f"{len(shared):,} test images are also training images, such as {', '.join(shared[:N_EXAMPLES])}: take "
            "them out of semantic_synthesis.test_sources; best, test on other places than those trained on"
        )


def _write(folder: Path, report: SynthesisReport, results: Results | None, palette: Palette) -> None:
    own = asdict(report)
    (folder / METRICS).write_text(json.dumps(own.pop("metrics"), indent=1) + "\n")
    (folder / TRAINING).write_text(json.dumps(own, indent=1) + "\n")
    write_sheet(folder / SEGMENTATION, SHEET, _rows(results.scores if results else []))
    examples = folder / EXAMPLES
    examples.mkdir()
    if results is None:
        return
    columns = [[palette.picture(mask) for mask in results.shown.masks], *results.draws, results.shown.images]
    for number, parts in enumerate(zip(*columns, strict=True)):
        Image.fromarray(np.concatenate(parts, axis=1)).save(examples / f"{number:02d}.png")


SHEET = ("learned_from", "measured_on", "measure", "value", "low", "high", "gain", "gain_low", "gain_high")


def _rows(found: Iterable[SegmentationScore]) -> Iterable[Sequence[object]]:
    for score in found:
        yield score.learned_from, score.measured_on, score.measure, *sheet_cells(score.mean, score.gain)
