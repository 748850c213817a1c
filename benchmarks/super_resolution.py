"""Is a foundation model worth having for super-resolution? UC Merced, against bicubic enlargement and random weights.

    python -m benchmarks.super_resolution [--data ../shared/data] [--work .state/super_resolution] [--seeds 3]
    python -m benchmarks.super_resolution --summary

The foundation is trained on the 15 % of EuroSAT's pool that RS-Prune kept, at 64 px. It is fine-tuned on crops of 64 px
of UC Merced, at the images' own resolution: those numbered 0 to 69 of each class. Settings were chosen on the numbers
70 to 79; the table is measured on 80 to 99, a crop of each image. The images of a class are of different places.
"random" is the same network, fine-tuned in the same way from random weights.

The work is kept below --work: run again to go on after an interruption. --summary writes
benchmarks/results/super_resolution.md from what is there.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import heading
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params, load
from rsprune_dagster.downstream.restoration import LEVEL
from rsprune_dagster.evaluation.networks import named_networks
from rsprune_dagster.stages.diffusion_checkpoint import train_checkpoint
from rsprune_dagster.stages.pipeline import prune
from rsprune_dagster.stages.raw_corpus import Scanner
from rsprune_dagster.stages.super_resolution_checkpoint import ImageSources, train_super_resolution
from rsprune_dagster.study.summary import mean_over_seeds
from rsprune_dagster.utils.progress import terminal
from rsprune_dagster.viz.markdown import table

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "benchmarks" / "results" / "super_resolution.md"
TASKS = ((4, "bicubic", 6400), (8, "realistic", 19_200))
"""Scale, degradation, and how many images of fine-tuning: x8 needs more to be better than bicubic enlargement."""
STARTS = ("foundation", "random")
PARTS = {"train": range(70), "choice": range(70, 80), "test": range(80, 100)}
"""The numbers of the images of each class."""
SAME = "airplane/airplane02.jpg"
"""The same bytes as airplane01."""
TRAINING = {"image_size_px": 64, "n_images": 32_000, "ema_half_life_images": 2000, "save_every_images": 6400}
FINE_TUNING = {"save_every_images": 3200, "n_test_images": 420}
MEASURES = ("psnr", "ssim", "st_lpips", "frechet_descriptor", "input_error")
OUTPUTS = ("bicubic", "mean", "sample")


def main() -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CHECKOUT / "../shared/data")
    parser.add_argument("--work", type=Path, default=CHECKOUT / ".state" / "super_resolution")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("choice", "test"), default="test", help="what is measured on")
    parser.add_argument("--summary", action="store_true")
    asked = parser.parse_args()
    if not asked.summary:
        layout, params = foundation(asked.data, asked.work)
        sources = ImageSources(*(images(asked.data, asked.work, part) for part in ("train", asked.part)))
        for scale, degradation, n_images in TASKS:
            length = {"n_images": n_images, "ema_half_life_images": n_images // 10}
            for start in STARTS:
                for seed in range(asked.seeds):
                    changes = {"scale": scale, "degradation": degradation, "start": start, **length}
                    run(layout, params.with_values({"super_resolution": changes}), sources, asked, seed)
    write_summary(asked.work / asked.part)


def run(layout: Layout, params: Params, sources: ImageSources, asked: Any, seed: int) -> None:
    """Fine-tune and measure once, unless that was done."""
    task = params.super_resolution
    folder = asked.work / asked.part / f"x{task.scale}-{task.degradation}-{task.n_images}-{task.start}-{seed}"
    if (folder / "metrics.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left; its training goes on
    folder.mkdir(parents=True)
    started = time.monotonic()
    report = train_super_resolution(
        layout.with_draft("super_resolution_checkpoint", folder),
        task,
        params.training,
        sources,
        Scanner.of(params.corpus, layout.cache, 1, terminal),
        named_networks(("descriptor",), image_size_px=64, device="cpu")[0],
        seed=seed,
        device="cpu",
        progress=terminal,
    )
    print(f"{time.monotonic() - started:.0f} s  {folder.name}: {report.metrics}", flush=True)


def foundation(data: Path, work: Path) -> tuple[Layout, Params]:
    """The pruned pool and the model trained on it, made once."""
    layout = Layout(work / "assets", work)
    params = load(CHECKOUT / "params.yaml").with_values(
        {
            "corpus": {"sources": [str(data / "eurosat/pool.tar")]},
            "reference": {"sources": [str(data / "eurosat/reference")]},
            "training": TRAINING,
            "super_resolution": FINE_TUNING,
            "compute": {"device": "cpu", "workers": 1},
        }
    )
    if not layout.has("pruned_subset"):
        prune(params, layout, progress=terminal)
    folder = layout.assets / "diffusion_checkpoint"
    if not (folder / "training.json").exists():
        folder.mkdir(exist_ok=True)
        train_checkpoint(layout, params.training, subset_version="", seed=0, device="cpu", progress=terminal)
    return layout, params


def images(data: Path, work: Path, part: str) -> tuple[str]:
    """A folder of links to a part of UC Merced."""
    folder = work / "ucmerced" / part
    for path in sorted((data / "ucmerced").glob("*/*.jpg")):
        link = folder / path.parent.name / path.name
        if int(path.stem[-2:]) in PARTS[part] and f"{path.parent.name}/{path.name}" != SAME and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    return (str(folder),)


def write_summary(work: Path) -> None:
    """The tables of all runs that are there."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in sorted(work.glob("*/metrics.json"))}
    parts = [heading("benchmarks.super_resolution"), said()]
    for scale, degradation, n_images in TASKS:
        rows = list(rows_of(runs, f"x{scale}-{degradation}-{n_images}"))
        if rows:
            title = f"## x{scale}, {degradation}, {n_images:,} images of fine-tuning"
            parts.append(f"{title}\n\n{table(('start', 'output', 'seeds', *MEASURES), rows)}")
    if len(parts) == 2:
        raise SystemExit(f"no run of these settings is in {work}: leave out --summary to make some")
    publish("\n\n".join(parts), RESULTS, work)


def publish(text: str, results: Path, work: Path) -> None:
    """Print the tables, and write them to `results` if they are of the test part."""
    if work.name.endswith("test"):
        results.write_text(text + "\n")
    print(text)


def said() -> str:
    """The settings and the protocol."""
    return (
        "UNet `tiny`, crops of 64 px; one foundation, which saw "
        f"{TRAINING['n_images']:,} images of EuroSAT; seeds are of the fine-tuning. 420 test images, a crop of "
        "each. PSNR (dB) and SSIM of RGB in the range 0 to 1 without a border left out; ST-LPIPS on AlexNet; the "
        "Fréchet distance in the features of the descriptor; input error: reduced result against input, grey levels. "
        f"Mean over seeds, and Student's interval of {LEVEL:.0%} over them. The last two rows of a table are "
        "differences, taken seed by seed: foundation less random weights, where both were run."
    )


def rows_of(runs: dict[str, dict[str, float]], task: str) -> Iterator[tuple[object, ...]]:
    """A row for each start and output, and for the differences of the starts."""
    by_start = {
        start: {
            int(name.rpartition("-")[2]): metrics
            for name, metrics in runs.items()
            if name.startswith(f"{task}-{start}-")
        }
        for start in STARTS
    }
    for start, output in (("", "bicubic"), *((start, output) for start in STARTS for output in OUTPUTS[1:])):
        found = by_start[start or STARTS[0]]
        if found:
            values = [[metrics[f"{name}_{output}"] for metrics in found.values()] for name in MEASURES]
            yield start or "none", output, len(found), *(spread(each) for each in values)
    one, other = (by_start[start] for start in STARTS)
    seeds = sorted(one.keys() & other.keys())
    for output in OUTPUTS[1:] if seeds else ():
        names = [f"{name}_{output}" for name in MEASURES]
        gaps = [[one[seed][name] - other[seed][name] for seed in seeds] for name in names]
        yield "difference", output, len(seeds), *(spread(each) for each in gaps)


def spread(values: list[float]) -> str:
    """Mean and half of the interval over seeds."""
    mean = mean_over_seeds(values, level=LEVEL)
    half = "" if mean.n_seeds < 2 else f" ± {mean.value - mean.low:.3g}"
    return f"{mean.value:.4g}{half}"


if __name__ == "__main__":
    main()
