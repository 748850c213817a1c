"""Every peer gives a nested order of distinct rows, twice the same; each does what its paper says."""

from dataclasses import replace

import numpy as np
import pytest

from rsprune_dagster.pruning.baselines import BASELINES, Candidates, hierarchy, highest_earlier_cosine, kmeans, places
from rsprune_dagster.utils.errors import UsageError

SIZES = [150, 60, 30, 15, 5]


def pool(seed: int = 0, n_kept: int = 60) -> Candidates:
    """Five blobs, thirty to one, shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(5), SIZES))
    vectors = (np.eye(8)[labels] * 6 + rng.normal(size=(len(labels), 8))).astype(np.float32)
    return Candidates(lambda rows: vectors[rows], len(labels), n_kept, seed, n_clusters=10, labels=labels)


@pytest.mark.parametrize("name", BASELINES)
def test_distinct_rows_enough_of_them_twice_the_same(name: str) -> None:
    order = BASELINES[name](pool())
    assert len(order) >= 60 and len(np.unique(order)) == len(order)
    assert order.min() >= 0 and order.max() < 260
    assert np.array_equal(order, BASELINES[name](pool()))


@pytest.mark.parametrize("name", BASELINES)
def test_a_smaller_subset_lies_inside_a_greater(name: str) -> None:
    assert np.array_equal(BASELINES[name](pool())[:20], BASELINES[name](replace(pool(), n_kept=20))[:20])


@pytest.mark.parametrize("name", BASELINES)
def test_a_pool_of_one_tile(name: str) -> None:
    only = Candidates(lambda rows: np.ones((len(rows), 4), np.float32), 1, 1, 0, labels=np.zeros(1))
    assert BASELINES[name](only).tolist() == [0]


def test_the_oracle_is_balanced_and_needs_labels() -> None:
    known = pool()
    assert known.labels is not None
    kept = known.labels[BASELINES["label_balanced"](known)[:25]]
    assert np.bincount(kept).tolist() == [5] * 5
    with pytest.raises(UsageError, match="true labels"):
        BASELINES["label_balanced"](replace(known, labels=None))


def test_uniform_clusters_keep_more_of_the_rarest_than_proportional_ones() -> None:
    known = pool()
    assert known.labels is not None
    rare = {
        name: int((known.labels[BASELINES[name](known)[:60]] >= 3).sum()) for name in ("proportional", "kmeans_uniform")
    }
    assert rare["kmeans_uniform"] > rare["proportional"]


@pytest.mark.parametrize(("name", "is_even"), [("proportional", False), ("kmeans_uniform", True)])
def test_quotas_of_clusters_follow_their_sizes_or_are_even(name: str, is_even: bool) -> None:
    known = pool()
    cluster = np.unique(kmeans(known, 10)[0], return_inverse=True)[1]
    sizes = np.bincount(cluster)
    quota = np.bincount(cluster[BASELINES[name](known)[:52]], minlength=len(sizes))
    if is_even:
        assert quota.max() - quota[quota < sizes].min() <= 1
    else:
        assert np.all(np.abs(quota - sizes / 5) <= 1)
    assert not np.array_equal(BASELINES[name](known), BASELINES[name](replace(known, seed=1)))


def test_clusters_are_trained_until_tiles_are_near_their_own_mean() -> None:
    known = pool()
    cluster, distance = kmeans(known, 5)
    points = known.vectors()
    means = np.stack([points[cluster == index].mean(axis=0) for index in range(5)])
    assert distance == pytest.approx(np.linalg.norm(points - means[cluster], axis=1), abs=0.02)


def test_places_count_from_zero_in_each_group_by_rising_key() -> None:
    assert places(np.array([1, 0, 1, 0, 1]), np.array([3, 9, 1, 8, 1])).tolist() == [2, 1, 0, 0, 1]


def test_farthest_points_cover_with_a_smaller_radius_than_a_draw() -> None:
    known = pool()
    points = known.vectors()

    def radius(rows: np.ndarray) -> float:
        return float(np.linalg.norm(points[:, None] - points[rows], axis=2).min(axis=1).max())

    order = BASELINES["k_center"](known)
    assert radius(order[:30]) < radius(BASELINES["random"](known)[:30])
    assert order[0] == np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()
    for step in range(1, len(order)):
        apart = np.linalg.norm(points[:, None] - points[order[:step]], axis=2).min(axis=1)
        assert apart[order[step]] >= apart.max() - 1e-4


def test_equal_tiles_are_taken_once_each_by_farthest_points() -> None:
    same = Candidates(lambda rows: np.ones((len(rows), 4), np.float32), 5, 5, 0)
    assert sorted(BASELINES["k_center"](same)) == list(range(5))


def test_herding_meets_the_mean() -> None:
    known = pool()
    points = known.vectors()

    def gap(name: str) -> float:
        return float(np.linalg.norm(points[BASELINES[name](known)[:30]].mean(axis=0) - points.mean(axis=0)))

    assert gap("herding") < gap("random") / 3
    mean = points.mean(axis=0, dtype=np.float64)
    order = BASELINES["herding"](known)
    for step, row in enumerate(order.tolist()):
        gain = points @ (mean * (step + 1) - points[order[:step]].sum(axis=0))
        gain[order[:step]] = -np.inf
        assert gain[row] >= gain.max() - 1e-2


def test_copies_come_last_in_semdedup() -> None:
    distinct = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    vectors = np.concatenate([distinct, distinct[:20]])
    order = BASELINES["semdedup"](Candidates(lambda rows: vectors[rows], 70, 50, 0, n_clusters=4))
    assert len(np.unique(vectors[order[:50]], axis=0)) == 50


def test_semdedup_drops_the_one_that_is_nearer_to_the_centroid_of_two_alike() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    alone = Candidates(lambda rows: vectors[rows], 40, 20, 0, n_clusters=1)
    distance = kmeans(alone, 1)[1]
    expected = highest_earlier_cosine(vectors, np.argsort(-distance, kind="stable"))
    assert np.array_equal(BASELINES["semdedup"](alone), np.argsort(expected, kind="stable"))


def test_the_hierarchy_has_ten_times_fewer_clusters_a_level_and_balances_each() -> None:
    rng = np.random.default_rng(4)
    vectors = (np.repeat(10 * np.eye(8), 250, axis=0) + rng.normal(size=(2000, 8))).astype(np.float32)
    large = Candidates(lambda rows: vectors[rows], 2000, 200, 0, n_clusters=40)
    levels = hierarchy(large)
    assert [len(np.unique(level)) for level in levels] == pytest.approx([400, 40], rel=0.05)
    assert all(len(np.unique(levels[1][levels[0] == index])) == 1 for index in np.unique(levels[0]))
    order = BASELINES["hierarchical_kmeans"](large)
    quota = np.bincount(levels[1][order[:120]], minlength=len(np.bincount(levels[1])))
    assert quota.max() - quota[quota < np.bincount(levels[1])].min() <= 1
    small = replace(large, n_tiles=200)
    assert [len(np.unique(level)) for level in hierarchy(small)] == pytest.approx([50], rel=0.05)


def test_highest_earlier_cosine_is_the_plain_double_loop() -> None:
    vectors = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)
    order = np.random.default_rng(2).permutation(30)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for at, row in enumerate(order):
        plain = max((float(unit[row] @ unit[other]) for other in order[:at]), default=-2.0)
        assert highest_earlier_cosine(vectors, order)[row] == pytest.approx(plain, abs=1e-6)
