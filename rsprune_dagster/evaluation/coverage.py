"""Precision, recall, density and coverage: whether samples look real and cover the real distribution.

Each image has an open ball whose radius is the distance to its k-th nearest neighbour in its own set, as in Naeem et
al.'s code (prdc), so a set of distinct images has density 1 against itself. The union of the balls is the set's
manifold. An image with k copies in its own set has an empty ball.

Precision: share of samples in the reference's manifold; recall: share of reference images in the samples' manifold
(Kynkäänniemi et al. 2019, arXiv 1904.06991). Density: mean number of reference balls that contain a sample, over k;
coverage: share of reference balls that contain a sample. These two are robust to outliers (Naeem et al. 2020, arXiv
2002.09797). Recall and coverage rise with the number of samples: compare at equal counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.evaluation.intervals import Resampling, halves, interval
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.pruning.numerics import blocks
from rsprune_dagster.pruning.scenes import squared_distances
from rsprune_dagster.utils.errors import RunError

N_NEIGHBOURS: Final = 5
"""k of the nearest-neighbour balls: 3 in Kynkäänniemi et al. 2019, 5 in Naeem et al. 2020."""
NAMES: Final = ("precision", "recall", "density", "coverage")
ROUNDING: Final = 1e-11
"""Tolerance of squared distances relative to a set's squared spread: BLAS may round by position in the matrix, and the
k-th neighbour must lie outside the open ball."""
BALLS: Final = "open, as in prdc"
"""Protocol entry: prevents comparison with scores of closed balls."""
SPARE_NEIGHBOURS: Final = 24
"""Neighbours stored beyond 4 k, so that the k-th nearest in a random half is almost certainly among them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Neighbours:
    """The nearest other rows of each of n rows, nearest first."""

    index: NDArray[np.intp]  # (n, K)
    squared: Floats  # (n, K)

    def radii(self, k: int) -> Floats:
        """Squared distance of the k-th nearest, (n,)."""
        return self.squared[:, k - 1]

    def radii_among(self, member: NDArray[np.bool_], k: int) -> Floats:
        """Squared distance (n,) of the k-th nearest `member` (n,); the farthest stored one if there are fewer."""
        counted = np.cumsum(member[self.index], axis=1) >= k
        column = np.where(counted.any(axis=1), counted.argmax(axis=1), self.index.shape[1] - 1)
        return np.asarray(self.squared[np.arange(len(self.squared)), column])


def coverage_scores(
    generated: NDArray[np.floating],
    reference: NDArray[np.floating],
    *,
    n_neighbours: int,
    network: str,
    protocol: Protocol,
    resampling: Resampling,
) -> tuple[Score, ...]:
    """The four scores of generated (n, d) against reference (m, d) features, with k = `n_neighbours`.

    Raises RunError if half of either set has too few images for k.
    """
    _check_enough(len(generated), len(reference), n_neighbours)
    chosen = halves(len(generated), n_resamples=resampling.n_resamples, seed=resampling.seed)
    whole, of_halves = four_measures(generated, reference, n_neighbours=n_neighbours, chosen=chosen)
    used = replace(protocol, parameters=(*protocol.parameters, ("n_neighbours", n_neighbours), ("balls", BALLS)))
    scores = []
    for column, name in enumerate(NAMES):
        low, high = interval(float(whole[column]), of_halves[:, column], n=len(generated), level=resampling.level)
        most = np.inf if name == "density" else 1.0
        bounds = max(low, 0.0), min(high, most)
        scores.append(
            Score(
                f"{name}_{network}", float(whole[column]), *bounds, resampling.level, resampling.n_resamples, used, True
            )
        )
    return tuple(scores)


def _check_enough(n_generated: int, n_reference: int, n_neighbours: int) -> None:
    needed = 2 * (n_neighbours + 1)
    if n_neighbours < 1 or min(n_generated, n_reference) < needed:
        raise RunError(
            f"precision and recall with {n_neighbours} neighbours need {needed} images or more on either side and 1 "
            f"neighbour or more, but there are {n_generated:,} generated and {n_reference:,} reference images: use "
            "more images or fewer neighbours"
        )


def four_measures(
    generated: NDArray[np.floating],
    reference: NDArray[np.floating],
    *,
    n_neighbours: int,
    chosen: NDArray[np.bool_],
) -> tuple[Floats, Floats]:
    """Precision, recall, density and coverage (4,), and those (R, 4) of the subsets `chosen` (R, n) of `generated`.

    Distances are computed in blocks, never as a whole n x m matrix.
    """
    x, y, slack = _centred(generated, reference)
    parts = np.concatenate([np.ones((1, len(x)), np.bool_), chosen])
    known = nearest_others(x, min(4 * n_neighbours + SPARE_NEIGHBOURS, len(x) - 1))
    balls = np.stack([known.radii_among(part, n_neighbours) for part in parts]) - slack
    real_balls = nearest_others(y, n_neighbours).radii(n_neighbours) - slack
    n_balls, n_recalled, n_covered = np.zeros(len(x)), np.zeros(len(parts)), np.zeros(len(parts))
    for rows, squared in distance_blocks(y, x):
        within = squared < real_balls[rows, None]
        n_balls += within.sum(axis=0)
        n_covered += (within.astype(np.float32) @ parts.T.astype(np.float32) > 0).sum(axis=0)
        n_recalled += [
            (squared[:, part] < ball[part]).any(axis=1).sum() for part, ball in zip(parts, balls, strict=True)
        ]
    sizes = parts.sum(axis=1)
    measured = np.stack(
        [
            parts @ (n_balls > 0).astype(float) / sizes,
            n_recalled / len(y),
            parts @ n_balls / (n_neighbours * sizes),
            n_covered / len(y),
        ],
        axis=1,
    )
    return measured[0], measured[1:]


def _centred(generated: NDArray[np.floating], reference: NDArray[np.floating]) -> tuple[Floats, Floats, float]:
    """Both sets centred on the reference's mean, to reduce rounding, and the tolerance of squared distances."""
    x, y = np.asarray(generated, np.float64), np.asarray(reference, np.float64)
    centre = y.mean(axis=0)
    largest = max(float(np.square(x - centre).sum(axis=1).max()), float(np.square(y - centre).sum(axis=1).max()))
    return x - centre, y - centre, ROUNDING * largest


def nearest_others(x: Floats, n_neighbours: int) -> Neighbours:
    """The `n_neighbours` nearest other rows of each row of x (n, d), at most n - 1 of them."""
    index, nearest = [], []
    for rows, squared in distance_blocks(x, x):
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
        near = np.argpartition(squared, n_neighbours - 1, axis=1)[:, :n_neighbours]
        order = np.take_along_axis(squared, near, axis=1).argsort(axis=1, kind="stable")
        index.append(np.take_along_axis(near, order, axis=1))
        nearest.append(np.take_along_axis(squared, index[-1], axis=1))
    return Neighbours(np.concatenate(index), np.concatenate(nearest))


def distance_blocks(x: Floats, y: Floats) -> Iterator[tuple[slice, Floats]]:
    """Squared distances (b, m) of blocks of rows of x to all of y (m, d)."""
    for rows in blocks(len(x)):
        yield rows, squared_distances(x[rows], y)
