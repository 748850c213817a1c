"""Laws of the two distances, of their intervals, and of which scores may be compared."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cleanfid import fid as cleanfid
from scipy.linalg import sqrtm

from rsprune_dagster.evaluation.fidelity import (
    RELIABLE_N,
    Moments,
    caution,
    frechet_distance,
    frechet_score,
    kernel_distance,
    kernel_scale,
    kernel_score,
    moments,
)
from rsprune_dagster.evaluation.intervals import Resampling, halves, interval, share_interval
from rsprune_dagster.evaluation.protocol import Protocol, Score, better, difference
from rsprune_dagster.utils.errors import RunError, UsageError

LEVEL = 0.9


def features(n: int, d: int = 12, *, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Correlated, skewed features, as a network's are."""
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    drawn = np.random.default_rng(seed).gamma(2.0, size=(n, d))
    return (scale * drawn @ mixing + shift).astype(np.float32)


def protocol(n_generated: int = 300, n_reference: int = 400) -> Protocol:
    return Protocol("small", "ab" * 32, "none", "cd" * 16, n_reference, n_generated)


def score(kind: str, generated: np.ndarray, reference: np.ndarray, *, seed: int = 0, n_resamples: int = 50) -> Score:
    measure = {"frechet": frechet_score, "kernel": kernel_score}[kind]
    return measure(
        generated,
        reference,
        name=f"{kind}_small",
        protocol=protocol(len(generated), len(reference)),
        resampling=Resampling(LEVEL, n_resamples, seed),
    )


def test_the_distances_of_small_cases() -> None:
    narrow, wide = Moments(np.zeros(2), np.eye(2)), Moments(np.array([3.0, 4.0]), 4 * np.eye(2))
    assert frechet_distance(narrow, wide) == pytest.approx(25 + 2 + 8 - 2 * 4)
    found = moments(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 6.0]]))
    assert found.mean.tolist() == [2, 2] and found.covariance == pytest.approx(np.array([[4, 6], [6, 12]]))
    # (x y + 1)³: 1 within {1, 0}, 27 within {2, 1}, and 27, 8, 1, 1 across
    assert kernel_distance(np.array([[1.0], [0.0]]), np.array([[2.0], [1.0]])) == pytest.approx(1 + 27 - 2 * 37 / 4)
    assert kernel_scale(np.array([[3.0, 4.0], [0.0, 5.0]])) == pytest.approx(12.5**0.5)


def test_a_kernel_score_is_the_distance_of_scaled_features() -> None:
    a, b = features(20, seed=1), features(30, seed=2)
    rest = {"name": "kernel_small", "protocol": protocol(), "resampling": Resampling(LEVEL, 4, 0)}
    assert kernel_score(a, b, **rest).value == pytest.approx(kernel_distance(a, b))
    assert kernel_score(a, b, scale=2.0, **rest).value == pytest.approx(kernel_distance(a / 2, b / 2))


def test_frechet_is_that_of_cleanfid_and_of_a_matrix_square_root() -> None:
    a, b = features(300, 40, seed=1).astype(float), features(200, 40, seed=2, shift=0.3).astype(float)
    ours = frechet_distance(moments(a), moments(b))
    assert ours == pytest.approx(cleanfid.fid_from_feats(a, b), rel=1e-9)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(one + two - 2 * np.real(sqrtm(one @ two)))
    assert ours == pytest.approx(apart, rel=1e-9)


def test_frechet_of_singular_covariances_is_finite_and_right() -> None:
    a, b = features(20, 40, seed=1).astype(float), features(20, 40, seed=2).astype(float)
    one, two = a - a.mean(0), b - b.mean(0)
    nuclear = np.linalg.svd(one @ two.T / 19, compute_uv=False).sum()
    spread = (np.square(one).sum() + np.square(two).sum()) / 19
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + spread - 2 * nuclear
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)


def test_a_set_against_itself_and_the_other_way_round() -> None:
    a, b = moments(features(300, seed=1)), moments(features(300, seed=2, shift=0.2))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert kernel_distance(features(50, seed=1), features(60, seed=2)) == pytest.approx(
        kernel_distance(features(60, seed=2), features(50, seed=1)), rel=1e-9
    )


def test_order_does_not_matter() -> None:
    a, b = features(1500, seed=1), features(300, seed=2, scale=1.1)
    shuffled = np.random.default_rng(0).permutation(a)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(frechet_distance(moments(shuffled), moments(b)))
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(shuffled, b), rel=1e-9)


def test_kernel_is_that_of_cleanfid_on_whole_sets() -> None:
    a, b = features(1100, seed=1).astype(float), features(1100, seed=2, scale=1.1).astype(float)
    theirs = cleanfid.kernel_distance(a, b, num_subsets=1, max_subset_size=1100)
    assert kernel_distance(a, b) == pytest.approx(theirs, rel=1e-9)


def test_kernel_of_two_halves_is_zero_on_average_even_of_few_images() -> None:
    values = [kernel_distance(features(30, seed=2 * i), features(30, seed=2 * i + 1)) for i in range(200)]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * standard_error
    assert min(values) < 0
    biased = np.mean(
        [frechet_distance(moments(features(30, seed=i)), moments(features(30, seed=-i - 1 + 900))) for i in range(20)]
    )
    assert biased > 1


def test_a_half_of_a_set_has_the_score_of_that_half_alone() -> None:
    a, b = features(301, seed=1), features(300, seed=2, shift=0.1)
    from rsprune_dagster.evaluation import fidelity

    chosen = halves(301, n_resamples=3, seed=5)
    expected = [frechet_distance(moments(b), moments(a[half])) for half in chosen]
    assert fidelity._frechet_of_halves(a.astype(float), moments(b), chosen) == pytest.approx(expected, rel=1e-9)
    expected = [kernel_distance(a[half], b) for half in chosen]
    assert fidelity._kernel_distances(a, b, chosen) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("kind", ["frechet", "kernel"])
@pytest.mark.parametrize(("shift", "widest"), [(0.4, 1.35), (0.0, 1.9)])
def test_intervals_cover_the_score_of_other_draws_at_about_their_level(kind: str, shift: float, widest: float) -> None:
    reference = features(300, seed=10_000)
    draws = [score(kind, features(120, seed=i, shift=shift), reference, n_resamples=80) for i in range(120)]
    truth = np.mean([one.value for one in draws])
    assert np.mean([one.low <= truth <= one.high for one in draws]) >= 0.8
    spread = np.mean([one.high - one.low for one in draws]) / (2 * 1.645)
    assert 0.7 <= spread / np.std([one.value for one in draws]) <= widest


def test_the_same_seed_gives_the_same_interval_and_the_interval_holds_the_value() -> None:
    a, b = features(200, seed=1), features(200, seed=2)
    one = score("frechet", a, b, seed=3)
    assert one == score("frechet", a, b, seed=3)
    assert one != score("frechet", a, b, seed=4)
    assert one.low <= one.value <= one.high


@pytest.mark.parametrize("kind", ["frechet", "kernel"])
def test_statistics_are_in_float64_whatever_the_features_are(kind: str) -> None:
    a, b = features(60, seed=1), features(50, seed=2)
    single, double = score(kind, a, b), score(kind, a.astype(float), b.astype(float))
    assert not single.larger_is_better
    for one, two in ((single.value, double.value), (single.low, double.low), (single.high, double.high)):
        assert one == pytest.approx(two, rel=1e-10)


def test_a_score_is_read_back_from_json() -> None:
    parameters = (("balls", "open"), ("n_neighbours", 5), ("quantile", 0.25))
    written = replace(made(4, 0.3), protocol=replace(protocol(), parameters=parameters), caution="few")
    assert Score.from_json(json.loads(json.dumps(written.as_json()))) == written


def test_too_few_images_are_refused_with_the_number_needed_and_few_are_cautioned() -> None:
    with pytest.raises(RunError, match=r"needs 13 images or more on either side.*12 generated and 40 reference"):
        score("frechet", features(12, seed=1), features(40, seed=2))
    with pytest.raises(RunError, match=r"needs 13 images.*40 generated and 12 reference"):
        score("frechet", features(40, seed=1), features(12, seed=2))
    with pytest.raises(RunError, match="needs 4 images"):
        score("kernel", features(3, seed=1), features(40, seed=2))
    assert "fewer than 2,048" in score("frechet", features(40, seed=1), features(40, seed=2)).caution
    assert RELIABLE_N == 2048
    counts = [(2048, 2048), (2047, 9999), (9999, 2047)]
    assert [caution(protocol(*each)) == "" for each in counts] == [True, False, False]


def test_one_resample_has_no_spread_and_levels_are_shares() -> None:
    with pytest.raises(UsageError, match="n_resamples is 1"):
        Resampling(0.9, 1, 0)
    with pytest.raises(UsageError, match="level is 95"):
        Resampling(95, 100, 0)


def test_halves_are_halves_and_a_mean_s_interval_is_the_known_one() -> None:
    chosen = halves(401, n_resamples=4000, seed=1)
    assert (chosen.sum(axis=1) == 200).all()
    sample = np.random.default_rng(2).normal(size=401)
    low, high = interval(sample.mean(), chosen @ sample / 200, n=401, level=LEVEL)
    assert (high - low) / 2 == pytest.approx(1.645 * sample.std() / np.sqrt(401), rel=0.06)
    assert (high + low) / 2 == pytest.approx(sample.mean(), abs=0.02)


def test_an_interval_subtracts_the_quantiles_of_the_halves_from_the_value() -> None:
    of_halves = np.arange(101.0) ** 2  # mean 3350, 25 and 9025 at 5 % and 95 %
    assert interval(7.0, of_halves, n=4, level=0.9) == pytest.approx((7 - 5675, 7 + 3325))
    shrunk = (2 / 3) ** 0.5  # halves of 2 of 5 images deviate more
    assert interval(7.0, of_halves, n=5, level=0.9) == pytest.approx((7 - 5675 * shrunk, 7 + 3325 * shrunk))


def test_share_intervals_are_wilsons() -> None:
    assert share_interval(5, 10, level=0.95) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert share_interval(1, 10, level=0.95) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert share_interval(0, 10, level=0.95) == pytest.approx((0, 0.2775), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
def test_share_intervals_cover_at_about_their_level(share: float) -> None:
    hits = np.random.default_rng(0).binomial(400, share, size=2000)
    covered = [low <= share <= high for low, high in (share_interval(int(n), 400, level=LEVEL) for n in hits)]
    assert np.mean(covered) >= 0.86
    assert share_interval(0, 400, level=LEVEL)[0] == 0
    assert share_interval(400, 400, level=LEVEL)[1] == 1


def made(value: float, arm: float, *, larger_is_better: bool = False) -> Score:
    return Score("frechet_small", value, value - arm, value + arm, LEVEL, 50, protocol(), larger_is_better)


def test_better_asks_for_more_than_the_margin_outside_the_interval() -> None:
    assert better(made(4, 0.3), made(5, 0.4), 0.4)
    assert not better(made(4, 0.3), made(5, 0.4), 0.6)
    assert not better(made(4, 0.8), made(5, 0.7), 0)
    assert not better(made(5, 0.1), made(4, 0.1), 0)
    assert better(made(5, 0.1, larger_is_better=True), made(4, 0.1, larger_is_better=True), 0.5)
    assert not better(made(5, 0.8, larger_is_better=True), made(4, 0.7, larger_is_better=True), 0)
    assert not better(made(5, 0, larger_is_better=True), made(4, 0, larger_is_better=True), 1)  # not beyond the margin
    assert not better(made(4, 0), made(5, 0), 1)
    gap = difference(made(4, 0.3), made(5, 0.4))
    assert (gap.value, gap.low, gap.high) == pytest.approx((-1, -1.5, -0.5))


def test_the_facing_arms_of_two_intervals_count() -> None:
    a, b = replace(made(4, 1), low=3.9, high=4.3), replace(made(5, 1), low=4.6, high=5.2)
    gap = difference(a, b)
    assert gap.low == pytest.approx(-1 - np.hypot(0.1, 0.2))
    assert gap.high == pytest.approx(-1 + np.hypot(0.3, 0.4))


def test_never_both_better() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = made(*rng.random(2)), made(*rng.random(2))
        assert not (better(a, b, 0) and better(b, a, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "inception"}, "network small against inception"),
        ({"sha256": "ef" * 32}, "sha256 abababababab against efefefefefef"),
        ({"n_generated": 5000}, "n_generated 300 against 5,000"),
        ({"resize": "bicubic to 299 px"}, "resize none against bicubic to 299 px"),
        ({"reference": "aa" * 16}, "reference cdcdcdcdcdcd against aaaaaaaaaaaa"),
        ({"parameters": (("n_neighbours", 5),)}, "n_neighbours none against 5"),
    ],
)
def test_unequal_protocols_refuse_comparison_and_name_what_differs(change: dict[str, object], message: str) -> None:
    other = replace(made(5, 0.1), protocol=replace(protocol(), **change))  # type: ignore[arg-type]
    for compare in (difference, lambda a, b: better(a, b, 0.0)):
        with pytest.raises(RunError, match=message):
            compare(made(4, 0.1), other)


def test_other_measures_levels_and_negative_margins_are_refused() -> None:
    with pytest.raises(RunError, match="name frechet_small against fid"):
        difference(made(4, 0.1), replace(made(4, 0.1), name="fid"))
    with pytest.raises(RunError, match=r"level 0\.9 against 0\.95"):
        difference(made(4, 0.1), replace(made(4, 0.1), level=0.95))
    with pytest.raises(RunError, match="margin is -1"):
        better(made(4, 0.1), made(5, 0.1), -1)


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_scaled_features_give_one_kernel_distance_whatever_the_network_s_units(factor: float) -> None:
    a, b = features(200, seed=1), features(300, seed=2, shift=0.2)

    def distance(unit: float) -> float:
        return kernel_score(
            unit * a,
            unit * b,
            scale=kernel_scale(unit * b),
            name="kernel_small",
            protocol=protocol(),
            resampling=Resampling(LEVEL, 10, 0),
        ).value

    assert distance(factor) == pytest.approx(distance(1.0), rel=1e-4)
    assert kernel_scale(np.zeros((3, 2))) == 1
