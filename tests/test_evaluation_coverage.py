"""Precision, recall, density and coverage: brute force, and the laws."""

import numpy as np
import pytest

from rsprune_dagster.evaluation.coverage import coverage_scores, four_measures, nearest_others
from rsprune_dagster.evaluation.intervals import Resampling, halves
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.utils.errors import RunError


def modes(n: int, which: range, *, seed: int, d: int = 8) -> np.ndarray:
    """n points of each of some well separated modes."""
    centres = 12 * np.random.default_rng(5).normal(size=(6, d))
    rng = np.random.default_rng(seed)
    return np.concatenate([centres[mode] + rng.normal(size=(n, d)) for mode in which])


def measures(x: np.ndarray, y: np.ndarray, k: int = 5) -> dict[str, float]:
    whole, _ = four_measures(x, y, n_neighbours=k, chosen=np.zeros((0, len(x)), bool))
    return dict(zip(("precision", "recall", "density", "coverage"), whole.tolist(), strict=True))


def brute_force(x: np.ndarray, y: np.ndarray, k: int) -> list[float]:
    """Of fake x and real y, as `compute_prdc` of the package prdc has it, formula by formula."""

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))

    def kth_neighbour(a: np.ndarray) -> np.ndarray:
        return np.partition(distances(a, a), k, axis=1)[:, k]  # each is its own nearest

    real, fake, across = kth_neighbour(y), kth_neighbour(x), distances(y, x)
    precision = (across < real[:, None]).any(axis=0).mean()
    recall = (across < fake[None, :]).any(axis=1).mean()
    density = (1.0 / k) * (across < real[:, None]).sum(axis=0).mean()
    coverage = (across.min(axis=1) < real).mean()
    return [precision, recall, density, coverage]


def scores(x: np.ndarray, y: np.ndarray, *, k: int = 5, seed: int = 0) -> dict[str, Score]:
    protocol = Protocol("small", "", "none", "cd", len(y), len(x))
    found = coverage_scores(
        x, y, n_neighbours=k, network="small", protocol=protocol, resampling=Resampling(0.9, 60, seed)
    )
    return {score.name: score for score in found}


@pytest.mark.parametrize("k", [1, 3, 7])
def test_brute_force_agrees_over_several_blocks(k: int) -> None:
    rng = np.random.default_rng(k)
    x, y = rng.normal(size=(1300, 6)), 1.1 * rng.normal(size=(1100, 6)) + 0.4
    assert list(measures(x, y, k).values()) == pytest.approx(brute_force(x, y, k), abs=1e-12)


def test_the_half_of_a_set_has_the_measures_of_that_half_alone() -> None:
    x, y = modes(60, range(4), seed=1), modes(50, range(6), seed=2)
    chosen = halves(len(x), n_resamples=5, seed=3)
    _, of_halves = four_measures(x, y, n_neighbours=3, chosen=chosen)
    for half, found in zip(chosen, of_halves, strict=True):
        assert found == pytest.approx(brute_force(x[half], y, 3), abs=1e-12)


def test_a_set_against_itself_is_all_precise_and_all_recalled() -> None:
    x = modes(80, range(3), seed=1)
    found = measures(x, x)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["density"] == pytest.approx(1)


@pytest.mark.parametrize(("n_copies", "density"), [(4, 4 / 5), (5, 1.0)])
def test_copies_lie_in_the_balls_of_their_copies_wherever_they_stand(n_copies: int, density: float) -> None:
    x = np.repeat(modes(20, range(6), seed=1, d=300).astype(np.float32), n_copies, axis=0)
    x += 50 * np.random.default_rng(0).random(300)
    found = measures(x, x)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["density"] == pytest.approx(density)
    assert measures(x[3::n_copies], x)["precision"] == 1
    assert measures(np.random.default_rng(1).permutation(x)[:401], x)["precision"] == 1


def test_an_image_with_as_many_copies_as_neighbours_has_an_empty_ball() -> None:
    x = np.repeat(modes(20, range(6), seed=1, d=300).astype(np.float32), 6, axis=0)
    x += 50 * np.random.default_rng(0).random(300)
    assert list(measures(x, x).values()) == brute_force(x[::6].repeat(6, axis=0), x, 5) == [0, 0, 0, 0]


def test_order_does_not_matter() -> None:
    x, y = modes(60, range(4), seed=1), modes(50, range(6), seed=2)
    rng = np.random.default_rng(0)
    assert measures(rng.permutation(x), rng.permutation(y)) == pytest.approx(measures(x, y))


def test_a_common_offset_does_not_matter() -> None:
    x, y = modes(60, range(4), seed=1), modes(50, range(6), seed=2)
    assert measures(x + 1e6, y + 1e6) == pytest.approx(measures(x, y))


def test_one_mode_loses_recall_and_coverage_and_not_precision() -> None:
    y = modes(100, range(6), seed=1)
    full, one = measures(modes(100, range(6), seed=2), y), measures(modes(600, range(1), seed=2), y)
    assert one["precision"] > full["precision"] - 0.05
    assert one["recall"] < full["recall"] - 0.5
    assert one["coverage"] < full["coverage"] - 0.5


def test_noise_loses_precision_and_density() -> None:
    y = modes(100, range(6), seed=1)
    found = measures(y[:300] + 100.0, y)
    assert found["precision"] == found["density"] == found["coverage"] == 0


def test_precision_one_way_is_recall_the_other() -> None:
    x, y = modes(60, range(4), seed=1), modes(50, range(6), seed=2)
    assert measures(x, y)["precision"] == pytest.approx(measures(y, x)["recall"])


def test_intervals_cover_the_score_of_other_draws_at_about_their_level() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(300, 4))
    draws = [scores(1.1 * rng.normal(size=(200, 4)) + 0.3, y, k=3) for _ in range(80)]
    for name in ("precision_small", "density_small", "recall_small", "coverage_small"):
        truth = np.mean([one[name].value for one in draws])
        share = np.mean([one[name].low <= truth <= one[name].high for one in draws])
        assert share >= 0.7


def test_scores_carry_the_number_of_neighbours_and_stay_in_range() -> None:
    x = modes(80, range(3), seed=1)
    for score in scores(x, x).values():
        assert dict(score.protocol.parameters) == {"n_neighbours": 5, "balls": "open, as in prdc"}
        assert 0 <= score.low <= score.value <= score.high
        assert score.larger_is_better
    found = scores(x, x)
    assert found["recall_small"].high == 1 and found["density_small"].high > 1


def test_ends_of_intervals_are_cut_at_0_and_1_and_nowhere_else() -> None:
    half = np.concatenate([modes(40, range(3), seed=1), modes(40, range(3), seed=2) + 100.0])
    found = scores(half, modes(80, range(3), seed=3))
    for name in ("precision_small", "density_small"):
        assert 0 < found[name].low < found[name].value < found[name].high < 1
    assert all(score.low == score.value == 0 for score in scores(half[120:], half[:120]).values())


def test_too_few_images_are_refused_with_the_number_needed() -> None:
    with pytest.raises(RunError, match=r"need 12 images or more on either side.*11 generated and 80 reference"):
        scores(modes(11, range(1), seed=1), modes(80, range(1), seed=2))
    with pytest.raises(RunError, match="1 neighbour or more"):
        scores(modes(11, range(1), seed=1), modes(80, range(1), seed=2), k=0)


def test_neighbours_are_sorted_and_exclude_the_row_itself() -> None:
    x = modes(40, range(2), seed=1)
    near = nearest_others(x, 7)
    assert (np.diff(near.squared, axis=1) >= 0).all()
    assert not (near.index == np.arange(len(x))[:, None]).any()
