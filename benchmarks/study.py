"""Does pruning pay? The same training on the full corpus, on random parts and on pruned ones, on EuroSAT.

    python -m benchmarks.study [--data ../shared/data] [--work .state/study] [--arms NAME ...] [--seeds 3] [--summary]

Pool: eurosat/pool.tar, 15,606 unlabelled tiles, about 6:1 between its largest and smallest scene. Pruned with
MobileNetV2 and eurosat/reference. Held out: 200 tiles a class of eurosat/labelled.tar, which neither pruning nor
training sees. Measured on SqueezeNet, which pruning did not use, and on MobileNetV2.

The work is kept below --work: run again to go on after an interruption or to add arms and seeds. One arm and seed after
the other, the first seed of every arm first. --summary writes the table and the plot of what is there and stops.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.labelled_sets import ENCODERS
from rsprune_dagster.corpus.shards import ShardCache
from rsprune_dagster.diffusion.tiles import tile_set
from rsprune_dagster.diffusion.training import TrainingOptions
from rsprune_dagster.evaluation.evaluate import Settings
from rsprune_dagster.evaluation.features import encoder
from rsprune_dagster.evaluation.intervals import Resampling
from rsprune_dagster.evaluation.leakage import leaks_sentence
from rsprune_dagster.evaluation.study import Study, Yardstick, held_out_leaks, run_arm, seen_tiles
from rsprune_dagster.evaluation.study_arms import PrunedCorpus, parse_arm, read_pruned
from rsprune_dagster.params import load
from rsprune_dagster.progress import silent
from rsprune_dagster.pruning.steps.scan import Scanner, read_options, scan
from rsprune_dagster.pruning.steps.select import StageFolders

CHECKOUT = Path(__file__).resolve().parents[1]
PARAMS = CHECKOUT / "params.yaml"
N_HELD_OUT_PER_SCENE = 200
FEATURE_SIZE_PX = 128
ARMS = ("full", "random-0.15", "rsprune-0.15")
LATER_ARMS = (
    "stratified_random-0.15",
    "hierarchical_kmeans-0.15",
    "semdedup-0.15",
    "rsprune-0.05",
    "rsprune-0.3",
    "kmeans_uniform-0.15",
    "random-0.05",
    "random-0.3",
)


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
    asked = parser.parse_args()
    corpus = pruned(asked.data, asked.work / "prune")
    yardstick = yardstick_of(asked.data, asked.work, corpus)
    started = time.monotonic()
    for seed in range(asked.seeds):
        for name in asked.arms:
            done = run_arm(
                study(),
                parse_arm(name),
                corpus,
                yardstick,
                asked.work / "results",
                seed=seed,
                workers=1,
                device="cpu",
                progress=silent,
            )
            last = ", ".join(f"{score} {value:.4g}" for score, value in done.points[-1].scores.items())
            minutes = (time.monotonic() - started) / 60
            print(f"{minutes:6.1f} min  {name} seed {seed}, {done.n_tiles:,} tiles: {last}", flush=True)


def pruned(data: Path, out: Path) -> PrunedCorpus:
    """The pool, pruned by the product's own command; once."""
    assets = out / ".rsprune" / "assets"
    if not (assets / "pruned_subset").is_dir():
        weights = data / ENCODERS["mobilenet_v2"]
        command = [
            sys.executable,
            "-m",
            "rsprune_dagster.cli",
            "prune",
            str(data / "eurosat/pool.tar"),
            "--out",
            str(out),
        ]
        command += ["--reference", str(data / "eurosat/reference"), "--backbone", "mobilenet_v2"]
        subprocess.run([*command, "--weights", str(weights), "--workers", "1"], check=True)
    folders = StageFolders(
        corpus=assets / "raw_corpus",
        scores=assets / "entropy_scores",
        embeddings=assets / "embeddings",
        clusters=assets / "scene_clusters",
    )
    return read_pruned(folders, assets / "pruned_subset", load(PARAMS).selection)


def yardstick_of(data: Path, work: Path, corpus: PrunedCorpus) -> Yardstick:
    """The held-out tiles in both networks' features; that none of them is in the pool is checked here."""
    networks = [
        encoder(name, str(data / ENCODERS[name]), FEATURE_SIZE_PX, device="cpu")
        for name in ("squeezenet1_0", "mobilenet_v2")
    ]
    table = balanced(labelled(data, work), n_per_scene=N_HELD_OUT_PER_SCENE)
    size = study().image_size_px
    held_out = seen_tiles(tile_set(table, read_options(work / "labelled"), image_size_px=size), networks)
    pool = corpus.manifest.append_column("scene", pa.array([""] * corpus.manifest.num_rows))
    everything = seen_tiles(tile_set(pool, read_options(corpus.folders.corpus), image_size_px=size), [])
    found = held_out_leaks(held_out, everything, correlation=corpus.selection.near_duplicate_correlation, workers=1)
    n = len(held_out)
    print(
        leaks_sentence(found, held_out.identities, everything.identities, what="held-out")
        if found
        else f"none of the {n:,} held-out tiles is in the pool, or nearly",
        flush=True,
    )
    resampling = Resampling(level=0.95, n_resamples=2, seed=0)  # the intervals are over seeds
    settings = Settings(
        resampling=resampling,
        n_neighbours=5,
        min_per_scene=20,
        held_out_quantile=0.01,
        copy_neighbours=20,
        near_duplicate_correlation=corpus.selection.near_duplicate_correlation,
        on_leak="refuse",
    )
    return Yardstick(networks, held_out, settings)


def labelled(data: Path, work: Path) -> pa.Table:
    """The manifest of eurosat/labelled.tar, with the class of each tile as its scene."""
    folder = work / "labelled"
    if not (folder / "manifest.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        params = load(PARAMS).corpus
        options = read_options(work / "prune" / ".rsprune" / "assets" / "raw_corpus")
        scanner = Scanner(options, params.patch_grid, params.shard_size, ShardCache(work / "cache"), 1, silent)
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
