"""Laws of the clusters: rare scenes are heard, threads and order leave no trace, too few tiles are no error."""

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from prune_runs import PROJECT

from rsprune_dagster.config.params import load
from rsprune_dagster.pruning import clustering, pipeline
from rsprune_dagster.pruning.clustering import (
    Centroids,
    ClusterQuality,
    assign,
    choose_k,
    cluster_quality,
    stratified_sample,
    train_centroids,
)
from rsprune_dagster.pruning.pipeline import (
    ClusteringSpace,
    SceneClusters,
    Selection,
    clustering_space,
    reference_targets,
    select,
    strided_sample,
    unsupervised_whitening,
    with_pool_priors,
)
from rsprune_dagster.pruning.scenes import LinearProjection, SceneModel, fit_scene_model, shrunk, within_scatter
from rsprune_dagster.pruning.selection import nested_order, no_target, rank_tiles

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
    assert not np.array_equal(rows, stratified_sample(scene, n_per_scene=40, seed=2))


def test_scenes_of_one_size_are_drawn_independently() -> None:
    scene = np.repeat([0, 1], [500, 500])
    rows = stratified_sample(scene, n_per_scene=30, seed=1)
    assert not np.array_equal(rows[:30], rows[30:] - 500)


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
    twins = Centroids(np.array([[1.0], [0.0], [0.0]], np.float32), 3)
    assert assign(np.zeros((2, 1)), twins)[0].tolist() == [1, 1]


def test_centroids_are_the_means_of_their_tiles() -> None:
    vectors, _ = mixture([40, 30, 20], seed=0)
    centroids = train_centroids(vectors, 3, seed=0, n_iterations=50)
    cluster, _ = assign(vectors, centroids)
    means = [vectors[cluster == index].mean(axis=0) for index in range(3)]
    assert np.allclose(centroids.points, means, atol=1e-5)


def test_all_tiles_of_the_sample_train_also_if_they_are_many_for_each_centroid() -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    assert np.allclose(train_centroids(vectors, 1, seed=0, n_iterations=2).points, vectors.mean(axis=0), atol=1e-6)


def test_small_clumps_far_away_start_with_a_centroid_of_their_own() -> None:
    """k-means++: nine clumps of 5 tiles beside one of 1,000, where most random starts lie in the large one."""
    rng = np.random.default_rng(0)
    places = np.repeat(np.arange(10), [1000, *[5] * 9])
    vectors = (np.eye(10)[places] + 0.001 * rng.normal(size=(len(places), 10))).astype(np.float32)
    assert assign(vectors, train_centroids(vectors, 10, seed=0, n_iterations=5))[1].max() < 0.1


def test_of_several_runs_the_best_is_kept() -> None:
    vectors = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)

    def loss(n_restarts: int, n_iterations: int = 8) -> float:
        found = train_centroids(vectors, 20, seed=0, n_iterations=n_iterations, n_restarts=n_restarts)
        return float(np.square(assign(vectors, found)[1]).sum())

    assert loss(16) < 0.98 * loss(1)
    assert loss(1, n_iterations=1) > 1.1 * loss(1)


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
    assert cluster_quality(np.array([0, 0, 0, 7]), np.array([5, 5, 1, 1]), 8).purity == 0.75
    assert cluster_quality(np.zeros(4), np.zeros(4), 1).nmi == 1


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


@pytest.mark.parametrize(("nmi", "k"), [({2: 0.84, 3: 0.86, 4: 1.0}, 3), ({2: 0.42, 3: 0.3, 4: 0.5}, 4)])
def test_the_smallest_number_of_clusters_that_recovers_85_percent_of_the_most_is_chosen(
    nmi: dict[int, float], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustering, "cluster_quality", lambda cluster, truth, n: ClusterQuality(n, nmi[n], 1.0))
    vectors, scene = mixture([20, 20], seed=0)
    assert choose_k(vectors, scene, (4, 2, 3, 2), seed=0)[0] == k


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


LATE_LIBRARY = """
from threadpoolctl import threadpool_info
from rsprune_dagster.pruning.numerics import one_thread
def n_threads():
    with one_thread():
        return [library["num_threads"] for library in threadpool_info()]
early = n_threads()
import faiss
late = n_threads()
assert len(late) > len(early) > 0, (early, late)
assert set(early + late) == {1}, (early, late)
"""


def test_a_library_that_comes_later_is_held_to_one_thread_too() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", LATE_LIBRARY], env=environment, check=True)


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


SIZES = [400, 100, 60, 40]


@pytest.fixture(scope="module")
def model() -> SceneModel:
    return fit_scene_model(*mixture([40] * 4, seed=1))


def test_the_space_is_the_discriminant_axes_beside_the_first_16_whitened_axes_of_the_pool(model: SceneModel) -> None:
    sample, _ = mixture(SIZES, seed=0)
    reference, scene = mixture([40] * 4, seed=1)
    space = clustering_space(sample, model)
    known, found = space.parts
    assert known is model.discriminant.projection and (known.n_axes, found.n_axes) == (3, 16)
    within = shrunk(within_scatter(reference.astype(np.float64), scene), model.held_out.shrinkage)
    assert np.allclose(found.axes.T @ within @ found.axes, np.eye(16), atol=1e-6)
    largest = np.linalg.eigvalsh(model.whitening.T @ np.cov(sample.T, bias=True) @ model.whitening)[:-17:-1]
    assert found.project(sample).var(axis=0) == pytest.approx(largest, rel=1e-5)


def test_each_part_of_the_space_is_centred_and_has_a_variance_of_one_over_the_pool(model: SceneModel) -> None:
    sample = mixture(SIZES, seed=0)[0] + 0.1
    space = clustering_space(sample, model)
    for part, shift, scale in zip(space.parts, space.shifts, space.scales, strict=True):
        points = (part.project(sample) - shift) / scale
        assert np.allclose(points.mean(axis=0), 0, atol=1e-9)
        assert points.var(axis=0).sum() == pytest.approx(1)


def test_a_point_is_divided_by_the_root_of_its_length() -> None:
    plain = LinearProjection(np.zeros(2), np.eye(2))
    space = ClusteringSpace((plain, plain), (np.zeros(2), np.array([1.0, 0.0])), (1.0, 0.5))
    placed = space.project(np.array([[3.0, 4.0], [0.0, 0.0], [0.5, 0.0]]))
    each = np.array([[3.0, 4.0, 4.0, 8.0], [0.0, 0.0, -2.0, 0.0], [0.5, 0.0, -1.0, 0.0]])
    assert placed == pytest.approx(each / np.sqrt(np.linalg.norm(each, axis=1, keepdims=True)), rel=1e-6)
    assert ClusteringSpace((plain,), (np.zeros(2),), (1.0,)).project(np.zeros((1, 2))).tolist() == [[0, 0]]


def test_without_a_reference_the_scatter_comes_from_five_neighbours_of_4000_tiles_shrunk_by_three_tenths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[float], int]] = []

    def scatter(rows: np.ndarray, n_neighbours: int) -> np.ndarray:
        asked.append((rows[[0, 1, -1], 0].tolist(), n_neighbours))
        assert len(rows) == min(4000, len(pool))
        return np.diag([4.0, 1.0])

    monkeypatch.setattr(pipeline, "neighbour_scatter", scatter)
    for n in (8000, 4):
        pool = np.stack([np.arange(n), np.zeros(n)], axis=1)
        assert np.allclose(unsupervised_whitening(pool), np.diag(1 / np.sqrt([3.55, 1.45])), atol=1e-12)
    assert asked == [([0, 2, 7999], 5), ([0, 1, 3], 3)]


def test_a_strided_sample_has_both_ends_and_even_steps() -> None:
    assert strided_sample(10, 4).tolist() == [0, 3, 6, 9]
    assert strided_sample(3, 9).tolist() == [0, 1, 2]


def test_priors_follow_a_pool_of_the_reference_s_kind_and_stay_equal_in_a_foreign_one() -> None:
    same, foreign = (chosen(kind, sizes=SIZES)[0].clusters for kind in ("same", "foreign"))
    assert same.fitted is not None and same.fitted.scenes is not None
    assert foreign.fitted is not None and foreign.fitted.scenes is not None
    expected = (np.array(SIZES) / sum(SIZES) + 0.25 / 4) / 1.25
    assert same.fitted.scenes.priors == pytest.approx(expected, abs=0.02)
    assert np.array_equal(foreign.fitted.scenes.priors, np.full(4, 0.25))


@pytest.mark.parametrize(("apart", "adapts"), [(0.24, True), (0.26, False)])
def test_a_pool_is_foreign_from_a_domain_shift_of_a_quarter_on(
    apart: float, adapts: bool, model: SceneModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "domain_shift", lambda novelty: apart)
    sample, _ = mixture(SIZES, seed=0)
    assert (with_pool_priors(model, sample) is not model) is adapts
    found, _ = chosen("same", sizes=[40, 40, 40])
    assert (found.clusters.balance_over == "scenes") is adapts and found.clusters.domain_shift == apart


def test_axes_and_priors_come_from_20000_tiles_and_centroids_from_a_stratified_sample_the_best_of_five(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    trained: list[tuple[int, int]] = []

    def sampled(n_tiles: int, n_rows: int) -> np.ndarray:
        asked.append((n_tiles, n_rows))
        return strided_sample(n_tiles, n_rows)

    def training(vectors: np.ndarray, k: int, **options: Any) -> Centroids:
        trained.append((len(vectors), options["n_restarts"]))
        return train_centroids(vectors, k, **options)

    monkeypatch.setattr(pipeline, "strided_sample", sampled)
    monkeypatch.setattr(pipeline, "train_centroids", training)
    monkeypatch.setattr(pipeline, "TRAINING_TILES_PER_SCENE", 200)
    found, _ = chosen("same", sizes=SIZES)
    assert asked == [(600, 20_000)]
    n_assigned = np.bincount(found.scene, minlength=4)
    assert trained == [(int(np.minimum(n_assigned, 200).sum()), 5)]


def test_a_scene_with_20_reference_tiles_is_herded_toward_them() -> None:
    labels = np.repeat(["many", "few"], [20, 19])
    vectors = np.arange(39 * 2, dtype=np.float32).reshape(39, 2)
    target = reference_targets(("few", "many"), vectors, labels)
    assert target(0, 0) is None
    assert np.array_equal(target(1, 0), vectors[:20])
    assert reference_targets(("few",), None, None) is no_target


def test_a_pool_of_the_reference_s_kind_is_ranked_by_scenes_toward_the_reference() -> None:
    found, _ = chosen("same", sizes=SIZES)
    vectors, _ = mixture(SIZES, seed=0)
    reference, labels = mixture([40] * 4, seed=1)
    expected = rank_tiles(
        lambda rows: vectors[rows],
        found.scene,
        np.zeros(600, int),
        scene_exponent=0.0,
        cluster_exponent=0.0,
        target=lambda scene, cluster: reference[labels == scene],
    )
    assert np.array_equal(found.order, expected)


@pytest.mark.parametrize("kind", ["foreign", "none"])
def test_another_pool_is_ranked_by_clusters_with_quotas_that_saturate_at_their_half_size(kind: str) -> None:
    found, _ = chosen(kind, sizes=SIZES)
    cluster = np.unique(found.cluster, return_inverse=True)[1]
    place = np.empty(600, int)
    for index in range(cluster.max() + 1):
        own = found.order[cluster[found.order] == index]
        place[own] = np.arange(len(own))
    assert np.array_equal(np.argsort(nested_order(cluster, place, exponent=0.0, half_size=30)), found.order)
    assert kind == "none" or len(found.quality) == 3
    assert found.clusters.centroids.n_asked == (6 if kind == "none" else found.clusters.centroids.n_clusters)
