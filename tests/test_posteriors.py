"""Laws of the posteriors: calibration finds the truth's temperature, EM finds the pool's shares, rows sum to one."""

import numpy as np
import pytest

from rsprune_dagster.pruning.posteriors import fit_priors, fit_temperature, log_likelihood, posteriors
from rsprune_dagster.pruning.scenes import squared_distances

CENTRES = 2.2 * np.eye(3)


def tiles(sizes: list[int], *, variance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (n, 3) of Gaussian tiles from the three CENTRES, and their scene (n,)."""
    scene = np.repeat(np.arange(3), sizes)
    points = CENTRES[scene] + np.sqrt(variance) * np.random.default_rng(seed).normal(size=(len(scene), 3))
    return squared_distances(points, CENTRES), scene


def test_rows_sum_to_one_and_follow_the_priors() -> None:
    squared, _ = tiles([50, 50, 50], variance=1.0, seed=0)
    equal = posteriors(squared, 1.0, np.full(3, 1 / 3))
    assert np.allclose(equal.sum(axis=1), 1)
    assert np.array_equal(equal.argmax(axis=1), squared.argmin(axis=1))
    assert np.all(posteriors(squared, 1.0, np.array([0.8, 0.1, 0.1]))[:, 0] > equal[:, 0])


@pytest.mark.parametrize("variance", [1.0, 4.0])
def test_the_temperature_is_the_variance_of_gaussian_scenes(variance: float) -> None:
    temperature, likelihood = fit_temperature(*tiles([3000, 3000, 3000], variance=variance, seed=1))
    assert temperature == pytest.approx(variance, rel=0.15)
    assert -np.log(3) < likelihood < 0


def test_em_finds_how_common_scenes_are_with_a_quarter_of_equal_scenes_added() -> None:
    squared, _ = tiles([9000, 900, 100], variance=1.0, seed=2)
    expected = (np.array([0.9, 0.09, 0.01]) + 0.25 / 3) / 1.25
    assert fit_priors(squared, 1.0) == pytest.approx(expected, abs=0.04)  # doubtful tiles follow


def test_priors_of_tiles_that_are_certain_by_hand() -> None:
    """Eight tiles, six at the first prototype and two at the second, infinitely far from the others: a = 8 / 4 / 4."""
    far = np.full((8, 4), 1e6)
    far[:6, 0] = far[6:, 1] = 0.0
    assert fit_priors(far, 1.0) == pytest.approx([6.5 / 10, 2.5 / 10, 0.5 / 10, 0.5 / 10])


@pytest.mark.parametrize("n_tiles", [10, 1000, 20_000])
def test_a_scene_s_prior_never_falls_below_what_is_added_however_large_the_pool(n_tiles: int) -> None:
    squared, _ = tiles([n_tiles, 0, 0], variance=0.1, seed=3)
    priors = fit_priors(squared, 1.0)
    least = 0.25 / 1.25 / 3
    assert priors == pytest.approx([1 - 2 * least, least, least], rel=0.05)
    assert priors.min() >= least
    assert priors.sum() == pytest.approx(1)


def test_a_common_scene_does_not_claim_a_rare_one_that_a_poor_reference_hardly_tells_apart() -> None:
    """Prototypes half a deviation apart: EM without what is added gives nearly all to the common scene."""
    scene = np.repeat([0, 1], [3600, 400])
    centres = np.array([[0.0], [1.0]])
    points = centres[scene] + np.random.default_rng(4).normal(size=(4000, 1))
    squared = squared_distances(points, centres)
    claimed = posteriors(squared, 4.0, fit_priors(squared, 4.0)).argmax(axis=1)
    assert np.sum(claimed == 0) < 1.2 * 3600
    assert np.sum((claimed == 1) & (scene == 1)) > 40


def test_without_tiles_priors_are_equal() -> None:
    assert fit_priors(np.zeros((0, 3)), 1.0) == pytest.approx(np.full(3, 1 / 3))


TOLD = np.array([[0.0, 2 * np.log(3)]])
"""Squared distances at which the first of two scenes is three times as likely, at temperature 1 with equal priors."""


def test_a_posterior_by_hand() -> None:
    assert posteriors(TOLD, 1.0, np.array([0.5, 0.5])) == pytest.approx(np.array([[3 / 4, 1 / 4]]))
    assert posteriors(TOLD, 1.0, np.array([0.25, 0.75])) == pytest.approx(np.array([[1 / 2, 1 / 2]]))
    assert posteriors(2 * TOLD, 2.0, np.array([0.5, 0.5])) == pytest.approx(np.array([[3 / 4, 1 / 4]]))


def test_each_scene_has_the_same_weight_in_the_likelihood() -> None:
    """Three tiles of the first scene have a posterior of 3/4, one of the second has 1/4; the third scene has none."""
    squared = np.hstack([np.repeat(TOLD, 4, axis=0), np.full((4, 1), 1e6)])
    expected = (np.log(3 / 4) + np.log(1 / 4)) / 2
    assert log_likelihood(squared, np.array([0, 0, 0, 1]), 1.0) == pytest.approx(expected)
    assert log_likelihood(4 * squared, np.array([0, 0, 0, 1]), 4.0) == pytest.approx(expected)


def test_temperatures_end_at_a_half_and_at_fifty() -> None:
    certain = 4 * (1 - np.eye(3))
    assert fit_temperature(certain, np.arange(3))[0] == pytest.approx(0.5)
    assert fit_temperature(certain, np.array([1, 2, 0]))[0] == pytest.approx(50)


def test_priors_are_where_another_step_changes_nothing() -> None:
    squared, _ = tiles([300, 60, 5], variance=2.0, seed=5)
    priors = fit_priors(squared, 2.0)
    shares = posteriors(squared, 2.0, priors).mean(axis=0)
    assert (shares + 0.25 / 3) / 1.25 == pytest.approx(priors, abs=3e-6)
