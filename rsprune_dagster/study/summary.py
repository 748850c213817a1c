"""Summary of a study: curves over seeds, paired differences, images needed, and a sentence per arm.

Intervals are Student's t over seeds. Differences of two arms are paired by seed: both start from the same weights and
use the same noise, so common variation cancels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from scipy.special import stdtrit

from rsprune_dagster.config.params import NO_FOUNDATION
from rsprune_dagster.study.arms import FULL, SHARES, parse_arm
from rsprune_dagster.study.results import ArmResult
from rsprune_dagster.utils.errors import RunError

LARGER_IS_BETTER: Final = ("precision", "recall", "density", "coverage", "psnr", "ssim", "miou")
RANDOM: Final = "random"
UNKNOWN: Final = math.nan


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its interval; `low` and `high` are nan for one seed."""

    value: float
    low: float
    high: float
    n_seeds: int

    @property
    def is_certain(self) -> bool:
        """Whether the interval excludes 0: a significant difference."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class ArmSummary:
    """One arm in one score."""

    arm: str
    n_tiles: int
    seeds: tuple[int, ...]
    curve: tuple[tuple[int, Estimate], ...]
    """By training images; complete seeds only."""
    to_full: Estimate | None
    """This arm minus the full corpus at the end, paired by seed; None for the full corpus or without it."""
    to_random: Estimate | None
    """The same against the random arm with the same keep fraction."""
    to_none: Estimate | None
    """The same against random weights without a foundation."""
    images_needed: tuple[float, ...]
    """Training images, by seed, to reach the full corpus' final score; inf: not reached. Empty for one checkpoint."""

    @property
    def final(self) -> Estimate:
        """The estimate at the end of the training."""
        return self.curve[-1][1]

    @property
    def median_images_needed(self) -> float:
        """The median of `images_needed`; nan without the full corpus."""
        return float(np.median(self.images_needed)) if self.images_needed else UNKNOWN


@dataclass(frozen=True)
class Summary:
    """The results of all arms for one score, the full corpus first."""

    score: str
    level: float
    n_images: int
    arms: tuple[ArmSummary, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values; nan and inf as None."""
        plain: dict[str, Any] = _finite({**asdict(self), "verdicts": self.verdicts()})
        return plain

    def verdicts(self) -> list[str]:
        """A sentence for each arm that is compared with another one."""
        return [sentence for arm in self.arms if (sentence := verdict(arm, self))]


def summarize(results: Sequence[ArmResult], *, score: str, level: float) -> Summary:
    """Summarize the complete runs.

    Raises:
        RunError: results of several studies, no complete run, or none with the score.
    """
    if len({result.study for result in results}) > 1:
        raise RunError(
            "results of several studies cannot be combined (other settings, another study): give those of one"
        )
    n_images = max((result.n_images for result in results), default=0)
    complete = [result for result in results if result.n_images == n_images and n_images in result.values(score)]
    if not complete:
        known = sorted({name for result in results for point in result.points for name in point.scores})
        raise RunError(f"no run of the study has {score} yet; there are {', '.join(known) or 'no runs'}")
    by_arm: dict[str, dict[int, ArmResult]] = {}
    for result in complete:
        by_arm.setdefault(result.arm, {})[result.seed] = result
    arms = [_summarized(name, by_arm, score, level) for name in sorted(by_arm, key=_place)]
    return Summary(score, level, n_images, tuple(arms))


def mean_over_seeds(values: Sequence[float], *, level: float) -> Estimate:
    """The mean of n values with Student's t interval of that level."""
    numbers = np.asarray(values, np.float64)
    mean, n = float(numbers.mean()), len(numbers)
    if n < 2:
        return Estimate(mean, UNKNOWN, UNKNOWN, n)
    half = float(stdtrit(n - 1, (1 + level) / 2) * numbers.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def images_to_reach(curve: Mapping[int, float], target: float, *, larger_is_better: bool = False) -> float:
    """Training images at which a curve first reaches `target`; inf if it never does.

    Between checkpoints the score is interpolated linearly in the logarithm of the images. If it is reached at the first
    checkpoint, that is an upper bound.
    """
    sign = -1.0 if larger_is_better else 1.0
    points = sorted((n_images, sign * value) for n_images, value in curve.items())
    before: tuple[int, float] | None = None
    for n_images, value in points:
        if value <= sign * target:
            if before is None or before[1] == value:
                return float(n_images)
            share = (before[1] - sign * target) / (before[1] - value)
            return float(before[0] * (n_images / before[0]) ** share)
        before = n_images, value
    return math.inf


def verdict(arm: ArmSummary, summary: Summary) -> str:
    """The result of an arm in a sentence; empty if it is compared with no other."""
    against = {"the full corpus": arm.to_full, "as many random tiles": arm.to_random, "random weights": arm.to_none}
    said = [_compared(gap, whom, summary) for whom, gap in against.items() if gap is not None]
    if not said:
        return ""
    needed = arm.median_images_needed
    if arm.images_needed:
        said.append(
            "it does not reach the full corpus' final score within the training"
            if math.isinf(needed)
            else f"it reaches the full corpus' final score after {needed:,.0f} of {summary.n_images:,} images "
            f"({needed / summary.n_images:.0%}; median of {len(arm.images_needed)} seeds)"
        )
    tiles = f" ({arm.n_tiles:,} tiles)" if arm.n_tiles else ""
    return f"{arm.arm}{tiles}: {'; '.join(said)}."


def larger_is_better(score: str) -> bool:
    """Whether larger values are better: true for proportions and PSNR, false for distances."""
    return score.startswith(LARGER_IS_BETTER)


def _compared(gap: Estimate, whom: str, summary: Summary) -> str:
    spread = f"{gap.value:+.4g}, {summary.level:.0%} interval {gap.low:+.4g} to {gap.high:+.4g}, {gap.n_seeds} seeds"
    if gap.n_seeds < 2:
        return f"{gap.value:+.4g} against {whom}, on one seed, which tells of no spread"
    if not gap.is_certain:
        return f"no difference to {whom} that can be told ({spread})"
    better = (gap.value > 0) == larger_is_better(summary.score)
    return f"{'better' if better else 'worse'} than {whom} ({spread})"


def _summarized(name: str, by_arm: Mapping[str, Mapping[int, ArmResult]], score: str, level: float) -> ArmSummary:
    own = by_arm[name]
    full, random, none = (by_arm.get(other, {}) for other in (FULL, _random_peer(name), NO_FOUNDATION))
    curves = {seed: result.values(score) for seed, result in own.items()}
    shared = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    return ArmSummary(
        arm=name,
        n_tiles=next(iter(own.values())).n_tiles,
        seeds=tuple(sorted(own)),
        curve=tuple((n, mean_over_seeds([curves[seed][n] for seed in sorted(own)], level=level)) for n in shared),
        to_full=_difference(own, full, score, level) if name != FULL else None,
        to_random=_difference(own, random, score, level) if not name.startswith(RANDOM) else None,
        to_none=_difference(own, none, score, level) if name != NO_FOUNDATION else None,
        images_needed=tuple(
            images_to_reach(curves[seed], _final(full[seed], score), larger_is_better=larger_is_better(score))
            for seed in sorted(own)
            if seed in full and len(shared) > 1
        ),
    )


def _difference(
    own: Mapping[int, ArmResult], other: Mapping[int, ArmResult], score: str, level: float
) -> Estimate | None:
    """The difference of final scores, paired by seed; None without common seeds."""
    shared = sorted(own.keys() & other.keys())
    gaps = [_final(own[seed], score) - _final(other[seed], score) for seed in shared]
    return mean_over_seeds(gaps, level=level) if gaps else None


def _final(result: ArmResult, score: str) -> float:
    return result.points[-1].scores[score]


def _random_peer(name: str) -> str:
    arm = parse_arm(name)
    return "" if arm.strategy in SHARES else f"{RANDOM}-{arm.keep_fraction:g}"


def _place(name: str) -> tuple[float, bool, bool, str]:
    """Sort key: full first, then by descending fraction; within a fraction random first, RS-Prune second."""
    arm = parse_arm(name)
    return -arm.keep_fraction, arm.strategy != RANDOM, arm.strategy != "rsprune", name


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
