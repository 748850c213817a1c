"""Intervals: by halving the generated set, and of shares.

**What an interval means.** It says where the score would lie, on average, for other sets of as many images drawn from
the same generator, against the same reference. It holds the reference fixed, so it is for comparing models that were
measured against one reference. Training again with another seed is not in it.

**Why halves.** A half drawn without replacement differs from its whole as the whole differs from the truth: for a
statistic that is a mean to first order, var(half | whole) = s²/n (random subsampling: Politis and Romano 1994; the
delete-n/2 jackknife: Shao and Wu 1989). A bootstrap draws images twice, which nearest neighbours and unbiased kernel
sums take for copies, and which made the spread of a Fréchet distance a quarter too wide with 2 images per feature.

**The known bias.** A half is smaller, and many scores depend on the count: a Fréchet distance of n images lies above
that of infinitely many by about c/n, recall and coverage lie below. So only the *spread* of the halves around their own
mean is used. The interval is for the score at this n, bias included, not for the score at infinity: compare at equal n
(`protocol.better` insists).

**Where it is wide.** Close to 0 a kernel distance, and to a degree a Fréchet distance, is quadratic in the sampling
error; halves then spread up to √3 times too much: the interval errs on the careful side. Recall and coverage depend on
the count, so theirs are approximate: in simulation 0.8 to 0.95 of the intervals of level 0.9 held.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from rsprune_dagster.errors import UsageError


@dataclass(frozen=True)
class Resampling:
    """How intervals are made. UsageError: a level outside 0 to 1, or fewer than 2 resamples, which have no spread."""

    level: float  # share of intervals that hold, 0 to 1
    n_resamples: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UsageError(f"level is {self.level}, expected a share between 0 and 1, such as 0.95")
        if self.n_resamples < 2:
            raise UsageError(
                f"n_resamples is {self.n_resamples}, expected 2 or more: an interval is the spread of resamples"
            )


def halves(n: int, *, n_resamples: int, seed: int) -> NDArray[np.bool_]:
    """Which of n images are in each of `n_resamples` random halves: (n_resamples, n), n // 2 true in a row."""
    chosen = np.broadcast_to(np.arange(n) < n // 2, (n_resamples, n))
    return np.random.default_rng([seed, n]).permuted(chosen, axis=1)


def interval(value: float, of_halves: NDArray[np.float64], *, n: int, level: float) -> tuple[float, float]:
    """The interval around `value`, the score of n images, from the scores of its halves (R,).

    With m = n // 2 the halves deviate sqrt((n - m) / m) times as much as the whole. Deviations are subtracted: when
    halves have a tail upwards, the truth may lie far below.
    """
    m = n // 2
    deviations = (of_halves - of_halves.mean()) * math.sqrt(m / (n - m))
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    return value - float(high), value - float(low)


def share_interval(n_hits: int, n: int, *, level: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share `n_hits` of n, n at least 1; within 0 to 1, honest at 0 and n hits too."""
    z, share = float(ndtri((1 + level) / 2)), n_hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)
