"""Is a segmenter better for drawn images where many masks have no image? Land cover of Dubai.

    python -m benchmarks.augmentation [--data ../shared/data] [--work .state/downstream_study] [--runs 4]
        [--segmenters 1] [--only RUN ...]

Masks are often known from a map where images are not. Here each of three places has nine pairs. Three of them are
measured on, one has its image, and of the other five the masks alone are known. RS-Prune's foundation of
benchmarks.downstream_study is fine-tuned on the pairs with image and draws images. Segmenters learn from

* the pairs with image;
* these and images drawn for the other masks;
* these and the real images of those, which is what a perfect model would draw.

Each pair is measured on once in a run, by segmenters that learned from other pairs (three folds). Runs differ in the
pair that has its image, and in all seeds; there can be six. With several segmenters of each kind, which differ in their
seed, the pixels of all of them count. The places are Tiles 4 to 6. The segmenters are also measured on other places,
Tiles 1 to 3. Settings were chosen on pairs of these and on Tile 4 (docs/log.md), nothing on Tiles 5 and 6.
Results depend on the number of threads: these are of one (OMP_NUM_THREADS=1).

The work is kept below --work: run again to go on after an interruption or with more runs or segmenters. Several
processes can share it, each with the runs after --only. benchmarks/results/augmentation.md gets the table when all runs
are there.
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.downstream_study import pruned
from benchmarks.machine import heading
from benchmarks.super_resolution import CHECKOUT
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params
from rsprune_dagster.diffusion.checkpoint import load_checkpoint, model_digest
from rsprune_dagster.downstream.fine_tuning import fine_tuned
from rsprune_dagster.downstream.masks import Palette
from rsprune_dagster.downstream.pairs import Crops, Pair, PairSet, read_pairs
from rsprune_dagster.downstream.restoration import LEVEL, Mean
from rsprune_dagster.downstream.segmentation import class_weights, gains, intervals, train_segmenter
from rsprune_dagster.downstream.synthesis import CONDITION_DROPOUT, Synthesis, Task
from rsprune_dagster.downstream.synthesis_measures import OTHER, SAME, confusions_of_pairs
from rsprune_dagster.stages.diffusion_checkpoint import sampling_options
from rsprune_dagster.stages.downstream_study import foundation_of, foundations_folder
from rsprune_dagster.stages.pruning_study import study_of
from rsprune_dagster.study.arms import parse_arm, read_pruned
from rsprune_dagster.study.trainings import arm_tiles
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.progress import terminal
from rsprune_dagster.viz.markdown import table

RESULTS: Final = CHECKOUT / "benchmarks" / "results" / "augmentation.md"
PLACES: Final = (4, 5, 6)
OTHER_PLACES: Final = (1, 2, 3)
N_FOLDS: Final = 3
N_RUNS, N_SEGMENTERS = 4, 1
"""Fixed before the first result."""
MOST_RUNS: Final = 6
FOUNDATION: Final = "rsprune-0.15"
N_REAL, N_DRAWN = 4096, 1600
"""Crops of the pairs with image, and of the other masks."""
N_SEGMENTER_IMAGES: Final = 12_800
"""Training length of segmenters, in images."""
N_TEST: Final = 600
"""Crops of each set that is measured on."""
FIRST_SEED, BETWEEN_SEGMENTERS = 100, 1000
ALONE, DRAWN, REAL = "pairs with image", "and images drawn for other masks", "and the real images of these"
"""The kinds of segmenters, by what they learned from."""


def main() -> None:
    """Run what is left, kind by kind, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CHECKOUT / "../shared/data")
    parser.add_argument("--work", type=Path, default=CHECKOUT / ".state" / "downstream_study")
    parser.add_argument("--runs", type=int, choices=range(2, MOST_RUNS + 1), default=N_RUNS)
    parser.add_argument("--segmenters", type=int, default=N_SEGMENTERS, help="of each kind, in each fold of a run")
    parser.add_argument("--only", type=int, nargs="*", help="runs of this process, from 0")
    asked = parser.parse_args()
    layout = Layout(asked.work / "assets", asked.work)
    params = pruned(layout, asked.data)
    foundation = foundation_folder(layout, params)
    pairs = pairs_of(asked.data, params)
    splits = [
        Split(pairs, run, fold, params, foundation, asked.work / "augmentation")
        for run in range(asked.runs)
        for fold in range(N_FOLDS)
    ]
    every = [
        (split, kind, number) for kind in (ALONE, DRAWN, REAL) for split in splits for number in range(asked.segmenters)
    ]
    for split, kind, number in every:
        if (asked.only is None or split.run in asked.only) and not split.file(kind, number).exists():
            split.measure(kind, number)
    if missing := sum(not split.file(kind, number).exists() for split, kind, number in every):
        print(f"{missing} of {len(every)} segmenters are missing, so there is no table yet")
        return
    lines = table(("learned from", "measured on", "mIoU", "gain"), [*rows(splits, asked.segmenters)])
    text = "\n\n".join([heading("benchmarks.augmentation"), said(params, asked.runs, asked.segmenters), lines])
    RESULTS.write_text(text + "\n")
    print(text)


def foundation_folder(layout: Layout, params: Params) -> Path:
    """The checkpoint of the foundation, which is trained unless that was done."""
    corpus, study = read_pruned(layout, params.selection), study_of(params)
    tiles = arm_tiles(study, parse_arm(FOUNDATION), corpus, seed=0, workers=1)
    options, folder = study.options(0, study.checkpoints[-1]), foundations_folder(layout, corpus)
    return foundation_of(tiles, options, folder, params.training, device="cpu", progress=terminal)


def pairs_of(data: Path, params: Params) -> dict[str, list[list[Pair]]]:
    """The pairs of both sets, by place."""
    palette = Palette.of(params.semantic_synthesis.classes)
    return {
        name: [[*read_pairs([str(data / f"masks/dubai/Tile {place}")], palette)] for place in places]
        for name, places in ((SAME, PLACES), (OTHER, OTHER_PLACES))
    }


@dataclass(frozen=True)
class Split:
    """Which pairs have an image, which only their mask, and which are measured on, in a fold of a run."""

    pairs: Mapping[str, Sequence[Sequence[Pair]]]
    """By set, then by place."""
    run: int
    fold: int
    params: Params
    foundation: Path
    work: Path

    def file(self, kind: str, number: int) -> Path:
        """Where the numbers of pixels of a segmenter lie."""
        return self.folder / f"{kind.replace(' ', '_')}-{number}.npz"

    def confusions(self, kind: str, place: str, n_segmenters: int) -> NDArray[np.int64]:
        """The numbers of pixels (pairs, k, k) of all segmenters of a kind, by true class first."""
        files = [self.file(kind, number) for number in range(n_segmenters)]
        return np.asarray(sum(np.load(file)[place] for file in files))

    def measure(self, kind: str, number: int) -> None:
        """Train a segmenter and write its numbers of pixels (pairs, k, k) by true and predicted class, for each set."""
        few, others = self.crops
        more = {ALONE: (), DRAWN: (others,), REAL: (others,)}[kind]
        if kind == DRAWN:
            more = (replace(others, images=self.drawn()),)
        images, masks = (np.concatenate([getattr(one, name) for one in (few, *more)]) for name in ("images", "masks"))
        n_classes = self.with_image.n_classes
        segmenter = train_segmenter(
            images,
            masks,
            n_classes,
            n_images=N_SEGMENTER_IMAGES,
            seed=self.seed + BETWEEN_SEGMENTERS * number,
            device="cpu",
            progress=terminal,
            label=f"segmenter {number} of run {self.run}, fold {self.fold}: {kind}",
            weights=class_weights(np.concatenate([few.masks, others.masks]), n_classes),  # the same for all kinds
        )
        tests = {name: one.spread_crops(N_TEST) for name, one in self.tests.items()}
        counts = {name: confusions_of_pairs([segmenter], test)[0] for name, test in tests.items()}
        with atomic_write(self.file(kind, number)) as draft, draft.open("wb") as opened:
            np.savez(opened, **counts)

    def drawn(self) -> NDArray[np.uint8]:
        """Images for the masks without image, by a model that was fine-tuned on the pairs with image; drawn once."""
        if not (file := self.folder / "drawn.npy").exists():
            with atomic_write(file) as draft, draft.open("wb") as opened:
                np.save(opened, self._drawn())
        return np.asarray(np.load(file))

    def _drawn(self) -> NDArray[np.uint8]:
        task, training = self.params.semantic_synthesis, self.params.training
        trained, _ = fine_tuned(
            self.with_image,
            load_checkpoint(self.foundation)[0],
            task,
            training,
            parent=model_digest(self.foundation),
            n_channels=self.with_image.n_classes,
            states=self.folder / "states",
            seed=self.seed,
            device="cpu",
            progress=terminal,
            condition="mask",
            condition_dropout=CONDITION_DROPOUT,
        )
        options = replace(sampling_options(training, self.seed), guidance=task.guidance)
        return Synthesis(trained.model, Task(task.classes, task.crop_px)).images(
            self.crops[1].shares, options, terminal
        )

    @cached_property
    def seed(self) -> int:
        """The seed of the fine-tuning, of the noise, and of the first segmenters of all kinds."""
        return FIRST_SEED + self.run * N_FOLDS + self.fold

    @cached_property
    def tests(self) -> dict[str, PairSet]:
        """The sets that are measured on."""
        same = [pair for place in self.pairs[SAME] for pair in place[self.fold :: N_FOLDS]]
        other = [pair for place in self.pairs[OTHER] for pair in place]
        return {SAME: self._set(same), OTHER: self._set(other)}

    @cached_property
    def _learned(self) -> list[list[Pair]]:
        """The pairs that are not measured on, by place."""
        return [[pair for n, pair in enumerate(place) if n % N_FOLDS != self.fold] for place in self.pairs[SAME]]

    @cached_property
    def with_image(self) -> PairSet:
        """The pairs whose image is known, one of each place."""
        return self._set([place[self.run] for place in self._learned])

    @cached_property
    def masks_only(self) -> PairSet:
        """The pairs whose mask alone is known."""
        return self._set([pair for place in self._learned for n, pair in enumerate(place) if n != self.run])

    @cached_property
    def crops(self) -> tuple[Crops, Crops]:
        """Random crops of both."""
        return self.with_image.random_crops(N_REAL, self.seed), self.masks_only.random_crops(N_DRAWN, self.seed)

    @cached_property
    def folder(self) -> Path:
        """Where the work of the split lies: under a hash of all that it depends on."""
        sets = [one.fingerprint() for one in (self.with_image, self.masks_only, *self.tests.values())]
        settings = (self.params.semantic_synthesis, self.params.training, N_REAL, N_DRAWN, N_SEGMENTER_IMAGES, N_TEST)
        told = repr((*sets, *settings, model_digest(self.foundation), self.seed))
        return self.work / hashlib.sha256(told.encode()).hexdigest()[:16]

    @cached_property
    def _set(self) -> partial[PairSet]:
        task = self.params.semantic_synthesis
        return partial(
            PairSet,
            n_classes=len(Palette.of(task.classes)),
            image_size_px=self.params.training.image_size_px,
            crop_px=task.crop_px,
        )


def rows(splits: Sequence[Split], n_segmenters: int) -> Iterator[Sequence[object]]:
    """The mIoU of each kind of segmenters, and the gain over those that learned from the pairs with image alone."""
    for place in (SAME, OTHER):
        alone = counts_of(splits, ALONE, place, n_segmenters)
        for kind in (ALONE, DRAWN, REAL):
            counts = counts_of(splits, kind, place, n_segmenters)
            gain = told(gains(counts, alone, seed=0)["miou"]) if kind != ALONE else ""
            yield kind, place, told(intervals(counts, seed=0)["miou"]), gain


def counts_of(splits: Sequence[Split], kind: str, place: str, n_segmenters: int) -> NDArray[np.int64]:
    """Numbers of pixels (m, pairs, k, k).

    In the same places m is the number of runs: the folds of a run are put together, so that each pair is there once. In
    other places m is the number of splits.
    """
    counts = np.stack([split.confusions(kind, place, n_segmenters) for split in splits])
    return counts.reshape(len(splits) // N_FOLDS, -1, *counts.shape[2:]) if place == SAME else counts


def told(mean: Mean) -> str:
    """A number and its interval."""
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def said(params: Params, n_runs: int, n_segmenters: int) -> str:
    """The settings."""
    n_images = params.semantic_synthesis.n_images
    return (
        f"UNet `tiny` of 32 px, from the foundation `{FOUNDATION}`, fine-tuned on {n_images:,} crops of three pairs, "
        f"one of each of Tiles 4 to 6; it drew {N_DRAWN:,} images for the masks of 15 other pairs. Segmenters saw "
        f"{N_SEGMENTER_IMAGES:,} images, with the same weights of classes. {n_runs} runs of {N_FOLDS} folds, "
        f"segmenters of a kind in a fold: {n_segmenters}. Measured on 27 pairs of the same places, each once in a run, "
        f"and on 27 of other places. Intervals of {LEVEL:.0%} over pairs, and over runs (same places) or folds (other "
        "places)."
    )


if __name__ == "__main__":
    main()
