"""How good images are that were drawn for masks.

Segmenters that learned from real pairs are asked for the masks of drawn images, and segmenters that learned from real
and drawn images are compared with those that learned from real images alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.diffusion.checkpoint import SamplingOptions
from rsprune_dagster.downstream.pairs import Crops, PairSet
from rsprune_dagster.downstream.restoration import Mean, distances, perceptual_distance
from rsprune_dagster.downstream.segmentation import Segmenter, confusions, gains, intervals, train_segmenter
from rsprune_dagster.downstream.synthesis import Synthesis
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.utils.progress import Progress, silent

MOST_REAL_CROPS: Final = 4096
"""Crops of training pairs that a segmenter learns from."""
N_SHOWN: Final = 8
N_DRAWS_SHOWN: Final = 3
REAL, BOTH = "real", "real and drawn"
"""The images that segmenters were trained on."""
OTHER, SAME = "other places", "same places"
"""The images that segmenters are measured on: those of test pairs, and of training pairs that were held back."""
DRAWN: Final = {OTHER: "drawn, other places", SAME: "drawn, same places"}
"""The images drawn for the masks of these pairs."""
KEYS: Final = {
    (REAL, OTHER): "real",
    (REAL, SAME): "real_same_places",
    (REAL, DRAWN[OTHER]): "drawn",
    (REAL, DRAWN[SAME]): "drawn_same_places",
    (BOTH, OTHER): "helped",
    (BOTH, SAME): "helped_same_places",
}
"""How a score is named in metrics.json."""
ENDS: Final = {OTHER: "", SAME: "_same_places"}
"""The ends of the names of other figures there, such as the gain."""
LEAST_MIOU: Final = 1e-6
"""A segmenter that finds nothing has no ratio."""
LEAST_PAIRS: Final = 2
"""An interval over pairs needs at least two."""


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
    """The images drawn for masks of test pairs, and their scores."""

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
    redrawn = {name: drawn_for(crops, test_seed) for name, crops in sets.items()}
    both = np.concatenate([real.images, drawn.images]), np.concatenate([real.masks, drawn.masks])
    alone = _segmenters(real.images, real.masks, learned.n_classes, protocol, "real images")
    helped = _segmenters(*both, learned.n_classes, protocol, "real and drawn images")
    drawn_sets = {DRAWN[name]: crops for name, crops in redrawn.items()}
    found = [*scores(alone, helped, sets, seed=options.seed), *scores(alone, (), drawn_sets, seed=options.seed)]
    metrics = {f"{score.measure}_{KEYS[score.learned_from, score.measured_on]}": score.mean.value for score in found}
    missing = []
    for name, crops in sets.items():
        end = ENDS[name]
        of_set, reasons = distances({"drawn": redrawn[name].images}, crops.images, protocol.networks)
        missing += [f"{name.capitalize()}: {reasons}"] if reasons else []
        metrics |= {f"{score.measure}_drawn{end}": score.mean.value for score in of_set}
        metrics[f"miou_gain{end}"] = metrics[f"miou_helped{end}"] - metrics[f"miou_real{end}"]
        metrics[f"miou_ratio{end}"] = metrics[f"miou_drawn{end}"] / max(metrics[f"miou_real{end}"], LEAST_MIOU)
    control = SAME if SAME in sets else OTHER
    metrics |= _nearness("learned", drawn, masks) | _nearness("control", redrawn[control], sets[control])
    shown = sets[OTHER].varied(N_SHOWN)
    draws = [drawn_for(shown, test_seed + number).images for number in range(N_DRAWS_SHOWN)]
    return Results(shown, draws, found, metrics, len(sets[OTHER]), " ".join(missing))


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
