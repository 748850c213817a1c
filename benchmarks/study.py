"""Does pruning pay? The same training on the full corpus, on random parts and on pruned ones, on EuroSAT.

    python -m benchmarks.study [--data ../shared/data] [--work .state/study] [--arms NAME ...] [--seeds 3]
    python -m benchmarks.study --tiles     python -m benchmarks.study --summary

Pool: eurosat/pool.tar, 15,606 unlabelled tiles, about 6:1 between its largest and smallest scene. Pruned with
MobileNetV2 and eurosat/reference. Held out: 200 tiles a class of eurosat/labelled.tar, which neither pruning nor
training sees; it is checked that none of them is in the pool, or nearly. Measured on SqueezeNet, which pruning did not
use, and on MobileNetV2, with 1,000 samples: their Fréchet distance has a bias of some 1,000 on SqueezeNet at that
count, the same for all arms, and is nobody's FID. The denoiser has no scenes.

The work is kept below --work: run again to go on after an interruption or to add arms and seeds. The first seed of
every arm comes first. --tiles measures the chosen tiles themselves, which is what a perfect model would get. --summary
writes benchmarks/results/study.md and docs/study.svg from what is there.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.labelled_sets import ENCODERS
from benchmarks.machine import heading
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import load
from rsprune_dagster.corpus.options import read_options
from rsprune_dagster.corpus.shards import ShardCache
from rsprune_dagster.diffusion.tile_set import tile_set
from rsprune_dagster.diffusion.training import TrainingOptions
from rsprune_dagster.evaluation.evaluate import Settings
from rsprune_dagster.evaluation.features import encoder
from rsprune_dagster.evaluation.intervals import Resampling
from rsprune_dagster.evaluation.leakage import raise_on_leaks
from rsprune_dagster.stages.pipeline import prune
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.study.arms import PrunedCorpus, parse_arm, read_pruned
from rsprune_dagster.study.results import read_results
from rsprune_dagster.study.summary import Summary, mean_over_seeds, summarize
from rsprune_dagster.study.trainings import (
    EvaluationSetup,
    Study,
    arm_tiles,
    held_out_leaks,
    image_set_of_tiles,
    run_arm,
    scores_of,
)
from rsprune_dagster.utils.progress import silent
from rsprune_dagster.viz.markdown import markdown_table, table
from rsprune_dagster.viz.study import arm_label, arms_table, convergence, spread
from rsprune_dagster.viz.template import picture

CHECKOUT = Path(__file__).resolve().parents[1]
PARAMS = CHECKOUT / "params.yaml"
N_HELD_OUT_PER_SCENE = 200
FEATURE_SIZE_PX = 128
TILES = "tiles.json"
ARMS = ("full", "random-0.15", "rsprune-0.15")
RESULTS = CHECKOUT / "benchmarks" / "results" / "study.md"
PLOT = CHECKOUT / "docs" / "study.svg"
SCORES = ("frechet_squeezenet1_0", "kernel_squeezenet1_0", "kernel_mobilenet_v2")
SHARES = ("precision_squeezenet1_0", "recall_squeezenet1_0", "coverage_squeezenet1_0")
LEVEL = 0.95


def study(image_size_px: int = 32) -> Study:
    """What fits an hour or two on a core."""
    return Study(
        training=TrainingOptions(
            preset="tiny",
            n_images=1,
            batch_size=16,
            micro_batch_size=16,
            learning_rate=1e-3,
            warmup_images=320,
            ema_half_life_images=1920,
            scene_dropout=0.0,
            precision="bfloat16",
            seed=0,
            save_every_images=2400,
        ),
        image_size_px=image_size_px,
        checkpoints=(4800, 9600, 19200),
        n_samples=1000,
        sampler="dpm_solver",
        sample_steps=10,
        sample_batch_size=100,
    )


def main() -> None:
    """Run what is left of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=CHECKOUT / "../shared/data")
    parser.add_argument("--work", type=Path, default=CHECKOUT / ".state" / "study")
    parser.add_argument("--arms", nargs="*", default=[*ARMS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--summary", action="store_true")
    asked = parser.parse_args()
    if asked.summary:
        write_summary(asked.work)
        return
    corpus = pruned(asked.data, asked.work / "prune")
    setup = setup_of(asked.data, asked.work, corpus)
    runs = [(seed, name) for seed in range(asked.seeds) for name in asked.arms]
    if asked.tiles:
        measure_tiles(runs, corpus, setup, asked.work / TILES)
        return
    started = time.monotonic()
    for seed, name in runs:
        arm = parse_arm(name)
        results = asked.work / "results"
        done = run_arm(study(), arm, corpus, setup, results, seed=seed, workers=1, device="cpu")
        last = ", ".join(f"{score} {done.points[-1].scores[score]:.4g}" for score in SCORES)
        minutes = (time.monotonic() - started) / 60
        print(f"{minutes:6.1f} min  {name} seed {seed}, {done.n_tiles:,} tiles: {last}", flush=True)


def measure_tiles(runs: list[tuple[int, str]], corpus: PrunedCorpus, setup: EvaluationSetup, target: Path) -> None:
    """As many real tiles of each arm as samples are drawn, scored as samples are."""
    known: dict[str, dict[str, float]] = json.loads(target.read_text()) if target.exists() else {}
    for seed, name in runs:
        if f"{name} {seed}" in known:
            continue
        tiles = arm_tiles(study(), parse_arm(name), corpus, seed=seed, workers=1)
        n_drawn = min(study().n_samples, len(tiles))
        drawn = np.random.default_rng(seed).choice(len(tiles), n_drawn, replace=False)
        known[f"{name} {seed}"] = {**scores_of(tiles.images(drawn), setup), "n_drawn": n_drawn}
        target.write_text(json.dumps(known, indent=1) + "\n")
        print(name, seed, {score: round(known[f"{name} {seed}"][score], 4) for score in SCORES}, flush=True)


def write_summary(work: Path) -> None:
    """The tables and the plot of the study whose result is the newest."""
    newest = max((work / "results").rglob("[0-9]*.json"), key=lambda path: path.stat().st_mtime)
    results = read_results(newest.parent.parent)
    summaries = [summarize(results, score=score, level=LEVEL) for score in (*SCORES, *SHARES)]
    known = json.loads((work / TILES).read_text()) if (work / TILES).exists() else {}
    main, others = summaries[0], summaries[1:]
    parts = [
        heading("benchmarks.study"),
        said_of(study()),
        f"## {main.score}",
        markdown_table(arms_table(main.as_json())),
        "\n".join(f"* {sentence}" for sentence in main.verdicts()),
        "![convergence](../../docs/study.svg)",
        "## The chosen tiles themselves\n\nWhat a perfect model would get: as many real tiles of each arm as samples.",
        tiles_table(known, main),
        *(f"## {one.score}\n\n{markdown_table(arms_table(one.as_json()))}" for one in others),
    ]
    RESULTS.write_text("\n\n".join(parts) + "\n")
    PLOT.write_bytes(picture(convergence(main.as_json())))
    print("\n\n".join(parts[2:5]))


def said_of(study: Study) -> str:
    """The numbers of the study, in a paragraph."""
    training = study.training
    return (
        f"UNet `{training.preset}` without scenes, {study.image_size_px} px, {training.precision}, batches of "
        f"{training.batch_size}, Adam at {training.learning_rate:g}, averaged weights with a half-life of "
        f"{training.ema_half_life_images:,} images; {study.n_samples:,} samples at each checkpoint, {study.sampler} "
        f"with {study.sample_steps} steps; 2,000 held-out tiles, 200 a class. Intervals: {LEVEL:.0%}, Student's t over "
        "seeds; differences are taken seed by seed. `images needed`: until the full corpus' final score, median."
    )


def tiles_table(known: dict[str, dict[str, float]], summary: Summary) -> str:
    """The mean over seeds of what each arm's own tiles score."""
    rows = []
    for name in dict.fromkeys([*(arm.arm for arm in summary.arms), *(key.split()[0] for key in known)]):
        own = [scores for key, scores in known.items() if key.split()[0] == name]
        if own:
            means = [mean_over_seeds([scores[score] for scores in own], level=LEVEL) for score in SCORES]
            rows.append((arm_label(name), len(own), int(own[0]["n_drawn"]), *(spread(asdict(mean)) for mean in means)))
    return table(("arm", "seeds", "tiles drawn", *SCORES), rows)


def pruned(data: Path, out: Path) -> PrunedCorpus:
    """The pool, pruned once."""
    layout, params = Layout(out / "assets", out), load(PARAMS)
    if not (layout.has("pruned_subset") and layout.file("summary").is_file()):
        given: dict[str, dict[str, Any]] = {
            "corpus": {"sources": [str(data / "eurosat/pool.tar")]},
            "reference": {"sources": [str(data / "eurosat/reference")]},
            "embedding": {"backbone": "mobilenet_v2", "weights": str(data / ENCODERS["mobilenet_v2"])},
            "compute": {"workers": 1},
        }
        prune(params.with_values(given), layout)
    return read_pruned(layout, params.selection)


def setup_of(data: Path, work: Path, corpus: PrunedCorpus) -> EvaluationSetup:
    """The held-out tiles in both networks' features; that none of them is in the pool is checked here."""
    networks = [
        encoder(name, str(data / ENCODERS[name]), FEATURE_SIZE_PX, device="cpu")
        for name in ("squeezenet1_0", "mobilenet_v2")
    ]
    table = balanced(labelled(data, work), n_per_scene=N_HELD_OUT_PER_SCENE)
    size = study().image_size_px
    held_out = image_set_of_tiles(tile_set(table, read_options(work / "labelled"), image_size_px=size), networks)
    pool = corpus.manifest.append_column("scene", pa.array([""] * corpus.manifest.num_rows))
    options = read_options(corpus.layout.folder("raw_corpus"))
    everything = image_set_of_tiles(tile_set(pool, options, image_size_px=size), [])
    found = held_out_leaks(held_out, everything, correlation=corpus.selection.near_duplicate_correlation, workers=1)
    raise_on_leaks(found, held_out.identities, everything.identities, what="held-out")
    print(f"none of the {len(held_out):,} held-out tiles is in the pool, or nearly", flush=True)
    settings = Settings(Resampling(n_resamples=2))  # the intervals are over seeds
    return EvaluationSetup(networks, held_out, settings)


def labelled(data: Path, work: Path) -> pa.Table:
    """The manifest of eurosat/labelled.tar, with the class of each tile as its scene."""
    folder = work / "labelled"
    if not (folder / "manifest.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        params = load(PARAMS).corpus
        options = read_options(work / "prune" / "assets" / "raw_corpus")
        scanner = Scanner(options, params.shard_size, ShardCache(work / "cache"), 1, silent)
        scan([str(data / "eurosat/labelled.tar")], folder, scanner, labelled=True, label="labelled")
    table = pq.read_table(folder / "manifest.parquet")
    return table.append_column("scene", table.column("label"))


def balanced(table: pa.Table, *, n_per_scene: int) -> pa.Table:
    """The first tiles of each scene in content order, which is as good as random."""
    scenes = np.asarray(table.column("scene").to_pylist())
    rows = [np.flatnonzero(scenes == scene)[:n_per_scene] for scene in np.unique(scenes)]
    return table.take(pa.array(np.sort(np.concatenate(rows))))


if __name__ == "__main__":
    main()
