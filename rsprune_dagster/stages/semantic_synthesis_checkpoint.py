"""semantic_synthesis_checkpoint: fine-tune the foundation model to draw images of masks, and measure. Without Dagster.

What is measured: a segmenter that learned from real pairs is asked for the masks of drawn images, and a segmenter that
learned from real and drawn images is compared with one that learned from real images alone.
"""

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
from rsprune_dagster.diffusion.training import train
from rsprune_dagster.downstream.fine_tuning import fine_tuning_options, start_of
from rsprune_dagster.downstream.pairs import Crops, Pair, PairSet, Palette, read_pairs
from rsprune_dagster.downstream.restoration import Mean, distances, perceptual_distance
from rsprune_dagster.downstream.segmentation import Segmenter, confusions, gains, intervals, train_segmenter
from rsprune_dagster.downstream.synthesis import CONDITION_DROPOUT, Synthesis, Task, card, write_synthesis
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.leakage import N_EXAMPLES
from rsprune_dagster.stages.diffusion_checkpoint import sampling_options, training_key
from rsprune_dagster.utils.csv_files import write_sheet
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.utils.progress import Progress, silent

HELD_BACK_EVERY: Final = 5
"""Of the training pairs, one in so many is not learned from: they are test images of the same places."""
MOST_REAL_CROPS: Final = 4096
"""Crops of training pairs that a segmenter learns from."""
N_SHOWN: Final = 8
N_DRAWS_SHOWN: Final = 3
NOT_MEASURED: Final = "There are no test pairs: name some in semantic_synthesis.test_sources."
REAL, BOTH = "real", "real and drawn"
"""What a segmenter learned from."""
OTHER_PLACES, SAME_PLACES, DRAWN = "real, other places", "real, same places", "drawn, other places"
"""What a segmenter is measured on."""
KEYS: Final = {
    (REAL, OTHER_PLACES): "real",
    (REAL, SAME_PLACES): "real_same_places",
    (REAL, DRAWN): "drawn",
    (BOTH, OTHER_PLACES): "helped",
    (BOTH, SAME_PLACES): "helped_same_places",
}
"""How a score is named in metrics.json."""


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
class SegmentationScore:
    """A measure of a segmenter on a set of images."""

    learned_from: str
    measured_on: str
    measure: str
    mean: Mean
    gain: Mean | None = None
    """Over the segmenter that learned from real images alone; None: this is that one."""


@dataclass(frozen=True)
class Results:
    """What was drawn for masks of test pairs, and how good it is."""

    shown: Crops
    """Some of the test crops."""
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
    """Fine-tune on crops of the training pairs, measure on crops of the test pairs, and write the checkpoint.

    The training states lie in the cache: an interrupted training resumes.

    Args:
        training: batches, precision and sampler.
        networks: for the Fréchet distances.

    Raises:
        UsageError: no pairs, bad pairs (`pairs.read_pairs`), or pairs smaller than a crop.
        RunError: the foundation cannot be loaded, or a test image is also a training image; as `training.train`.
    """
    folder, parent = layout.folder("semantic_synthesis_checkpoint"), layout.folder("diffusion_checkpoint")
    foundation, _ = load_checkpoint(parent)
    palette, on = Palette.of(params.classes), str(resolve_device(device))
    all_pairs = read_pairs(sources.training, palette)
    test_pairs = read_pairs(sources.test, palette) if sources.test else ()
    _check_apart(all_pairs, test_pairs)
    held_back = all_pairs[HELD_BACK_EVERY - 1 :: HELD_BACK_EVERY]
    learned = tuple(pair for number, pair in enumerate(all_pairs) if (number + 1) % HELD_BACK_EVERY)
    make = partial(
        PairSet, n_classes=len(palette), image_size_px=foundation.space.image_size_px, crop_px=params.crop_px
    )
    tiles = make(learned)
    options = fine_tuning_options(
        params,
        training,
        foundation,
        model_digest(parent),
        seed,
        condition=f"mask of {', '.join(palette.names)}",
        condition_dropout=CONDITION_DROPOUT,
    )
    trained = train(
        tiles,
        options,
        layout.cache / "semantic_synthesis" / training_key(options, tiles),
        device=on,
        space=foundation.space,
        start=lambda: start_of(foundation, len(palette), seed, from_random=params.start == "random"),
        progress=progress,
    )
    model = Synthesis(trained.model.to(on), Task(params.classes, params.crop_px))
    protocol = Protocol(
        params.n_test_images,
        params.n_drawn_images,
        params.n_segmenter_images,
        replace(sampling_options(training, seed), guidance=params.guidance),
        networks,
        on,
        progress,
    )
    results = measured(model, tiles, make(held_back), make(test_pairs), protocol) if test_pairs else None
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
    """Draw images for masks, train the two segmenters, and measure.

    Args:
        learned: the pairs of the fine-tuning.
        held_back: other pairs of the same places; may be empty.
    """
    options, progress = protocol.sampling, protocol.progress
    seed, n_classes = options.seed, learned.n_classes
    real = learned.random_crops(min(protocol.n_segmenter_images, MOST_REAL_CROPS), seed)
    known = learned.random_crops(protocol.n_drawn_images, seed + 1)
    other = test.spread_crops(protocol.n_test_images)
    drawn_known = replace(known, images=model.images(known.shares, options, progress))
    drawn = replace(other, images=model.images(other.shares, replace(options, seed=seed + 1), progress))
    learn = partial(
        train_segmenter,
        n_classes=n_classes,
        n_images=protocol.n_segmenter_images,
        seed=seed,
        device=protocol.device,
        progress=progress,
    )
    both = real.and_also(drawn_known)
    alone = learn(real.images, real.masks, label="segmenter, real images")
    helped = learn(both.images, both.masks, label="segmenter, real and drawn images")
    sets = {OTHER_PLACES: other}
    if len(held_back):
        sets[SAME_PLACES] = held_back.spread_crops(protocol.n_test_images)
    found = [*scores(alone, helped, sets, seed=seed), *scores(alone, None, {DRAWN: drawn}, seed=seed)]
    of_sets, not_measured = distances({"drawn": drawn.images}, other.images, protocol.networks)
    metrics = {f"{score.measure}_{KEYS[score.learned_from, score.measured_on]}": score.mean.value for score in found}
    metrics |= {f"{score.measure}_drawn": score.mean.value for score in of_sets}
    metrics["miou_ratio"] = metrics["miou_drawn"] / metrics["miou_real"]
    for name, one, truth in (("learned", drawn_known, known), ("test", drawn, other)):
        nearness = Mean.of(perceptual_distance(one.images, truth.images))
        metrics |= {f"st_lpips_{name}": nearness.value, f"st_lpips_{name}_low": nearness.low}
        metrics[f"st_lpips_{name}_high"] = nearness.high
    shown = other.spread(N_SHOWN)
    draws = [model.images(shown.shares, replace(options, seed=seed + number)) for number in range(N_DRAWS_SHOWN)]
    return Results(shown, draws, found, metrics, len(other.images), not_measured)


def scores(
    alone: Segmenter, helped: Segmenter | None, sets: Mapping[str, Crops], *, seed: int
) -> Iterator[SegmentationScore]:
    """The measures of both segmenters on sets of crops, and what the second gains over the first."""
    for name, crops in sets.items():
        before = confusions(alone.predicted(crops.images), crops.masks, alone.n_classes)
        for measure, mean in intervals(before, seed=seed).items():
            yield SegmentationScore(REAL, name, measure, mean)
        if helped is None:
            continue
        after = confusions(helped.predicted(crops.images), crops.masks, helped.n_classes)
        gained = gains(after, before, seed=seed)
        for measure, mean in intervals(after, seed=seed).items():
            yield SegmentationScore(BOTH, name, measure, mean, gained[measure])


def _check_apart(learned: Sequence[Pair], test: Sequence[Pair]) -> None:
    """Raise RunError if a test image is also a training image."""
    known = {pair.image.tobytes() for pair in learned}
    if shared := sorted(pair.name for pair in test if pair.image.tobytes() in known):
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
        numbers = [score.mean.value, score.mean.low, score.mean.high]
        numbers += [score.gain.value, score.gain.low, score.gain.high] if score.gain else []
        texts = [f"{number:.6g}" for number in numbers]
        yield score.learned_from, score.measured_on, score.measure, *texts, *[""] * (len(SHEET) - 3 - len(texts))
