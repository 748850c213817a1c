"""Do drawn images show their masks, and does a segmenter learn from them? Land cover of Dubai.

    python -m benchmarks.semantic_synthesis [--data ../shared/data] [--work .state/downstream] [--seeds 3]
    python -m benchmarks.semantic_synthesis --summary

The foundation is that of benchmarks.super_resolution: trained on the 15 % of EuroSAT's pool that RS-Prune kept, at
64 px. It is fine-tuned on crops of 128 px of Tiles 1 to 4, reduced to 64 px; one pair in five is held back. The table
is measured on Tiles 5 and 6, which are other places. Settings were chosen with Tiles 1 to 3 for training and Tile 4
for measuring (--part choice). "random" is the same network, fine-tuned in the same way from random weights.

The work is kept below --work, which benchmarks.super_resolution can share: run again to go on after an interruption.
--summary writes benchmarks/results/semantic_synthesis.md from what is there.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import heading
from benchmarks.super_resolution import CHECKOUT, STARTS, TRAINING, foundation, publish, spread
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params
from rsprune_dagster.downstream.restoration import LEVEL
from rsprune_dagster.evaluation.networks import named_networks
from rsprune_dagster.stages.semantic_synthesis_checkpoint import PairSources, train_synthesis
from rsprune_dagster.utils.progress import terminal
from rsprune_dagster.viz.markdown import table

RESULTS = CHECKOUT / "benchmarks" / "results" / "semantic_synthesis.md"
PLACES = {"choice": ((1, 2, 3), (4,)), "test": ((1, 2, 3, 4), (5, 6))}
"""The tiles to learn from and to measure on."""
CLASSES = (
    "#3c1098 building",
    "#8429f6 land",
    "#6ec1e4 road",
    "#fedd3a vegetation",
    "#e2a929 water",
    "#9b9b9b unlabeled",
    "#000000 unlabeled",
)
SETTINGS = {
    "classes": CLASSES,
    "crop_px": 128,
    "n_images": 6400,
    "ema_half_life_images": 640,
    "save_every_images": 3200,
    "n_test_images": 200,
    "n_drawn_images": 400,
    "n_segmenter_images": 6400,
    "n_segmenters": 1,
}
MEASURES = {
    "miou_real_same_places": "mIoU, real",
    "miou_drawn_same_places": "mIoU, drawn",
    "miou_ratio_same_places": "ratio",
    "miou_gain_same_places": "gain in mIoU",
    "miou_real": "mIoU, real, other places",
    "miou_drawn": "mIoU, drawn, other places",
    "miou_ratio": "ratio, other places",
    "miou_gain": "gain in mIoU, other places",
    "st_lpips_learned": "ST-LPIPS, learned",
    "st_lpips_control": "ST-LPIPS, held back",
}


def main() -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CHECKOUT / "../shared/data")
    parser.add_argument("--work", type=Path, default=CHECKOUT / ".state" / "downstream")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=tuple(PLACES), default="test", help="what is measured on")
    parser.add_argument("--summary", action="store_true")
    asked = parser.parse_args()
    if not asked.summary:
        layout, params = foundation(asked.data, asked.work)
        for seed in range(asked.seeds):
            for start in STARTS:
                run(layout, params.with_values({"semantic_synthesis": {**SETTINGS, "start": start}}), asked, seed)
    write_summary(asked.work / f"synthesis-{asked.part}")


def run(layout: Layout, params: Params, asked: Any, seed: int) -> None:
    """Fine-tune and measure once, unless that was done."""
    task = params.semantic_synthesis
    folder = asked.work / f"synthesis-{asked.part}" / f"{task.n_images}-{task.start}-{seed}"
    if (folder / "metrics.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left; its training goes on
    folder.mkdir(parents=True)
    started = time.monotonic()
    report = train_synthesis(
        layout.with_draft("semantic_synthesis_checkpoint", folder),
        task,
        params.training,
        pair_sources(asked.data, asked.part),
        named_networks(("descriptor",), image_size_px=64, device="cpu")[0],
        seed=seed,
        device="cpu",
        progress=terminal,
    )
    print(f"{time.monotonic() - started:.0f} s  {folder.name}: {report.metrics}", flush=True)


def pair_sources(data: Path, part: str) -> PairSources:
    """The pairs of a part of PLACES."""
    return PairSources(*(tuple(str(data / f"masks/dubai/Tile {number}") for number in each) for each in PLACES[part]))


def write_summary(work: Path) -> None:
    """The table of all runs that are there."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in sorted(work.glob("*/metrics.json"))}
    rows = list(rows_of(runs))
    if not rows:
        raise SystemExit(f"no run of these settings is in {work}: leave out --summary to make some")
    text = "\n\n".join(
        [
            heading("benchmarks.semantic_synthesis"),
            f"UNet `tiny` at 64 px, {SETTINGS['n_images']:,} images of fine-tuning; the foundation saw "
            f"{TRAINING['n_images']:,} images of EuroSAT. Segmenters saw {SETTINGS['n_segmenter_images']:,} images. "
            "mIoU of the segmenter that learned from real images, on real images and on images drawn for their masks; "
            "gains of the one that learned from real and drawn images, one of them a seed. Places are the same if not "
            "named. 200 crops are too few for the Fréchet distance of the descriptor. Mean over "
            f"seeds, and Student's interval of {LEVEL:.0%} over them. The last row has differences, taken seed by "
            "seed: foundation less random weights.",
            table(("start", "seeds", *MEASURES.values()), rows),
        ]
    )
    publish(text, RESULTS, work)


def rows_of(runs: dict[str, dict[str, float]]) -> Iterator[tuple[object, ...]]:
    """A row for each start, and for the differences of the starts."""
    by_start = {
        start: {
            int(name.rpartition("-")[2]): one
            for name, one in runs.items()
            if name.startswith(f"{SETTINGS['n_images']}-{start}-")
        }
        for start in STARTS
    }
    for start, found in by_start.items():
        if found:
            yield start, len(found), *(spread([one[name] for one in found.values()]) for name in MEASURES)
    one, other = by_start.values()
    if seeds := sorted(one.keys() & other.keys()):
        gaps = [[one[seed][name] - other[seed][name] for seed in seeds] for name in MEASURES]
        yield "difference", len(seeds), *(spread(each) for each in gaps)


if __name__ == "__main__":
    main()
