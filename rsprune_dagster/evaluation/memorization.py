"""Detect samples that are copies of training tiles: small training sets invite copying, and copies score well.

Each sample's nearest training tile is searched over all eight orientations, in a network's features and in downscaled
images. A sample can be close without copying, so *held-out* tiles define the normal distance:

* `closer`: share of samples whose distance is below the `quantile` of the held-out tiles' distances. Smooth samples are
  close to everything and raise it without copying.
* `singled_out`: the same for the distance to the nearest tile divided by the mean distance to the next nearest ones. A
  copy is close to one tile only (Carlini et al. 2023, arXiv 2301.13188, section 5.1).

Without memorization the expected share is at most `quantile`: the threshold is an order statistic of the held-out
distances (as in conformal tests). The interval covers the sampling error of the samples only; `chance` is a p-value
that includes that of the held-out tiles: the probability of so large a share if samples and held-out tiles have the
same distribution. This assumes held-out tiles with the same scenes in the same proportions.

Measured on EuroSAT (1,024 training tiles, 640 held out, quantile 1 %): of rotated copies re-encoded as JPEG 90,
`singled_out` finds 88 % in downscaled images and 0 to 26 % in features, which are sensitive to the encoding; `closer`
finds 5 %, since calm water is closer to other calm water than a copy of a town to the town. All four find all exact
copies. So `singled_out_pixels` is the most useful score.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.evaluation.image_set import ImageSet
from rsprune_dagster.evaluation.intervals import share_interval
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.pruning.numerics import blocks, one_thread
from rsprune_dagster.utils.errors import RunError

HELD_OUT_QUANTILE = 0.01
"""A sample counts as close below this quantile of the held-out tiles' distances. It needs 99 held-out tiles, and 1 % of
the samples of a model that copies nothing are counted too."""
COPY_NEIGHBOURS = 20
"""Further nearest training tiles that the nearest distance is divided by."""
BLOCK_TRAINING = 4096
"""Training tiles compared at a time."""

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Nearest:
    """The nearest training tile of each of n images."""

    index: NDArray[np.int64]  # (n,)
    turn: NDArray[np.int64]  # (n,) the nearest of the image's eight orientations, see `image_set.turn_of`
    distance: NDArray[np.float64]  # (n,) Euclidean
    relative: NDArray[np.float64]  # (n,) distance over the mean of the next nearest; 0: a copy, 1: not closer


@dataclass(frozen=True)
class Pair:
    """A sample and its nearest training tile, as numbers in input order."""

    sample: int
    training: int
    turn: int
    distance: float
    relative: float


@dataclass(frozen=True)
class Excess:
    """The share of samples that are closer than normal."""

    score: Score  # their share
    threshold: float  # values below it are not normal
    chance: float  # p-value: probability of so large a share without memorization


@dataclass(frozen=True)
class Memorization:
    """The results in one space. Rows of `samples` and `held_out` are in content order; `pairs` are not."""

    space: str
    samples: Nearest
    held_out: Nearest
    closer: Excess
    singled_out: Excess
    pairs: tuple[Pair, ...]  # all samples, smallest relative distance first


def memorization(
    generated: ImageSet,
    held_out: ImageSet,
    training: ImageSet,
    *,
    space: str,
    protocol: Protocol,
    quantile: float,
    n_neighbours: int,
    level: float,
) -> Memorization:
    """Compare samples with held-out tiles by their nearest training tiles in `space`.

    `generated` and `held_out` have all orientations. `n_neighbours`: number of next nearest tiles for the relative
    distance. Raises RunError if there are too few held-out or training tiles.
    """
    check_enough(len(held_out), len(training), quantile=quantile, n_neighbours=n_neighbours)
    samples, others = (
        nearest(images.turned[space], training.spaces[space], n_neighbours=n_neighbours)
        for images in (generated, held_out)
    )
    used = replace(
        protocol,
        parameters=(*protocol.parameters, ("quantile", quantile), ("n_neighbours", n_neighbours)),
    )
    closer, singled_out = (
        excess(name, values, normal, protocol=used, quantile=quantile, level=level)
        for name, values, normal in (
            (f"closer_{space}", samples.distance, others.distance),
            (f"singled_out_{space}", samples.relative, others.relative),
        )
    )
    return Memorization(space, samples, others, closer, singled_out, pairs_of(samples, generated, training))


def check_enough(n_held_out: int, n_training: int, *, quantile: float, n_neighbours: int) -> None:
    """Raise RunError, with the numbers needed, if there are too few tiles."""
    needed = math.ceil(1 / quantile) - 1
    if n_held_out < needed:
        raise RunError(
            f"memorization at the {quantile:.3g} quantile needs {needed:,} held-out tiles or more, but {n_held_out:,} "
            "came: hold out more"
        )
    if n_training < n_neighbours + 1:
        raise RunError(
            f"memorization against {n_neighbours} further neighbours needs {n_neighbours + 1} training tiles or more, "
            f"but {n_training:,} came: keep more tiles"
        )


def excess(
    name: str,
    values: NDArray[np.float64],
    normal: NDArray[np.float64],
    *,
    protocol: Protocol,
    quantile: float,
    level: float,
) -> Excess:
    """The share of `values` (n,) below the j-th smallest of the `normal` ones (m,), j = floor(quantile (m + 1)).

    For exchangeable values, their number is beta-binomial with n, j and m + 1 - j, with a mean of at most
    `quantile` n.
    """
    from scipy.stats import betabinom

    n, m = len(values), len(normal)
    j = max(math.floor(quantile * (m + 1) + 1e-9), 1)
    threshold = float(np.sort(normal)[j - 1])
    n_below = int(np.sum(values < threshold))
    low, high = share_interval(n_below, n, level=level)
    chance = float(betabinom.sf(n_below - 1, n, j, m + 1 - j))
    return Excess(Score(name, n_below / n, low, high, level, 0, protocol, False), threshold, chance)


def nearest(turned: NDArray[np.floating], training: NDArray[np.floating], *, n_neighbours: int) -> Nearest:
    """The training tile (t, d) nearest to any orientation of each image (8, n, d), in blocks; ties: the first."""
    centre = training.mean(axis=0, dtype=np.float64)
    images, tiles = turned - centre, training - centre
    with one_thread():
        found = [_nearest_of(images[:, rows], tiles, n_neighbours) for rows in blocks(images.shape[1])]
    index, turn, further = (np.concatenate(parts) for parts in zip(*found, strict=True))
    own = images[turn, np.arange(len(turn))]
    distance = np.sqrt(np.square(own - tiles[index]).sum(axis=1))  # recomputed directly, so that copies have distance 0
    return Nearest(index, turn, distance, distance / np.maximum(further, 1e-12))


def _nearest_of(images: Floats, tiles: Floats, n_neighbours: int) -> tuple[Rows, Rows, Floats]:
    """Nearest tile and orientation (b,), and mean distance of the next `n_neighbours`, for images (8, b, d)."""
    everyone = np.arange(images.shape[1])
    index, turn, best = np.zeros_like(everyone), np.zeros_like(everyone), np.full(len(everyone), np.inf)
    known = np.empty((len(everyone), 0))
    for columns in blocks(len(tiles), BLOCK_TRAINING):
        squared, which = _over_turns(images, tiles[columns])
        column = squared.argmin(axis=1)
        nearer = squared[everyone, column] < best
        best = np.minimum(best, squared[everyone, column])
        index[nearer], turn[nearer] = columns.start + column[nearer], which[everyone, column][nearer]
        known = _smallest(np.concatenate([known, squared], axis=1), n_neighbours + 1)
    return index, turn, np.sqrt(np.sort(known, axis=1)[:, 1:]).mean(axis=1)


def _smallest(values: Floats, n: int) -> Floats:
    """The n smallest of each row, unsorted; all if there are fewer."""
    return values if values.shape[1] <= n else np.partition(values, n - 1, axis=1)[:, :n]


def _over_turns(images: Floats, tiles: Floats) -> tuple[Floats, NDArray[np.int8]]:
    """The smallest squared distances (b, t) over orientations of images (8, b, d) to tiles (t, d); and those."""
    least = np.full((images.shape[1], len(tiles)), np.inf)
    which = np.zeros(least.shape, np.int8)
    norms = np.square(tiles).sum(axis=1)
    for turn, image in enumerate(images):
        squared = norms - 2 * (image @ tiles.T) + np.square(image).sum(axis=1, keepdims=True)
        which[squared < least] = turn
        np.minimum(least, squared, out=least)
    return np.maximum(least, 0, out=least), which


def pairs_of(samples: Nearest, generated: ImageSet, training: ImageSet) -> tuple[Pair, ...]:
    """Each sample with its nearest training tile, smallest relative distance first."""
    return tuple(
        Pair(
            sample=int(generated.rows[row]),
            training=int(training.rows[samples.index[row]]),
            turn=int(samples.turn[row]),
            distance=float(samples.distance[row]),
            relative=float(samples.relative[row]),
        )
        for row in np.lexsort((samples.distance, samples.relative))
    )
