"""Is the foundation from RS-Prune's subset the better one downstream? Equal fine-tuning from the foundations of arms.

    python -m benchmarks.downstream_study [--data ../shared/data] [--work .state/downstream_study]
        [--arms NAME ...] [--seeds 0 1 2]
    python -m benchmarks.downstream_study --summary

Foundations are those of benchmarks.study: a UNet of 32 px, trained on the full EuroSAT pool, on random 15 %, or on the
15 % that RS-Prune kept, here chosen with MobileNetV2. The arm `none` is random weights. Each is fine-tuned

* for super-resolution of UC Merced, x4, bicubic: images 0 to 69 of each class to learn from, 80 to 99 to measure on;
* for semantic synthesis of Dubai: Tiles 1 to 4 to learn from, pairs held back and Tiles 5 and 6 to measure on.

The code is that of `rsprune study --task`. The work is kept below --work: run again to go on after an interruption or
to add arms and seeds. --summary writes benchmarks/results/downstream_study.md from what is there.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.labelled_sets import ENCODERS
from benchmarks.machine import heading
from benchmarks.semantic_synthesis import CLASSES, PLACES
from benchmarks.super_resolution import CHECKOUT, images
from rsprune_dagster.config.layout import STUDY_SUMMARY, Layout
from rsprune_dagster.config.params import NO_FOUNDATION, Params, load
from rsprune_dagster.evaluation.networks import named_networks
from rsprune_dagster.stages.downstream_study import (
    DownstreamTask,
    study_downstream_arm,
    super_resolution_task,
    synthesis_task,
)
from rsprune_dagster.stages.pipeline import prune
from rsprune_dagster.stages.raw_corpus import Scanner
from rsprune_dagster.stages.semantic_synthesis_checkpoint import PairSources
from rsprune_dagster.stages.super_resolution_checkpoint import ImageSources
from rsprune_dagster.utils.progress import terminal
from rsprune_dagster.viz import downstream_study
from rsprune_dagster.viz.markdown import markdown_table

RESULTS = CHECKOUT / "benchmarks" / "results" / "downstream_study.md"
ARMS = ("full", "random-0.15", "rsprune-0.15", NO_FOUNDATION)
LENGTH = {"n_images": 9600, "ema_half_life_images": 960, "save_every_images": 4800}
SETTINGS: dict[str, dict[str, Any]] = {
    "compute": {"device": "cpu", "workers": 1},
    "training": {"image_size_px": 32, "n_images": 19_200, "ema_half_life_images": 1920, "save_every_images": 4800},
    "study": {"checkpoints": [19_200]},
    "super_resolution": {**LENGTH, "n_test_images": 420},
    "semantic_synthesis": {
        **LENGTH,
        "classes": CLASSES,
        "crop_px": 64,
        "n_test_images": 320,
        "n_drawn_images": 640,
        "n_segmenter_images": 6400,
    },
}


def main() -> None:
    """Run what is left, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CHECKOUT / "../shared/data")
    parser.add_argument("--work", type=Path, default=CHECKOUT / ".state" / "downstream_study")
    parser.add_argument("--arms", nargs="*", default=[*ARMS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--summary", action="store_true")
    asked = parser.parse_args()
    if not asked.summary:
        run_all(asked.data, asked.work, asked.arms, asked.seeds)
    write_summary(asked.work)


def run_all(data: Path, work: Path, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Every arm with every seed, for both tasks."""
    params = load(CHECKOUT / "params.yaml").with_values(
        {
            "corpus": {"sources": [str(data / "eurosat/pool.tar")]},
            "reference": {"sources": [str(data / "eurosat/reference")]},
            "embedding": {"backbone": "mobilenet_v2", "weights": str(data / ENCODERS["mobilenet_v2"])},
            **SETTINGS,
        }
    )
    layout = Layout(work / "assets", work)
    if not layout.has("pruned_subset"):
        prune(params, layout, progress=terminal)
    networks, _ = named_networks(("descriptor",), image_size_px=64, device="cpu")
    tasks = [made(layout, params, data, networks) for made in (super_resolution, semantic_synthesis)]
    for seed in seeds:
        for arm in arms:
            for task in tasks:
                started = time.monotonic()
                report = study_downstream_arm(
                    layout, params, task, networks, arm=arm, seed=seed, workers=1, device="cpu", progress=terminal
                )
                scores = {score: round(report.figures()[score], 4) for score in task.scores}
                print(f"{time.monotonic() - started:.0f} s  {task.name}, {arm}, seed {seed}: {scores}", flush=True)


def super_resolution(layout: Layout, params: Params, data: Path, networks: Any) -> DownstreamTask:
    """UC Merced."""
    emptied(layout, "super_resolution_study")
    sources = ImageSources(*(images(data, layout.state, part) for part in ("train", "test")))
    scanner = Scanner.of(params.corpus, layout.cache, 1, terminal)
    return super_resolution_task(layout, params, sources, scanner, networks, device="cpu", progress=terminal)


def semantic_synthesis(layout: Layout, params: Params, data: Path, networks: Any) -> DownstreamTask:
    """Dubai."""
    emptied(layout, "semantic_synthesis_study")
    places = (tuple(str(data / f"masks/dubai/Tile {number}") for number in part) for part in PLACES["test"])
    return synthesis_task(params, PairSources(*places), networks, device="cpu", progress=terminal)


def emptied(layout: Layout, asset: str) -> None:
    """An empty folder for an asset; results lie in the cache."""
    shutil.rmtree(layout.assets / asset, ignore_errors=True)
    (layout.assets / asset).mkdir(parents=True)


def write_summary(work: Path) -> None:
    """The tables of both tasks."""
    parts = [heading("benchmarks.downstream_study"), said()]
    for task in ("super_resolution", "semantic_synthesis"):
        path = work / "assets" / f"{task}_study" / STUDY_SUMMARY
        if path.exists():
            summaries = json.loads(path.read_text())
            tables = (downstream_study.arms_table(summaries), downstream_study.differences_table(summaries))
            parts += [f"## {task.replace('_', ' ')}", *(markdown_table(table) for table in tables)]
    text = "\n\n".join(parts)
    RESULTS.write_text(text + "\n")
    print(text)


def said() -> str:
    """The settings."""
    training, synthesis = SETTINGS["training"], SETTINGS["semantic_synthesis"]
    return (
        f"UNet `tiny` of 32 px without scenes. Foundations saw {training['n_images']:,} images of EuroSAT, "
        f"fine-tunings {LENGTH['n_images']:,}. Super-resolution: 420 test images, a crop of 32 px of each. Synthesis: "
        f"crops of {synthesis['crop_px']} px, reduced to 32 px; {synthesis['n_test_images']} of either kind to measure "
        f"on, {synthesis['n_drawn_images']} drawn for the segmenter that learns from both. PSNR in dB; mIoU of a "
        "segmenter that learned from real images, on drawn ones; the gain is that of the segmenter that learned from "
        "both, on real images. Means over seeds with Student's interval of 95 %; differences are taken seed by seed."
    )


if __name__ == "__main__":
    main()
