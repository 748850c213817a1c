"""Is the foundation from RS-Prune's subset the better one downstream? Equal fine-tuning from the foundations of arms.

    python -m benchmarks.downstream_study [--data ../shared/data] [--work .state/downstream_study]
        [--tasks super_resolution semantic_synthesis] [--arms NAME ...] [--seeds 0 1 2]

Foundations: the UNet of params.yaml at 32 px, trained on the full EuroSAT pool, on random 15 %, or on the 15 % that
RS-Prune kept with MobileNetV2. The arm `none` is random weights. Each is fine-tuned

* for super-resolution of UC Merced, x4, bicubic: images 0 to 69 of each class to learn from, 80 to 99 to measure on;
* for semantic synthesis of Dubai: Tiles 1 to 4 to learn from, pairs held back and Tiles 5 and 6 to measure on.

The code is that of `rsprune study --task`. The work is kept below --work: run again to go on after an interruption or
to add arms and seeds. benchmarks/results/downstream_study.md gets the tables of all that is there. Several processes,
each with its own arms or seeds, can share the work; run once more without --arms and --seeds for the whole table.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.labelled_sets import ENCODERS
from benchmarks.machine import heading
from benchmarks.semantic_synthesis import CLASSES, pair_sources
from benchmarks.super_resolution import CHECKOUT, images
from rsprune_dagster.config.layout import DOWNSTREAM_STUDIES, Layout
from rsprune_dagster.config.params import NO_FOUNDATION, Params, load
from rsprune_dagster.evaluation.networks import named_networks
from rsprune_dagster.stages.downstream_study import study_downstream_arm, super_resolution_task, synthesis_task
from rsprune_dagster.stages.pipeline import prune
from rsprune_dagster.stages.raw_corpus import Scanner
from rsprune_dagster.stages.super_resolution_checkpoint import ImageSources
from rsprune_dagster.utils.progress import terminal
from rsprune_dagster.viz import downstream_study
from rsprune_dagster.viz.markdown import markdown_table

RESULTS = CHECKOUT / "benchmarks" / "results" / "downstream_study.md"
TASKS = ("super_resolution", "semantic_synthesis")
ARMS = ("full", "random-0.15", "rsprune-0.15", NO_FOUNDATION)
SETTINGS: dict[str, dict[str, Any]] = {
    "compute": {"device": "cpu", "workers": 1},
    "training": {"image_size_px": 32, "n_images": 19_200, "ema_half_life_images": 1920, "save_every_images": 4800},
    "study": {"checkpoints": [19_200]},
    "super_resolution": {
        "n_images": 9600,
        "ema_half_life_images": 960,
        "save_every_images": 4800,
        "n_test_images": 420,
    },
    "semantic_synthesis": {
        "classes": CLASSES,
        "crop_px": 64,
        "n_images": 19_200,
        "ema_half_life_images": 1920,
        "save_every_images": 4800,
        "n_test_images": 300,
        "n_drawn_images": 320,
        "n_segmenter_images": 3200,
        "n_segmenters": 1,
    },
}


def main() -> None:
    """Run what is left, seed by seed, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CHECKOUT / "../shared/data")
    parser.add_argument("--work", type=Path, default=CHECKOUT / ".state" / "downstream_study")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[*TASKS])
    parser.add_argument("--arms", nargs="*", default=[*ARMS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=asked.work) as folder:  # results lie in the cache
        layout = Layout(asked.work / "assets", asked.work)
        for asset in DOWNSTREAM_STUDIES:
            (Path(folder) / asset).mkdir()
            layout = layout.with_draft(asset, Path(folder) / asset)
        run_all(layout, asked.data, asked.tasks, asked.arms, asked.seeds)
        text = "\n\n".join([heading("benchmarks.downstream_study"), said(), *tables(layout, asked.tasks)])
    RESULTS.write_text(text + "\n")
    print(text)


def run_all(layout: Layout, data: Path, names: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Every arm with every seed, for the tasks of these names."""
    params = pruned(layout, data)
    networks, _ = named_networks(("descriptor",), image_size_px=64, device="cpu")
    sources = ImageSources(*(images(data, layout.state, part) for part in ("train", "test")))
    scanner = Scanner.of(params.corpus, layout.cache, 1, terminal)
    every = (
        super_resolution_task(layout, params, sources, scanner, networks),
        synthesis_task(params, pair_sources(data, "test"), networks),
    )
    tasks = [task for task in every if task.name in names]
    for seed in seeds:
        for arm in arms:
            for task in tasks:
                started = time.monotonic()
                report = study_downstream_arm(
                    layout, params, task, networks, arm=arm, seed=seed, workers=1, device="cpu", progress=terminal
                )
                figures = report.figures()
                scores = {score: round(figures[score], 4) for score in task.scores if score in figures}
                print(f"{time.monotonic() - started:.0f} s  {task.name}, {arm}, seed {seed}: {scores}", flush=True)


def pruned(layout: Layout, data: Path) -> Params:
    """Prune EuroSAT's pool into `layout`, unless that was done; the parameters of the study."""
    params = load(CHECKOUT / "params.yaml").with_values(
        {
            "corpus": {"sources": [str(data / "eurosat/pool.tar")]},
            "reference": {"sources": [str(data / "eurosat/reference")]},
            "embedding": {"backbone": "mobilenet_v2", "weights": str(data / ENCODERS["mobilenet_v2"])},
            **SETTINGS,
        }
    )
    if not layout.has("pruned_subset"):
        prune(params, layout, progress=terminal)
    return params


def tables(layout: Layout, names: Sequence[str]) -> Iterator[str]:
    """The tables of the tasks of these names."""
    for name in names:
        summaries = downstream_study.read_summaries(layout.folder(f"{name}_study"))
        yield f"## {name.replace('_', ' ').capitalize()}"
        yield markdown_table(downstream_study.arms_table(summaries))
        yield markdown_table(downstream_study.differences_table(summaries))


def said() -> str:
    """The settings."""
    training, enlarging, drawing = (SETTINGS[name] for name in ("training", "super_resolution", "semantic_synthesis"))
    return (
        f"UNet `tiny` of 32 px without scenes. Foundations saw {training['n_images']:,} images of EuroSAT. "
        f"Super-resolution: fine-tuned on {enlarging['n_images']:,} images, measured on {enlarging['n_test_images']} "
        "others, a crop of 32 px of each; PSNR in dB. Synthesis: crops of 64 px, reduced to 32 px; fine-tuned on "
        f"{drawing['n_images']:,}, measured on {drawing['n_test_images']} of either kind. mIoU is that of a segmenter "
        "that learned from real images, on drawn ones. The gain is that of a segmenter that learned from real and "
        f"{drawing['n_drawn_images']} drawn images, on real ones. Means over seeds with Student's interval of 95 %; "
        "differences are taken seed by seed."
    )


if __name__ == "__main__":
    main()
