"""Confidence intervals: by random halves of the generated set, and of proportions.

**Meaning.** The interval covers the mean score of other sets of the same size from the same generator, against the same
reference. The reference is fixed, so it serves to compare models measured against one reference. The variation
between training seeds is not included.

**Why halves.** A half drawn without replacement deviates from the whole as the whole deviates from the truth: for a
statistic that is a mean to first order, var(half | whole) = s²/n (random subsampling: Politis and Romano 1994; the
delete-n/2 jackknife: Shao and Wu 1989). A bootstrap draws images repeatedly, which biases nearest neighbours and
unbiased kernel sums, and made the spread of a Fréchet distance 25 % too wide with 2 images per feature.

**Bias.** A half is smaller, and many scores depend on the sample size: a Fréchet distance of n images exceeds the
asymptotic one by about c/n; recall and coverage are too low. So only the *spread* of the halves around their own mean
is used. The interval is for the score at this n, bias included: compare at equal n (`protocol.better` enforces it).

**Accuracy.** Close to 0 a kernel distance, and to a degree a Fréchet distance, is quadratic in the sampling error; the
spread of the halves is then up to √3 times too large, so the interval is conservative. For recall and coverage it is
approximate: in simulations, intervals of level 0.9 had a coverage of 0.8 to 0.95.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from rsprune_dagster.utils.errors import UsageError

LEVEL: Final = 0.95
N_RESAMPLES: Final = 50


@dataclass(frozen=True)
class Resampling:
    """Settings of intervals. UsageError: a level outside 0 to 1, or fewer than 2 resamples."""

    level: float = LEVEL  # confidence level, 0 to 1
    n_resamples: int = N_RESAMPLES  # random halves of the samples per interval
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UsageError(f"level is {self.level}, expected a share between 0 and 1, such as 0.95")
        if self.n_resamples < 2:
            raise UsageError(
                f"n_resamples is {self.n_resamples}, expected 2 or more: an interval is the spread of resamples"
            )


def halves(n: int, *, n_resamples: int, seed: int) -> NDArray[np.bool_]:
    """Masks of `n_resamples` random halves of n images: (n_resamples, n), n // 2 true per row."""
    chosen = np.broadcast_to(np.arange(n) < n // 2, (n_resamples, n))
    return np.random.default_rng([seed, n]).permuted(chosen, axis=1)


def interval(value: float, of_halves: NDArray[np.float64], *, n: int, level: float) -> tuple[float, float]:
    """The interval around `value`, the score of n images, from the scores of its halves (R,).

    With m = n // 2 the halves deviate sqrt((n - m) / m) times as much as the whole. Deviations are subtracted: if the
    halves have an upper tail, the truth may lie far below.
    """
    m = n // 2
    deviations = (of_halves - of_halves.mean()) * math.sqrt(m / (n - m))
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    return value - float(high), value - float(low)


def share_interval(n_hits: int, n: int, *, level: float) -> tuple[float, float]:
    """Wilson's interval (1927) of the proportion n_hits / n, n at least 1; within 0 to 1, valid at 0 and n hits too."""
    z, share = float(ndtri((1 + level) / 2)), n_hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)
