"""What a study says of known curves: images needed, intervals, differences by seed, sentences; and its pictures."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_runs import KERNEL, result

from rsprune_dagster.study.results import ArmResult
from rsprune_dagster.study.summary import images_to_reach, mean_over_seeds, summarize
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.viz.study import arms_table, convergence

FALLING = {100: 8.0, 200: 6.0, 400: 4.0, 800: 2.0}


def three_arms() -> list[ArmResult]:
    """RS-Prune is lower by 1 everywhere, seeds differ by 3: only pairs can tell."""
    results = []
    for seed, shift in enumerate((0.0, 3.0, 6.0)):
        full = {n: value + shift for n, value in FALLING.items()}
        results.append(result("full", seed, full))
        results.append(result("random-0.15", seed, {n: value + (-1) ** seed * 0.5 for n, value in full.items()}))
        results.append(result("rsprune-0.15", seed, {n: value - 1 - seed / 100 for n, value in full.items()}))
    return results


@pytest.mark.parametrize(("target", "n_images"), [(8, 100), (6, 200), (3, 400 * 2**0.5), (2, 800), (9, 100)])
def test_the_images_needed_of_a_known_curve(target: float, n_images: float) -> None:
    assert images_to_reach(FALLING, target) == pytest.approx(n_images)
    rising = {n: -value for n, value in FALLING.items()}
    assert images_to_reach(rising, -target, larger_is_better=True) == pytest.approx(n_images)


def test_what_a_curve_never_reaches_takes_for_ever() -> None:
    assert images_to_reach(FALLING, 1.9) == math.inf
    assert images_to_reach({}, 1.0) == math.inf


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6), st.floats(0, 100), st.floats(0, 50))
def test_a_harder_target_never_needs_fewer_images(values: list[float], target: float, less: float) -> None:
    curve = {100 * 2**place: value for place, value in enumerate(values)}
    assert images_to_reach(curve, target - less) >= images_to_reach(curve, target)


@given(st.lists(st.floats(1, 100), min_size=1, max_size=6))
def test_a_curve_needs_at_most_its_length_to_reach_its_own_end(values: list[float]) -> None:
    curve = {100 * 2**place: value for place, value in enumerate(values)}
    assert images_to_reach(curve, values[-1]) <= max(curve)


def test_the_interval_is_students() -> None:
    estimate = mean_over_seeds([1.0, 2.0, 3.0], level=0.95)
    half = 4.302652729749462 / math.sqrt(3)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((2, 2 - half, 2 + half))
    assert math.isnan(mean_over_seeds([1.0], level=0.95).low)


def test_differences_are_taken_seed_by_seed() -> None:
    summary = summarize(three_arms(), score=KERNEL, level=0.95)
    assert [arm.arm for arm in summary.arms] == ["full", "random-0.15", "rsprune-0.15"]
    full, random, rsprune = summary.arms
    assert full.to_full is None and full.to_random is None and random.to_random is None
    assert rsprune.to_full is not None and rsprune.to_full.value == pytest.approx(-1.01) and rsprune.to_full.is_certain
    assert random.to_full is not None and not random.to_full.is_certain
    assert rsprune.final.low < full.final.value < rsprune.final.high  # unpaired, the seeds' own spread hides it


def test_the_images_needed_are_against_the_same_seed() -> None:
    full, _, rsprune = summarize(three_arms(), score=KERNEL, level=0.95).arms
    assert full.images_needed == (800.0, 800.0, 800.0)
    assert rsprune.images_needed == pytest.approx([400 * 2 ** (0.5 - seed / 200) for seed in range(3)])


def test_the_sentences_say_what_can_be_told() -> None:
    sentences = summarize(three_arms(), score=KERNEL, level=0.95).verdicts()
    assert len(sentences) == 2
    assert "no difference to the full corpus that can be told" in sentences[0]
    assert "better than the full corpus" in sentences[1] and "of 800 images (70%" in sentences[1]
    worse = [result("full", seed, {50: 1.5, 100: 1.0}) for seed in (0, 1)] + [
        result("semdedup-0.15", seed, {50: 2.5, 100: 2.0 + seed / 100}) for seed in (0, 1)
    ]
    assert "worse than the full corpus" in summarize(worse, score=KERNEL, level=0.95).verdicts()[0]
    assert "does not reach" in summarize(worse, score=KERNEL, level=0.95).verdicts()[0]


def test_arms_are_compared_with_random_weights_and_one_checkpoint_tells_of_no_convergence() -> None:
    levels = {"full": 27.0, "random-0.15": 26.5, "rsprune-0.15": 27.5, "none": 25.0}
    results = [
        result(arm, seed, {100: level + seed / 100}, score="psnr_mean")
        for arm, level in levels.items()
        for seed in (0, 1)
    ]
    summary = summarize(results, score="psnr_mean", level=0.95)
    assert [arm.arm for arm in summary.arms] == [*levels]
    gaps = [arm.to_none.value if arm.to_none else None for arm in summary.arms]
    assert gaps == pytest.approx([2.0, 1.5, 2.5, None])
    assert not any(arm.images_needed for arm in summary.arms)
    assert "better than as many random tiles (+1" in summary.verdicts()[2]
    assert "better than random weights (+2.5" in summary.verdicts()[2] and "images" not in summary.verdicts()[2]
    assert summary.verdicts()[3].startswith("none: worse than the full corpus (-2")


def test_one_seed_tells_of_no_spread() -> None:
    one = [each for each in three_arms() if each.seed == 0]
    assert "one seed" in summarize(one, score=KERNEL, level=0.95).verdicts()[0]


def test_where_larger_is_better_the_sentence_turns() -> None:
    results = [
        result(arm, seed, {100: level + seed / 100}, score="coverage_x")
        for arm, level in (("full", 0.1), ("rsprune-0.15", 0.4))
        for seed in (0, 1, 2)
    ]
    assert "better than the full corpus" in summarize(results, score="coverage_x", level=0.95).verdicts()[0]


def test_arms_stand_by_falling_fraction_with_random_and_rsprune_first() -> None:
    names = ["full", "random-0.3", "rsprune-0.3", "herding-0.3", "random-0.15", "rsprune-0.15", "semdedup-0.15"]
    results = [result(name, seed, {100: len(name) + seed}) for name in reversed(names) for seed in (1, 0)]
    arms = summarize(results, score=KERNEL, level=0.95).arms
    assert [arm.arm for arm in arms] == names and {arm.seeds for arm in arms} == {(0, 1)}
    to_random = {arm.arm: arm.to_random and arm.to_random.value for arm in arms}
    assert to_random == {
        name: None if name == "full" or name.startswith("random") else len(name) - len(f"random-{name.split('-')[1]}")
        for name in names
    }


def test_a_curve_has_the_checkpoints_that_all_seeds_have() -> None:
    results = [result("full", 0, {100: 4.0, 200: 2.0, 400: 1.0}), result("full", 1, {100: 6.0, 400: 3.0})]
    [full] = summarize(results, score=KERNEL, level=0.95).arms
    assert [(n, estimate.value) for n, estimate in full.curve] == [(100, 5.0), (400, 2.0)]
    assert full.final.value == 2


def test_runs_on_their_way_do_not_count() -> None:
    unfinished = result("rsprune-0.05", 0, {100: 0.0, 200: 0.0})
    summary = summarize([*three_arms(), unfinished], score=KERNEL, level=0.95)
    assert "rsprune-0.05" not in {arm.arm for arm in summary.arms}


def test_results_of_two_studies_are_not_mixed() -> None:
    with pytest.raises(RunError, match="several studies"):
        summarize([*three_arms(), result("full", 3, FALLING, study="other")], score=KERNEL, level=0.95)


def test_a_score_that_was_not_measured_is_told() -> None:
    with pytest.raises(RunError, match=f"there are {KERNEL}"):
        summarize(three_arms(), score="fid", level=0.95)
    with pytest.raises(RunError, match="no runs"):
        summarize([], score="fid", level=0.95)


def test_a_summary_is_plain_json() -> None:
    lonely = [result("full", 0, FALLING), result("random-0.15", 0, {n: value + 9 for n, value in FALLING.items()})]
    text = json.dumps(summarize(lonely, score=KERNEL, level=0.95).as_json(), allow_nan=False)
    assert json.loads(text)["arms"][1]["images_needed"] == [None]


def test_the_pictures_show_every_arm() -> None:
    summary = summarize(three_arms(), score=KERNEL, level=0.95).as_json()
    figure, table = convergence(summary), arms_table(summary)
    assert [words.partition(" (")[0] for _, words in figure.legend] == [row[0] for row in table.rows]
    tones = [shape.tone for shape in figure.plots[0].shapes if shape.form == "line"]
    assert tones == ["s0", "s1", "s2", "dropped"]  # the full corpus' end is the grey one
    assert str(table.rows[-1][0]).startswith("rsprune 15") and "of 800" in str(table.rows[-1][6])
    assert "±" in str(table.rows[0][3])


def test_a_seed_that_never_gets_there_counts_as_endless() -> None:
    never = {n: value + 9 for n, value in FALLING.items()}
    lonely = [result("full", 0, FALLING), result("random-0.15", 0, never)]
    rows = arms_table(summarize(lonely, score=KERNEL, level=0.95).as_json()).rows
    assert rows[1][6] == "not reached" and rows[1][3] and "±" not in str(rows[1][3])
