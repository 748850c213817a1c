"""Every peer gives a nested order of distinct rows, twice the same; each does what its paper says."""

from dataclasses import replace

import numpy as np
import pytest

from rsprune_dagster.pruning.baselines import BASELINES, Candidates, highest_earlier_cosine
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


def test_farthest_points_cover_with_a_smaller_radius_than_a_draw() -> None:
    known = pool()
    points = known.vectors()

    def radius(rows: np.ndarray) -> float:
        return float(np.linalg.norm(points[:, None] - points[rows], axis=2).min(axis=1).max())

    assert radius(BASELINES["k_center"](known)[:30]) < radius(BASELINES["random"](known)[:30])


def test_herding_meets_the_mean() -> None:
    known = pool()
    points = known.vectors()

    def gap(name: str) -> float:
        return float(np.linalg.norm(points[BASELINES[name](known)[:30]].mean(axis=0) - points.mean(axis=0)))

    assert gap("herding") < gap("random") / 3


def test_copies_come_last_in_semdedup() -> None:
    distinct = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    vectors = np.concatenate([distinct, distinct[:20]])
    order = BASELINES["semdedup"](Candidates(lambda rows: vectors[rows], 70, 50, 0, n_clusters=4))
    assert len(np.unique(vectors[order[:50]], axis=0)) == 50


def test_highest_earlier_cosine_is_the_plain_double_loop() -> None:
    vectors = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)
    order = np.random.default_rng(2).permutation(30)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for at, row in enumerate(order):
        plain = max((float(unit[row] @ unit[other]) for other in order[:at]), default=-2.0)
        assert highest_earlier_cosine(vectors, order)[row] == pytest.approx(plain, abs=1e-6)
