"""Scene by scene: unbiased at few samples, and recognition measured against what real tiles reach."""

import numpy as np
import pytest

from rsprune_dagster.evaluation.fidelity import kernel_distance
from rsprune_dagster.evaluation.intervals import Resampling
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.evaluation.scene_scores import MEAN, Recognition, mean_score, recognition, scene_distances
from rsprune_dagster.utils.errors import RunError

D = 40
CENTRES = np.random.default_rng(7).normal(size=(5, D))
RESAMPLING = Resampling(0.9, 40, 0)


def drawn(scenes: str, n: int, *, seed: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """n features of each scene, a letter each."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(list(scenes), n)
    centres = CENTRES[[ord(scene) - ord("a") for scene in labels]]
    return (centres + spread * rng.normal(size=(len(labels), D)) + 1).astype(np.float32), labels


def distances(
    made: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray], least: int = 10
) -> tuple[dict[str, Score], dict[str, str]]:
    protocol = Protocol("small", "", "none", "cd", len(real[0]), len(made[0]))
    scores, left_out = scene_distances(
        *made, *real, scale=1.0, name="kernel_small", protocol=protocol, min_per_scene=least, resampling=RESAMPLING
    )
    return {score.name: score for score in scores}, left_out


def recognised(made: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray]) -> Recognition:
    protocol = Protocol("small", "", "none", "cd", len(real[0]), len(made[0]))
    return recognition(*made, *real, name="recognised_small", protocol=protocol, level=0.9)


def test_a_scene_s_distance_is_that_of_its_tiles_alone_and_has_its_counts() -> None:
    made, real = drawn("abc", 30, seed=1), drawn("abc", 50, seed=2)
    scores, left_out = distances(made, real)
    assert not left_out and set(scores) == {f"kernel_small/{name}" for name in ("a", "b", "c", MEAN)}
    expected = kernel_distance(made[0][made[1] == "b"], real[0][real[1] == "b"])
    assert scores["kernel_small/b"].value == pytest.approx(expected)
    assert scores["kernel_small/b"].protocol.n_generated == 30
    assert scores["kernel_small/b"].protocol.n_reference == 50
    assert scores[f"kernel_small/{MEAN}"].value == pytest.approx(
        np.mean([scores[f"kernel_small/{name}"].value for name in "abc"])
    )


def test_scenes_drawn_right_are_at_zero_and_a_wrong_one_is_not() -> None:
    values = [
        distances(drawn("abc", 20, seed=i), drawn("abc", 20, seed=1000 + i))[0][f"kernel_small/{MEAN}"].value
        for i in range(60)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    features, labels = drawn("abd", 20, seed=1)
    scores, _ = distances((features, np.char.replace(labels, "d", "c")), drawn("abc", 50, seed=2))
    assert scores["kernel_small/c"].low > max(scores["kernel_small/a"].high, scores["kernel_small/b"].high)


def test_the_mean_over_scenes_is_better_known_than_a_scene() -> None:
    scores, _ = distances(drawn("abcd", 50, seed=1), drawn("abcd", 50, seed=2))
    arms = {name: score.high - score.low for name, score in scores.items()}
    assert arms[f"kernel_small/{MEAN}"] < 0.75 * min(arms[f"kernel_small/{name}"] for name in "abcd")


def test_the_mean_s_arms_are_those_of_independent_errors() -> None:
    protocol = Protocol("small", "", "none", "cd", 40, 30)
    scores = [
        Score(name, value, value - below, value + above, 0.9, 40, protocol, False)
        for name, value, below, above in (("a", 1.0, 3.0, 5.0), ("b", 2.0, 4.0, 12.0))
    ]
    found = mean_score(scores, name="mean", protocol=protocol)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5 - 5 / 2, 1.5 + 13 / 2))
    assert (found.level, found.n_resamples, found.larger_is_better) == (0.9, 40, False)
    assert found.protocol.parameters == (("n_scenes", 2),)


def test_a_scene_needs_four_images_whatever_is_asked_for() -> None:
    scores, left_out = distances(drawn("ab", 4, seed=1), drawn("ab", 4, seed=2), least=0)
    assert set(scores) == {f"kernel_small/{name}" for name in ("a", "b", MEAN)} and not left_out
    assert not distances(drawn("ab", 3, seed=1), drawn("ab", 4, seed=2), least=0)[0]


def test_scenes_with_few_images_are_left_out_with_the_reason_and_so_is_the_mean() -> None:
    made, real = drawn("ab", 30, seed=1), drawn("abc", 30, seed=2)
    few = made[0][:35], made[1][:35]
    scores, left_out = distances(few, real)
    assert set(scores) == {"kernel_small/a"}
    assert "5 generated and 30 reference images of b, fewer than 10" in left_out["kernel_small/b"]
    assert "0 generated" in left_out["kernel_small/c"]
    assert "2 scenes" in left_out[f"kernel_small/{MEAN}"]


def test_samples_of_the_right_scenes_are_recognised_as_well_as_real_ones() -> None:
    real = drawn("abcd", 60, seed=2, spread=1.2)
    found = recognised(drawn("abcd", 50, seed=1, spread=1.2), real)
    assert found.scores[0].value == pytest.approx(found.held_out_accuracy, abs=0.08)
    assert all(score.larger_is_better for score in found.scores)
    assert found.confusion.sum() == 200 and (found.confusion.sum(axis=1) == 50).all()
    assert found.scores[0].value == pytest.approx(np.trace(found.confusion) / 200)


def test_samples_that_ignore_the_scene_are_recognised_by_chance() -> None:
    features, labels = drawn("abcd", 50, seed=1)
    found = recognised((features, np.random.default_rng(0).permutation(labels)), drawn("abcd", 60, seed=2))
    assert found.held_out_accuracy > 0.95
    assert found.scores[0].low <= 0.25 <= found.scores[0].high


def test_a_swapped_scene_shows_in_its_own_score() -> None:
    features, labels = drawn("abd", 30, seed=1)
    found = recognised((features, np.char.replace(labels, "d", "c")), drawn("abcd", 60, seed=2))
    scores = {score.name: score.value for score in found.scores}
    assert scores["recognised_small/a"] > 0.9 and scores["recognised_small/c"] < 0.1
    assert "recognised_small/d" not in scores
    assert found.confusion[2, 3] > 27


def test_scenes_that_the_reference_does_not_have_are_refused() -> None:
    with pytest.raises(RunError, match="it has a, b, and the samples also d"):
        recognised(drawn("abd", 30, seed=1), drawn("ab", 30, seed=2))
    with pytest.raises(RunError, match="2 scenes or more"):
        recognised(drawn("a", 30, seed=1), drawn("a", 30, seed=2))
