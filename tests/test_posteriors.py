"""Laws of the posteriors: calibration finds the truth's temperature, EM finds the pool's shares, rows sum to one."""

import numpy as np
import pytest

from rsprune_dagster.pruning.posteriors import fit_priors, fit_temperature, posteriors
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


def test_em_finds_how_common_scenes_are() -> None:
    squared, _ = tiles([9000, 900, 100], variance=1.0, seed=2)
    assert fit_priors(squared, 1.0) == pytest.approx([0.9, 0.09, 0.01], abs=0.015)


def test_no_scene_dies_out() -> None:
    squared, _ = tiles([500, 0, 0], variance=0.1, seed=3)
    priors = fit_priors(squared, 1.0)
    assert priors.min() > 0
    assert priors.sum() == pytest.approx(1)
