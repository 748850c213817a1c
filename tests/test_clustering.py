"""Laws of the clusters: rare scenes are heard, threads and order leave no trace, too few tiles are no error."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from prune_runs import PROJECT

from rsprune_dagster.config.params import load
from rsprune_dagster.pruning.clustering import assign, choose_k, cluster_quality, stratified_sample, train_centroids
from rsprune_dagster.pruning.pipeline import SceneClusters, Selection, select

DEFAULTS = load(PROJECT / "params.yaml")


def mixture(sizes: list[int], *, seed: int, dimension: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around random centres, in mixed order, and their scene. The centres are the same for every seed."""
    rng = np.random.default_rng(seed)
    scene = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = np.random.default_rng(99).normal(size=(len(sizes), dimension))
    vectors = centres[scene] + 0.4 * rng.normal(size=(len(scene), dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), scene


def test_the_sample_takes_as_many_of_each_scene_as_there_are_up_to_the_limit() -> None:
    scene = np.repeat([0, 1, 2], [1000, 50, 5])
    rows = stratified_sample(scene, n_per_scene=40, seed=1)
    assert np.bincount(scene[rows]).tolist() == [40, 40, 5]
    assert np.all(np.diff(rows) > 0)


def test_one_scene_s_sample_does_not_depend_on_the_others() -> None:
    scene = np.repeat([0, 1], [500, 500])
    alone = stratified_sample(scene[:500], n_per_scene=30, seed=1)
    assert np.array_equal(alone, stratified_sample(scene, n_per_scene=30, seed=1)[:30])


def test_the_nearest_centroid_is_taken_and_rows_do_not_depend_on_each_other() -> None:
    vectors, _ = mixture([300, 300, 300, 600], seed=0)
    centroids = train_centroids(vectors, 8, seed=0, n_iterations=10)
    cluster, distance = assign(vectors, centroids)
    direct = np.linalg.norm(vectors[:, None] - centroids.points[None], axis=2)
    assert np.allclose(distance, direct.min(axis=1), atol=1e-5)
    shuffle = np.random.default_rng(0).permutation(len(vectors))
    again = assign(vectors[shuffle], centroids)
    assert np.array_equal(again[0], cluster[shuffle])
    assert np.array_equal(again[1], distance[shuffle])


def test_fewer_distinct_tiles_than_clusters_are_their_own_centroids() -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    centroids = train_centroids(vectors, 10, seed=0, n_iterations=5)
    assert centroids.n_clusters == 4
    assert "4 clusters instead of 10" in centroids.note()
    assert np.all(assign(vectors, centroids)[1] == 0)
    assert train_centroids(vectors, 3, seed=0, n_iterations=5).note() == ""


def test_quality_of_a_perfect_and_of_a_useless_clustering() -> None:
    truth = np.tile([0, 1, 2, 3], 25)
    perfect, useless = cluster_quality(3 - truth, truth, 4), cluster_quality(np.zeros(100), truth, 1)
    assert (perfect.nmi, perfect.purity) == pytest.approx((1, 1))
    assert (useless.nmi, useless.purity) == pytest.approx((0, 0.25))


def test_quality_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import normalized_mutual_info_score

    rng = np.random.default_rng(0)
    cluster, truth = rng.integers(0, 7, 500), rng.integers(0, 4, 500)
    assert cluster_quality(cluster, truth, 7).nmi == pytest.approx(normalized_mutual_info_score(truth, cluster))


def test_k_is_chosen_by_how_well_known_scenes_come_back() -> None:
    vectors, scene = mixture([60] * 6, seed=0)
    k, measured = choose_k(vectors, scene, (2, 6, 40), seed=0)
    assert k == 6
    assert [quality.n_clusters for quality in measured] == [2, 6, 40]


PRINT_HASH = """
import hashlib, numpy as np
from rsprune_dagster.pruning.clustering import assign, train_centroids
vectors = np.random.default_rng(0).normal(size=(6000, 40)).astype(np.float32)
centroids = train_centroids(vectors, 50, seed=3, n_iterations=10, n_restarts=2)
cluster, distance = assign(vectors, centroids)
print(hashlib.sha256(centroids.points.tobytes() + cluster.tobytes() + distance.tobytes()).hexdigest())
"""


def test_the_number_of_threads_leaves_no_trace() -> None:
    hashes = {
        subprocess.run(
            [sys.executable, "-c", PRINT_HASH],
            env={**os.environ, "OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "2")
    }
    assert len(hashes) == 1


def chosen(kind: str, *, sizes: list[int]) -> tuple[Selection, np.ndarray]:
    """The selection from a pool of `sizes`, by a reference of the `same` kind, a `foreign` one or `none`."""
    vectors, scene = mixture(sizes, seed=0)
    reference, labels = mixture([40] * len(sizes), seed=1)
    if kind == "foreign":
        rng = np.random.default_rng(5)
        reference = (rng.normal(size=(8, 24))[labels] + 0.4 * rng.normal(size=reference.shape)).astype(np.float32)
        reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    known = (None, None) if kind == "none" else (reference, labels.astype(str))
    clustering = DEFAULTS.clustering.model_copy(
        update={"candidates": (3, 6, 12), "n_clusters": 6 if kind == "none" else 0}
    )
    return select(vectors, *known, clustering, DEFAULTS.selection, seed=0), scene


@pytest.mark.parametrize("kind", ["same", "foreign", "none"])
def test_rare_scenes_gain_whatever_the_reference(kind: str) -> None:
    selection, scene = chosen(kind, sizes=[600, 300, 150, 75, 40, 35])
    kept = selection.order[:180]
    assert sorted(selection.order.tolist()) == list(range(len(scene)))
    assert entropy(scene[kept]) > entropy(scene) + 0.1
    assert selection.clusters.balance_over == ("scenes" if kind == "same" else "clusters")


@pytest.mark.parametrize("kind", ["same", "foreign", "none"])
def test_the_same_call_gives_the_same_bytes(kind: str) -> None:
    def digest(found: SceneClusters, order: np.ndarray) -> str:
        return hashlib.sha256(order.tobytes() + found.cluster.tobytes() + found.distance.tobytes()).hexdigest()

    first, _ = chosen(kind, sizes=[200, 100, 50, 30, 20, 20])
    second, _ = chosen(kind, sizes=[200, 100, 50, 30, 20, 20])
    assert digest(first.clusters, first.order) == digest(second.clusters, second.order)


def entropy(scene: np.ndarray) -> float:
    """Of the scene shares, nats."""
    shares = np.bincount(scene) / len(scene)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
