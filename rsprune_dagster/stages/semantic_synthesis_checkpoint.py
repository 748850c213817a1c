"""semantic_synthesis_checkpoint: fine-tune the foundation model to draw images of masks, and measure. Without Dagster.

What is measured: segmenters that learned from real pairs are asked for the masks of drawn images, and segmenters that
learned from real and drawn images are compared with those that learned from real images alone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsprune_dagster.config.layout import EXAMPLES, METRICS, SEGMENTATION, TRAINING, Layout
from rsprune_dagster.config.params import SemanticSynthesisParams, TrainingParams
from rsprune_dagster.diffusion.checkpoint import SamplingOptions, load_checkpoint, model_digest
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.downstream.fine_tuning import fine_tuned
from rsprune_dagster.downstream.pairs import Crops, PairSet, Palette, read_pairs
from rsprune_dagster.downstream.restoration import Mean, distances, perceptual_distance, sheet_cells
from rsprune_dagster.downstream.segmentation import Segmenter, confusions, gains, intervals, train_segmenter
from rsprune_dagster.downstream.synthesis import CONDITION_DROPOUT, Synthesis, Task, card, write_synthesis
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.leakage import N_EXAMPLES
from rsprune_dagster.stages.diffusion_checkpoint import sampling_options
from rsprune_dagster.utils.csv_files import write_sheet
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.progress import Progress, silent

HELD_BACK_EVERY: Final = 5
"""Of the training pairs, one in so many is not learned from: they are test images of the same places."""
MOST_REAL_CROPS: Final = 4096
"""Crops of training pairs that a segmenter learns from."""
N_SHOWN: Final = 8
N_DRAWS_SHOWN: Final = 3
NOT_MEASURED: Final = "There are no test pairs: name some in semantic_synthesis.test_sources."
REAL, BOTH = "real", "real and drawn"
"""What segmenters learned from."""
OTHER, SAME, DRAWN_OTHER, DRAWN_SAME = "other places", "same places", "drawn, other places", "drawn, same places"
"""What segmenters are measured on: test pairs, training pairs that were held back, and images drawn for their masks."""
KEYS: Final = {
    (REAL, OTHER): "real",
    (REAL, SAME): "real_same_places",
    (REAL, DRAWN_OTHER): "drawn",
    (REAL, DRAWN_SAME): "drawn_same_places",
    (BOTH, OTHER): "helped",
    (BOTH, SAME): "helped_same_places",
}
"""How a score is named in metrics.json."""
ENDS: Final = {OTHER: "", SAME: "_same_places"}
"""The ends of the names of other figures there, such as the gain."""
LEAST_MIOU: Final = 1e-6
"""A segmenter that finds nothing has no ratio."""
LEAST_PAIRS: Final = 2
"""Of one pair there is no interval."""


@dataclass(frozen=True)
class SynthesisReport:
    """Figures for the web UI; `metrics` is the content of metrics.json."""

    classes: tuple[str, ...]
    n_images: int
    n_pairs: int
    """Pairs that were learned from."""
    n_test_images: int
    n_weights: int
    first_loss: float
    final_loss: float
    n_threads: int
    not_measured: str
    metrics: dict[str, float]

    def figures(self) -> dict[str, float | int | str]:
        """All of it, flat."""
        own = {name: value for name, value in asdict(self).items() if name not in ("metrics", "classes")}
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


@dataclass(frozen=True)
class SegmentationScore:
    """A measure of segmenters on a set of images."""

    learned_from: str
    measured_on: str
    measure: str
    mean: Mean
    gain: Mean | None = None
    """Over the segmenters that learned from real images alone; None: these are they."""


@dataclass(frozen=True)
class Results:
    """What was drawn for masks of test pairs, and how good it is."""

    shown: Crops
    """The test crops with the most classes."""
    draws: Sequence[NDArray[np.uint8]]
    """Images for the masks of `shown`, several times (n, s, s, 3)."""
    scores: Sequence[SegmentationScore]
    metrics: dict[str, float]
    n_test_images: int
    not_measured: str


@dataclass(frozen=True)
class Protocol:
    """How a model is measured."""

    n_test_images: int
    n_drawn_images: int
    n_segmenter_images: int
    n_segmenters: int
    sampling: SamplingOptions
    networks: Sequence[FeatureNetwork]
    device: str
    progress: Progress = silent


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


def measured(model: Synthesis, learned: PairSet, held_back: PairSet, test: PairSet, protocol: Protocol) -> Results:
    """Draw images for masks, train segmenters of both kinds, and measure.

    Args:
        learned: the pairs of the fine-tuning.
        held_back: other pairs of the same places; measured on if enough of them have labels.
    """
    options, progress = protocol.sampling, protocol.progress
    crop_seed, mask_seed, draw_seed, test_seed = _seeds(options.seed)

    def drawn_for(crops: Crops, seed: int) -> Crops:
        return replace(crops, images=model.images(crops.shares, replace(options, seed=seed), progress))

    real = learned.random_crops(min(protocol.n_segmenter_images, MOST_REAL_CROPS), crop_seed)
    masks = learned.random_crops(protocol.n_drawn_images, mask_seed)
    drawn = drawn_for(masks, draw_seed)
    sets = {OTHER: test.spread_crops(protocol.n_test_images)}
    if held_back.n_labelled >= LEAST_PAIRS:
        sets[SAME] = held_back.spread_crops(protocol.n_test_images)
    drawn_sets = {f"drawn, {name}": drawn_for(crops, test_seed) for name, crops in sets.items()}
    both = np.concatenate([real.images, drawn.images]), np.concatenate([real.masks, drawn.masks])
    alone = _segmenters(real.images, real.masks, learned.n_classes, protocol, "real images")
    helped = _segmenters(*both, learned.n_classes, protocol, "real and drawn images")
    found = [*scores(alone, helped, sets, seed=options.seed), *scores(alone, (), drawn_sets, seed=options.seed)]
    metrics = {f"{score.measure}_{KEYS[score.learned_from, score.measured_on]}": score.mean.value for score in found}
    missing = []
    for name, crops in sets.items():
        end = ENDS[name]
        of_set, reasons = distances({"drawn": drawn_sets[f"drawn, {name}"].images}, crops.images, protocol.networks)
        missing.append(reasons)
        metrics |= {f"{score.measure}_drawn{end}": score.mean.value for score in of_set}
        metrics[f"miou_gain{end}"] = metrics[f"miou_helped{end}"] - metrics[f"miou_real{end}"]
        metrics[f"miou_ratio{end}"] = metrics[f"miou_drawn{end}"] / max(metrics[f"miou_real{end}"], LEAST_MIOU)
    control = SAME if SAME in sets else OTHER
    metrics |= _nearness("learned", drawn, masks) | _nearness("control", drawn_sets[f"drawn, {control}"], sets[control])
    shown = sets[OTHER].varied(N_SHOWN)
    draws = [drawn_for(shown, test_seed + number).images for number in range(N_DRAWS_SHOWN)]
    not_measured = " ".join(dict.fromkeys(filter(None, missing)))
    return Results(shown, draws, found, metrics, len(sets[OTHER]), not_measured)


def _segmenters(
    images: NDArray[np.uint8], masks: NDArray[np.uint8], n_classes: int, protocol: Protocol, learned_from: str
) -> tuple[Segmenter, ...]:
    """Segmenters that differ in their initial weights and in the order of the images."""
    first = protocol.sampling.seed
    seeds = (first, *np.random.SeedSequence(first, spawn_key=(1,)).generate_state(protocol.n_segmenters - 1))
    return tuple(
        train_segmenter(
            images,
            masks,
            n_classes,
            n_images=protocol.n_segmenter_images,
            seed=int(seed),
            device=protocol.device,
            progress=protocol.progress,
            label=f"segmenter {number} of {len(seeds)}, {learned_from}",
        )
        for number, seed in enumerate(seeds, 1)
    )


def _seeds(seed: int) -> tuple[int, int, int, int]:
    """Seeds of real crops, of masks to draw for, and of the noise of both kinds of drawn images; none is another's."""
    one, two, three, four = (int(number) for number in np.random.SeedSequence(seed).generate_state(4))
    return one, two, three, four


def _nearness(name: str, drawn: Crops, real: Crops) -> dict[str, float]:
    """The ST-LPIPS from drawn to real images of the same masks, and its interval over pairs (or crops of one)."""
    found = perceptual_distance(drawn.images, real.images)
    of_pairs = np.array([found[real.pairs == pair].mean() for pair in np.unique(real.pairs)])
    mean = Mean.of(of_pairs if len(of_pairs) > 1 else found)
    return {f"st_lpips_{name}": mean.value, f"st_lpips_{name}_low": mean.low, f"st_lpips_{name}_high": mean.high}


def scores(
    alone: Sequence[Segmenter], helped: Sequence[Segmenter], sets: Mapping[str, Crops], *, seed: int
) -> Iterator[SegmentationScore]:
    """The measures of segmenters of both kinds on sets of crops, and what the second kind gains over the first.

    Intervals are over segmenters and pairs, since crops of one pair are alike.

    Args:
        helped: as many as `alone`, or none.
    """
    for name, crops in sets.items():
        before = confusions_of_pairs(alone, crops)
        for measure, mean in intervals(before, seed=seed).items():
            yield SegmentationScore(REAL, name, measure, mean)
        if not helped:
            continue
        after = confusions_of_pairs(helped, crops)
        gained = gains(after, before, seed=seed)
        for measure, mean in intervals(after, seed=seed).items():
            yield SegmentationScore(BOTH, name, measure, mean, gained[measure])


def confusions_of_pairs(segmenters: Sequence[Segmenter], crops: Crops) -> NDArray[np.int64]:
    """The numbers of pixels (m, n, k, k) of each segmenter and pair, by true class, then by predicted class."""
    found = np.stack([confusions(one.predicted(crops.images), crops.masks, one.n_classes) for one in segmenters])
    return np.stack([found[:, crops.pairs == pair].sum(axis=1) for pair in np.unique(crops.pairs)], axis=1)


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
