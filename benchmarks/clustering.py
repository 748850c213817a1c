"""Clustering a pool that grows tenfold: training the centroids should take the same time, since its sample does.

    python -m benchmarks.clustering [--tiles 20000 200000] [--dimension 64] [--rounds 5]

Pool and reference are drawn from the same ten scenes: Gaussian clouds of equal spread, the largest three times the
smallest, so that every scene fills its sample. The scene model is fitted to the reference beforehand, as it does not
look at the pool; then the pool is placed and given scenes (it grows with the pool), the centroids are trained on the
stratified sample (it should not), and every tile is assigned (it grows). Median of the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.machine import heading
from rsprune_dagster.pruning.clustering import assign, stratified_sample, train_centroids
from rsprune_dagster.pruning.pipeline import AXES_SAMPLE, N_RESTARTS, clustering_space, project_pool, strided_sample
from rsprune_dagster.pruning.scenes import SceneModel, fit_scene_model

AIM = 1.20
N_SCENES, N_REFERENCE = 10, 2_000
SKEW = 3
N_CLUSTERS, SAMPLE_PER_SCENE, N_ITERATIONS = 60, 1000, 25


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(heading("benchmarks.clustering"), end="\n\n")
    print(f"{options.dimension} dimensions, {N_CLUSTERS} clusters, {SAMPLE_PER_SCENE} tiles a scene train them\n")
    print("| tiles | in training | placed, s | training, s | of the first | aim | assigned, s |")
    print("|---:|---:|---:|---:|---:|---|---:|")
    first_s = 0.0
    for n_tiles in options.tiles:
        n_trained, placed_s, training_s, assigned_s = measure(n_tiles, options.dimension, options.rounds)
        first_s = first_s or training_s
        of_first = f"{training_s / first_s:.2f} | {AIM:.2f}"
        print(
            f"| {n_tiles:,} | {n_trained:,} | {placed_s:.2f} | {training_s:.2f} | {of_first} | {assigned_s:.2f} |",
            flush=True,
        )


def measure(n_tiles: int, dimension: int, rounds: int) -> tuple[int, float, float, float]:
    """Tiles in training, and median seconds of placing, training and assigning."""
    pool, _ = clouds(n_tiles, dimension, np.geomspace(1, SKEW, N_SCENES), seed=1)
    model = known_scenes(dimension)
    space = clustering_space(pool[strided_sample(n_tiles, AXES_SAMPLE)], model)
    seconds = []
    for number in range(rounds):
        placed_s, (points, scene, _) = timed(project_pool, lambda rows: pool[rows], n_tiles, space, model)
        training_s, (n_trained, centroids) = timed(train, points, scene, number)
        assigned_s, _ = timed(assign, points, centroids)
        seconds.append((placed_s, training_s, assigned_s))
    placed_s, training_s, assigned_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    return n_trained, placed_s, training_s, assigned_s


def train(points: np.ndarray, scene: np.ndarray, seed: int) -> tuple[int, Any]:
    """The sample's size and the centroids, as the pruning trains them."""
    sample = stratified_sample(scene, n_per_scene=SAMPLE_PER_SCENE, seed=seed)
    centroids = train_centroids(points[sample], N_CLUSTERS, seed=seed, n_iterations=N_ITERATIONS, n_restarts=N_RESTARTS)
    return len(sample), centroids


def known_scenes(dimension: int) -> SceneModel:
    """The model of a balanced reference."""
    vectors, scene = clouds(N_REFERENCE, dimension, np.ones(N_SCENES), seed=2)
    return fit_scene_model(vectors, scene)


def clouds(n: int, dimension: int, weights: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (n, d) around N_SCENES centres, and the centre of each (n,); `weights` are the scenes' sizes."""
    centres = np.random.default_rng(0).normal(size=(N_SCENES, dimension)).astype(np.float32)
    rng = np.random.default_rng(seed)
    scene = rng.choice(N_SCENES, n, p=weights / weights.sum())
    vectors = centres[scene] + rng.standard_normal((n, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), scene


def timed(work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    result = work(*given)
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
