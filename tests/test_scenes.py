"""Laws of the scene model: what it knows it recognises, what it does not know it says."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rsprune_dagster.pruning import scenes
from rsprune_dagster.pruning.posteriors import fit_priors, posteriors
from rsprune_dagster.pruning.scenes import (
    SHRINKAGES,
    SceneModel,
    domain_shift,
    fit_held_out,
    fit_principal_axes,
    fit_scene_model,
    fit_whitening,
    folds,
    held_out_statistics,
    neighbour_scatter,
    novelty,
    shrunk,
    squared_distances,
    within_scatter,
)

CENTRES = np.random.default_rng(7).normal(size=(9, 24))


def tiles(kinds: range, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` unit vectors of each scene, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(list(kinds), n)
    vectors = CENTRES[labels] + 0.4 * rng.normal(size=(len(labels), 24))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.array([f"scene-{label}" for label in labels])


@pytest.fixture(scope="module")
def model() -> SceneModel:
    return fit_scene_model(*tiles(range(5), 40, seed=0))


def test_known_scenes_are_recognised_and_not_foreign(model: SceneModel) -> None:
    vectors, labels = tiles(range(5), 60, seed=1)
    found = model.assign(vectors)
    assert np.mean(np.array(model.names)[found.scene] == labels) > 0.95
    assert model.held_out.accuracy > 0.95
    assert domain_shift(found.novelty) < 0.15


def test_imbalance_alone_is_not_foreign(model: SceneModel) -> None:
    assert domain_shift(model.assign(tiles(range(1), 200, seed=2)[0]).novelty) < 0.25


def test_unknown_scenes_are_foreign(model: SceneModel) -> None:
    assert domain_shift(model.assign(tiles(range(5, 9), 60, seed=3)[0]).novelty) > 0.8


def test_a_tile_s_assignment_does_not_depend_on_its_neighbours(model: SceneModel) -> None:
    vectors, _ = tiles(range(9), 200, seed=4)
    shuffle = np.random.default_rng(5).permutation(len(vectors))
    whole, part = model.assign(vectors), model.assign(vectors[shuffle][:1101])
    for name in ("scene", "novelty", "projected"):
        assert np.array_equal(getattr(whole, name)[shuffle][:1101], getattr(part, name))


def test_novelty_lies_between_0_and_1(model: SceneModel) -> None:
    novelty = model.assign(tiles(range(9), 20, seed=6)[0]).novelty
    assert 0 <= novelty.min() <= novelty.max() <= 1


def test_one_reference_tile_per_scene_is_enough() -> None:
    model = fit_scene_model(*tiles(range(5), 1, seed=0))
    vectors, labels = tiles(range(5), 50, seed=1)
    found = model.assign(vectors)
    assert np.mean(np.array(model.names)[found.scene] == labels) > 0.8
    assert np.all(found.novelty == 0.5)
    assert domain_shift(found.novelty) == 0
    assert (model.held_out.temperature, model.held_out.shrinkage) == (1.0, 0.5)


def test_whitening_makes_the_within_scene_covariance_the_identity() -> None:
    vectors, labels = tiles(range(5), 60, seed=0)
    scene = np.unique(labels, return_inverse=True)[1]
    whitened = vectors @ fit_whitening(within_scatter(vectors, scene))
    residuals = whitened - np.array([whitened[scene == index].mean(axis=0) for index in range(5)])[scene]
    assert np.allclose(residuals.T @ residuals / (len(vectors) - 5), np.eye(24), atol=1e-8)


def test_the_order_of_labels_names_does_not_matter() -> None:
    vectors, labels = tiles(range(4), 30, seed=0)
    renamed = np.array([{"scene-0": "z", "scene-1": "a", "scene-2": "m", "scene-3": "b"}[label] for label in labels])
    there, here = fit_scene_model(vectors, labels), fit_scene_model(vectors, renamed)
    names = np.array(["z", "a", "m", "b"])[there.assign(vectors).scene]
    assert np.array_equal(names, np.array(here.names)[here.assign(vectors).scene])


def test_squared_distances_are_euclidean_and_never_negative() -> None:
    rng = np.random.default_rng(0)
    points, centres = rng.normal(size=(1500, 6)), rng.normal(size=(11, 6))
    direct = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
    assert np.allclose(squared_distances(points, centres), direct)
    assert squared_distances(centres, centres).min() >= 0


def test_in_discriminant_space_tiles_of_a_scene_vary_by_one_in_every_direction() -> None:
    vectors, labels = tiles(range(5), 60, seed=0)
    model = fit_scene_model(vectors, labels, shrinkages=(0.0,))
    scene = np.unique(labels, return_inverse=True)[1]
    residuals = model.discriminant.projection.project(vectors) - model.discriminant.prototypes[scene]
    assert model.discriminant.projection.n_axes == 4
    assert np.allclose(residuals.T @ residuals / (len(vectors) - 5), np.eye(4), atol=1e-8)


def test_the_shrinkage_is_the_one_that_foresees_held_out_tiles_best() -> None:
    vectors, labels = tiles(range(5), 12, seed=0)
    alone = [fit_scene_model(vectors, labels, shrinkages=(value,)).held_out.log_likelihood for value in SHRINKAGES]
    chosen = fit_scene_model(vectors, labels).held_out
    assert chosen.log_likelihood == max(alone)
    assert chosen.shrinkage == SHRINKAGES[int(np.argmax(alone))]


@pytest.mark.parametrize(("spreads", "n", "expected"), [([6.0, 0.2], 200, 0.05), ([1.0, 1.0], 8, 0.5)])
def test_many_uneven_tiles_ask_for_little_shrinkage_and_a_few_round_ones_for_much(
    spreads: list[float], n: int, expected: float
) -> None:
    rng = np.random.default_rng(0)
    spread = np.linspace(*spreads, 24)
    scene = np.repeat(np.arange(3), n)
    vectors = 0.5 * rng.normal(size=(3, 24))[scene] + spread * rng.normal(size=(3 * n, 24))
    assert fit_scene_model(vectors, scene).held_out.shrinkage == expected


def test_priors_of_the_pool_make_a_rare_scene_claim_no_more_than_its_own() -> None:
    vectors, labels = blurred([400, 400, 400, 400, 8])
    model = fit_scene_model(*blurred([60] * 5, seed=1))
    equal, adapted = model.assign(vectors), model.adapted(vectors).assign(vectors)
    right = [np.mean(np.array(model.names)[found.scene] == labels) for found in (equal, adapted)]
    assert right[1] > right[0]
    assert np.sum(adapted.scene == 4) < np.sum(equal.scene == 4)
    assert np.array_equal(equal.novelty, adapted.novelty)
    squared = squared_distances(equal.projected, model.discriminant.prototypes)
    temperature, priors = model.held_out.temperature, model.adapted(vectors).priors
    assert temperature > 1.2 and np.array_equal(priors, fit_priors(squared, temperature))
    assert np.array_equal(adapted.scene, posteriors(squared, temperature, priors).argmax(axis=1))


def blurred(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of scenes that overlap."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(size=(len(labels), 24))
    return CENTRES[labels] * 0.35 + noise, labels.astype(str)


def test_neighbours_alone_tell_how_much_tiles_of_a_scene_differ() -> None:
    rng = np.random.default_rng(3)
    spread = np.array([3.0, 1.0, 1.0, 1.0])
    centres = rng.normal(size=(6, 4)) * 60
    scene = np.repeat(np.arange(6), 200)
    vectors = centres[scene] + spread * rng.normal(size=(1200, 4))
    guessed = neighbour_scatter(vectors, 150)
    truth = within_scatter(vectors, scene)
    assert np.trace(guessed) < np.trace(truth) < 0.1 * np.trace(np.cov(vectors.T))
    assert np.linalg.eigvalsh(guessed)[-1] > 3 * np.linalg.eigvalsh(guessed)[-2]
    assert np.array_equal(neighbour_scatter(vectors, 150), guessed)


def test_neighbour_scatter_is_half_the_mean_square_of_differences() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [10.0, 2.0]])
    assert np.allclose(neighbour_scatter(vectors, 1), np.diag([2 * 1 / 8, 2 * 4 / 8]))


def test_within_scatter_of_tiles_that_are_alone_in_their_scenes_is_that_of_all_tiles() -> None:
    vectors = np.array([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0]])
    assert np.allclose(within_scatter(vectors, np.arange(3)), np.cov(vectors.T))


def test_shrinkage_mixes_the_scatter_with_its_mean_variance() -> None:
    assert np.allclose(shrunk(np.array([[3.0, 1.0], [1.0, 1.0]]), 0.25), [[2.75, 0.75], [0.75, 1.25]])


def test_principal_axes_come_by_falling_variance_also_after_whitening() -> None:
    vectors = np.random.default_rng(0).normal(size=(400, 3)) * [1.0, 5.0, 3.0] + 7
    plain = fit_principal_axes(vectors, 2)
    assert np.argmax(np.abs(plain.axes), axis=0).tolist() == [1, 2]
    assert np.allclose(plain.project(vectors).mean(axis=0), 0)
    whitening = np.diag([1.0, 0.1, 1.0])  # leaves variances of 1, 1/4 and 9
    whitened = fit_principal_axes(vectors, 2, whitening=whitening).project(vectors)
    assert whitened.var(axis=0) == pytest.approx([9, 1], rel=0.2)


def test_folds_go_round_in_each_scene_and_leave_out_no_scene_s_only_tile() -> None:
    assert folds(np.array([0, 1, 0, 0, 2, 0, 0, 1]), 4).tolist() == [0, 0, 1, 2, -1, 3, 0, 1]


def test_held_out_tiles_have_no_part_in_the_model_that_judges_them() -> None:
    """Scenes at random: a model that knew its 60 tiles of 40 numbers would recognise most of them."""
    rng = np.random.default_rng(0)
    vectors, scene = rng.normal(size=(60, 40)), np.tile([0, 1, 2], 20)
    found = fit_held_out(vectors, scene, shrinkages=(0.05,), n_folds=4)
    assert len(found.distances) == 60
    assert found.accuracy < 0.55
    assert found.log_likelihood == pytest.approx(-np.log(3), abs=0.05)


def test_statistics_of_held_out_tiles_by_hand() -> None:
    squared = np.array([[9.0, 16.0], [1.0, 4.0], [25.0, 36.0], [4.0, 1.0]])
    found = held_out_statistics(squared, np.array([0, 0, 1, 1]), 0.2)
    assert found.distances.tolist() == [1, 1, 3, 5]
    assert (found.accuracy, found.shrinkage) == (0.75, 0.2)


def test_novelty_is_the_share_of_known_tiles_that_lie_nearer() -> None:
    known = np.array([1.0, 2.0, 3.0])
    assert novelty(np.array([0.0, 1.0, 2.5, 9.0]), known).tolist() == [0, 0, 0.5, 0.75]


def test_the_domain_shift_is_twice_the_mean_novelty_less_one_and_never_negative() -> None:
    assert domain_shift(np.array([0.5, 0.75])) == 0.25
    assert domain_shift(np.array([0.1, 0.2])) == 0
    assert domain_shift(np.empty(0)) == 0


def test_a_quarter_of_the_reference_at_a_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out: list[int] = []
    measured = scenes._squared_when_left_out

    def counted(vectors: np.ndarray, scene: np.ndarray, out: np.ndarray, shrinkages: Sequence[float]) -> Any:
        left_out.append(int(out.sum()))
        return measured(vectors, scene, out, shrinkages)

    monkeypatch.setattr(scenes, "_squared_when_left_out", counted)
    assert fit_scene_model(*tiles(range(3), 8, seed=0)).held_out.shrinkage in (0.05, 0.1, 0.2, 0.3, 0.5)
    assert left_out == [6, 6, 6, 6]
