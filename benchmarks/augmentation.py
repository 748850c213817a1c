"""Is a segmenter better for drawn images where many masks have no image? Land cover of Dubai.

    python -m benchmarks.augmentation [--data ../shared/data] [--work .state/downstream_study] [--pairs 2 1]
        [--seeds 11 12 13 14 15]

Masks are often known from a map where images are not. Here each training place has a few pairs with their image
(--pairs); the images of its other pairs are not used, only their masks. RS-Prune's foundation of
benchmarks.downstream_study is fine-tuned on the few pairs and draws images. Segmenters learn from

* the few pairs, as long as the others or a quarter of that;
* these and images drawn for other crops of their masks, as semantic_synthesis_checkpoint measures it;
* these and images drawn for the masks without an image;
* these and the real images of those, which is what a perfect model would draw.

They are measured on pairs of the same places that were held back, and on other places. Settings were chosen with Tiles
1 to 3 to learn from and Tile 4 to measure on (--part choice). The work is kept below --work: run again to go on after
an interruption or to add seeds, which are those of the segmenters. benchmarks/results/augmentation.md gets the table
of the seeds that are named.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.downstream_study import pruned
from benchmarks.machine import heading
from benchmarks.semantic_synthesis import PLACES, pair_sources
from benchmarks.super_resolution import CHECKOUT
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params
from rsprune_dagster.diffusion.checkpoint import load_checkpoint, model_digest
from rsprune_dagster.downstream.fine_tuning import fine_tuned
from rsprune_dagster.downstream.pairs import Crops, PairSet
from rsprune_dagster.downstream.restoration import LEVEL, Mean
from rsprune_dagster.downstream.segmentation import gains, intervals, train_segmenter
from rsprune_dagster.downstream.synthesis import CONDITION_DROPOUT, Synthesis, Task
from rsprune_dagster.downstream.synthesis_measures import OTHER, SAME, confusions_of_pairs
from rsprune_dagster.stages.diffusion_checkpoint import sampling_options
from rsprune_dagster.stages.downstream_study import foundation_of, foundations_folder
from rsprune_dagster.stages.pruning_study import study_of
from rsprune_dagster.stages.semantic_synthesis_checkpoint import TaskPairs, read_task_pairs
from rsprune_dagster.study.arms import parse_arm, read_pruned
from rsprune_dagster.study.trainings import arm_tiles
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.progress import terminal
from rsprune_dagster.viz.markdown import table

RESULTS: Final = CHECKOUT / "benchmarks" / "results" / "augmentation.md"
FOUNDATION: Final = "rsprune-0.15"
N_PAIRS: Final = (2, 1)
"""Pairs of each place whose image is known. Settings were chosen with 2; 1 was added when three of five seeds of
2 were known."""
N_FINE_TUNING: Final = 32_000
LENGTH: Final = {"n_images": N_FINE_TUNING, "ema_half_life_images": N_FINE_TUNING // 20}
N_REAL, N_DRAWN = 4096, 1600
"""Crops of the few pairs, and of the masks without an image."""
N_SEGMENTER, N_SHORTER = 12_800, 3200
"""Training length of segmenters, in images."""
N_TEST: Final = 600
SEEDS: Final = (11, 12, 13, 14, 15)
"""Seeds of the segmenters. They were fixed before the first result on the test part."""
CROP_SEED, MASK_SEED, NOISE_SEED = 55, 777, 99
ALONE, SHORTER = "few pairs", "few pairs, shorter"
OWN, DRAWN, REAL = (
    "and images drawn for their masks",
    "and images drawn for other masks",
    "and the real images of these",
)
"""The kinds of segmenters, by the images that they learned from."""

Counts = dict[str, list[dict[str, NDArray[np.int64]]]]
"""By what segmenters learned from, then for each seed, by set: numbers of pixels (pairs, k, k), by true class first."""


def main() -> None:
    """Run what is left, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CHECKOUT / "../shared/data")
    parser.add_argument("--work", type=Path, default=CHECKOUT / ".state" / "downstream_study")
    parser.add_argument("--part", choices=tuple(PLACES), default="test", help="what is measured on")
    parser.add_argument("--pairs", type=int, nargs="*", default=[*N_PAIRS], help="of each place, with an image")
    parser.add_argument("--seeds", type=int, nargs="*", default=[*SEEDS])
    asked = parser.parse_args()
    layout = Layout(asked.work / "assets", asked.work)
    params = pruned(layout, asked.data).with_values({"semantic_synthesis": LENGTH})
    task = params.semantic_synthesis
    pairs = read_task_pairs(task, pair_sources(asked.data, asked.part), image_size_px=params.training.image_size_px)
    lines: list[Sequence[object]] = []
    for n in asked.pairs:
        few, others = split(pairs.training, n)
        found = run(few, others, pairs, layout, params, asked.work / "augmentation" / f"{asked.part}-{n}", asked.seeds)
        lines += [(len(few.pairs), *row) for row in rows(found)]
    head = table(("pairs", "learned from", "measured on", "mIoU", "gain"), lines)
    text = "\n\n".join([heading("benchmarks.augmentation"), said(pairs, len(asked.seeds)), head])
    if asked.part == "test":
        RESULTS.write_text(text + "\n")
    print(text)


def run(
    few: PairSet, others: PairSet, pairs: TaskPairs, layout: Layout, params: Params, work: Path, seeds: Sequence[int]
) -> Counts:
    """Train and measure segmenters of each kind, unless that was done."""
    model = generator(few, layout, params, work)
    real, own = few.random_crops(N_REAL, CROP_SEED), few.random_crops(N_DRAWN, MASK_SEED)
    masks = others.random_crops(N_DRAWN, MASK_SEED)
    learned = {
        SHORTER: ([real], N_SHORTER),
        ALONE: ([real], N_SEGMENTER),
        OWN: ([real, with_drawn(own, model, params, work / "own.npy")], N_SEGMENTER),
        DRAWN: ([real, with_drawn(masks, model, params, work / "other.npy")], N_SEGMENTER),
        REAL: ([real, masks], N_SEGMENTER),
    }
    sets = {SAME: pairs.held_back, OTHER: pairs.test}
    tests = {name: one.spread_crops(N_TEST) for name, one in sets.items() if one}
    found: Counts = {name: [] for name in learned}
    for seed in seeds:
        for name, (crops, n_images) in learned.items():
            file = work / f"{name.replace(' ', '_')}-{seed}.npz"
            if not file.exists():
                measure(crops, n_images, tests, few.n_classes, seed, file)
            with np.load(file) as saved:
                found[name].append(dict(saved))
    return found


def split(pairs: PairSet, n: int) -> tuple[PairSet, PairSet]:
    """The first n pairs of each place, and all others."""
    places = [pair.name.partition("/")[0] for pair in pairs.pairs]
    is_first = [places[:number].count(place) < n for number, place in enumerate(places)]
    few, others = (
        tuple(pair for pair, first in zip(pairs.pairs, is_first, strict=True) if first == wanted)
        for wanted in (True, False)
    )
    return replace(pairs, pairs=few), replace(pairs, pairs=others)


def generator(few: PairSet, layout: Layout, params: Params, work: Path) -> Synthesis:
    """The model that was fine-tuned on the few pairs."""
    corpus, study, task = read_pruned(layout, params.selection), study_of(params), params.semantic_synthesis
    tiles = arm_tiles(study, parse_arm(FOUNDATION), corpus, seed=0, workers=1)
    options, folder = study.options(0, study.checkpoints[-1]), foundations_folder(layout, corpus)
    checkpoint = foundation_of(tiles, options, folder, params.training, device="cpu", progress=terminal)
    trained, _ = fine_tuned(
        few,
        load_checkpoint(checkpoint)[0],
        task,
        params.training,
        parent=model_digest(checkpoint),
        n_channels=few.n_classes,
        states=work / "states",
        seed=0,
        device="cpu",
        progress=terminal,
        condition="mask",
        condition_dropout=CONDITION_DROPOUT,
    )
    return Synthesis(trained.model, Task(task.classes, task.crop_px))


def with_drawn(crops: Crops, model: Synthesis, params: Params, file: Path) -> Crops:
    """The crops with images drawn for their masks, once."""
    if not file.exists():
        options = sampling_options(params.training, NOISE_SEED)
        drawn = model.images(crops.shares, replace(options, guidance=params.semantic_synthesis.guidance), terminal)
        with atomic_write(file) as draft, draft.open("wb") as opened:
            np.save(opened, drawn)
    return replace(crops, images=np.load(file))


def measure(
    learned: Sequence[Crops], n_images: int, tests: Mapping[str, Crops], n_classes: int, seed: int, file: Path
) -> None:
    """Train a segmenter and write its numbers of pixels (pairs, k, k) by true and predicted class, for each set."""
    images, masks = (np.concatenate([getattr(one, name) for one in learned]) for name in ("images", "masks"))
    segmenter = train_segmenter(images, masks, n_classes, n_images=n_images, seed=seed, device="cpu", progress=terminal)
    counts = {name: confusions_of_pairs([segmenter], test)[0] for name, test in tests.items()}
    with atomic_write(file) as draft, draft.open("wb") as opened:
        np.savez(opened, **counts)


def rows(found: Counts) -> Iterator[Sequence[object]]:
    """The mIoU of each kind of segmenters, and the gain over those that learned from the few pairs as long."""
    for place in (SAME, OTHER):
        counts = {name: np.stack([one[place] for one in each]) for name, each in found.items()}
        for name, each in counts.items():
            gain = gains(each, counts[ALONE], seed=0)["miou"] if name != ALONE else None
            yield name, place, told(intervals(each, seed=0)["miou"]), told(gain) if gain else ""


def told(mean: Mean) -> str:
    """A number and its interval."""
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def said(pairs: TaskPairs, n_seeds: int) -> str:
    """The settings."""
    n_test = len(pairs.test.pairs) if pairs.test else 0
    return (
        f"UNet `tiny` of 32 px, from the foundation `{FOUNDATION}`, fine-tuned on {N_FINE_TUNING:,} crops of the "
        f"pairs; it drew {N_DRAWN:,} images for their masks, and as many for the masks of the others of "
        f"{len(pairs.training.pairs)} pairs. Segmenters saw {N_SEGMENTER:,} images, the shorter ones {N_SHORTER:,}; "
        f"{n_seeds} of each kind, with the same seeds. Measured on {len(pairs.held_back.pairs)} pairs of the same "
        f"places and {n_test} of other ones. Gains are over the pairs "
        f"alone at equal length. Intervals of {LEVEL:.0%} over pairs and segmenters."
    )


if __name__ == "__main__":
    main()
