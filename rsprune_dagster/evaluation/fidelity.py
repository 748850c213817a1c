"""Distances between generated and real images in feature space: Fréchet distance and kernel distance.

Statistics are float64. Each score's protocol states images, network and counts. Intervals: `intervals.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.evaluation.intervals import Resampling, halves, interval
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.pruning.numerics import blocks, one_thread
from rsprune_dagster.utils.errors import RunError

Features = NDArray[np.floating]
"""(n, d)."""

RELIABLE_N: Final = 2048
"""Smallest sample size of published Fréchet distances; with fewer images the bias is large."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features, for the Fréchet distance."""

    mean: NDArray[np.float64]  # (d,)
    covariance: NDArray[np.float64]  # (d, d), divided by n - 1


def moments(features: Features) -> Moments:
    """Mean and covariance of features (n, d), n at least 2."""
    rows = np.asarray(features, np.float64)
    with one_thread():
        centred = rows - rows.mean(axis=0)
        return Moments(rows.mean(axis=0), centred.T @ centred / (len(rows) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2 (A B)^(1/2)), not negative (Dowson and Landau 1982; Heusel et al. 2017).

    The trace of (A B)^(1/2) is computed from the eigenvalues of the symmetric matrix A^(1/2) B A^(1/2), which avoids
    the matrix square root of a possibly singular product.
    """
    with one_thread():
        half = root(a.covariance)
        along = _nuclear(np.linalg.eigvalsh(half @ b.covariance @ half))
    apart = float(np.sum((a.mean - b.mean) ** 2))
    return max(apart + float(np.trace(a.covariance) + np.trace(b.covariance)) - 2 * along, 0.0)


def root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root (d, d) of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def _nuclear(eigenvalues: NDArray[np.floating]) -> float:
    """The sum of square roots; eigenvalues slightly below 0 from rounding are clipped."""
    return float(np.sqrt(np.maximum(eigenvalues, 0)).sum())


def frechet_score(
    generated: Features,
    reference: Features,
    *,
    name: str,
    protocol: Protocol,
    resampling: Resampling,
) -> Score:
    """The Fréchet distance of generated (n, d) to reference (m, d) features, with its interval.

    Raises RunError if n or m is below d + 1: the covariance would be singular and the distance mostly bias.
    """
    check_enough(len(generated), len(reference), generated.shape[1] + 1, name)
    real = moments(reference)
    value = frechet_distance(real, moments(generated))
    of_halves = _frechet_of_halves(
        np.asarray(generated, np.float64),
        real,
        halves(len(generated), n_resamples=resampling.n_resamples, seed=resampling.seed),
    )
    low, high = interval(value, of_halves, n=len(generated), level=resampling.level)
    return Score(
        name, value, max(low, 0.0), high, resampling.level, resampling.n_resamples, protocol, False, caution(protocol)
    )


def check_enough(n_generated: int, n_reference: int, needed: int, name: str) -> None:
    """Raise RunError, with the number needed, if a set has too few images."""
    if min(n_generated, n_reference) >= needed:
        return
    raise RunError(
        f"{name} needs {needed:,} images or more on either side, one more than its network has features, but "
        f"there are {n_generated:,} generated and {n_reference:,} reference images: use more, or a network with "
        "fewer features, or the unbiased kernel distance"
    )


def caution(protocol: Protocol) -> str:
    """A warning sentence if there are fewer images than in published Fréchet distances."""
    n = min(protocol.n_generated, protocol.n_reference)
    if n >= RELIABLE_N:
        return ""
    return (
        f"Measured on {n:,} images, fewer than {RELIABLE_N:,}: much of the distance is the bias of so few. Compare it "
        "only with distances of the same counts."
    )


def _frechet_of_halves(generated: NDArray[np.float64], real: Moments, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The distance of each half, (R,). The covariance of y = A^(1/2) x is A^(1/2) B A^(1/2)."""
    with one_thread():
        turned = generated @ root(real.covariance)
        return np.asarray([_frechet_of_half(generated[half], turned[half], real) for half in chosen])


def _frechet_of_half(half: NDArray[np.float64], turned: NDArray[np.float64], real: Moments) -> float:
    mean, y = half.mean(axis=0), turned - turned.mean(axis=0)
    smaller = y.T @ y if len(y) > y.shape[1] else y @ y.T  # both have the same nonzero eigenvalues
    along = _nuclear(np.linalg.eigvalsh(smaller / (len(y) - 1)))
    spread = float(np.trace(real.covariance)) + float(np.sum((half - mean) ** 2)) / (len(half) - 1)
    return float(np.sum((mean - real.mean) ** 2)) + spread - 2 * along


def kernel_distance(generated: Features, reference: Features) -> float:
    """The unbiased squared maximum mean discrepancy of all pairs, kernel (x.y / d + 1)³ (Binkowski et al. 2018: KID).

    Its mean is 0 if both sets come from one distribution, so it can be slightly negative. n and m at least 2.
    """
    everything = np.ones((1, len(generated)), np.bool_)
    return float(_kernel_distances(generated, reference, everything)[0])


def kernel_scale(reference: Features) -> float:
    """The root mean square of the reference features (1 if all are 0), by which features are divided.

    The constant 1 of the kernel suits features of order 1, such as Inception's. With larger features only the cubic
    term would matter, dominated by the few images with the strongest response.
    """
    return float(np.sqrt(np.mean(np.square(np.asarray(reference, np.float64))))) or 1.0


def kernel_score(
    generated: Features,
    reference: Features,
    *,
    scale: float = 1.0,
    name: str,
    protocol: Protocol,
    resampling: Resampling,
) -> Score:
    """The kernel distance of generated (n, d) to reference (m, d) features divided by `scale`, with its interval.

    Raises RunError if a set has fewer than 4 images, since a half needs two.
    """
    if min(len(generated), len(reference)) < 4:
        raise RunError(f"{name} needs 4 images or more on either side, but {len(generated)} and {len(reference)} came")
    everything = np.ones((1, len(generated)), np.bool_)
    chosen = halves(len(generated), n_resamples=resampling.n_resamples, seed=resampling.seed)
    values = _kernel_distances(generated / scale, reference / scale, np.concatenate([everything, chosen]))
    low, high = interval(float(values[0]), values[1:], n=len(generated), level=resampling.level)
    return Score(name, float(values[0]), low, high, resampling.level, resampling.n_resamples, protocol, False)


def _kernel_distances(generated: Features, reference: Features, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The distance of each chosen subset (R, n) of the generated set to the whole reference, (R,).

    Kernels are summed in blocks, never as a whole n x n matrix.
    """
    x, y = np.asarray(generated, np.float64), np.asarray(reference, np.float64)
    member = chosen.astype(np.float64)
    sizes, m = member.sum(axis=1), len(y)
    with one_thread():
        own = _pair_sums(x, member) / (sizes * (sizes - 1))
        cross = member @ _row_sums(x, y) / (sizes * m)
        real = _pair_sums(y, np.ones((1, m)))[0] / (m * (m - 1))
    return np.asarray(own + real - 2 * cross)


def _pair_sums(x: NDArray[np.float64], member: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums (R,) of the kernel over ordered pairs of different members (R, n) of x (n, d)."""
    sums = np.zeros(len(member))
    for rows, kernel in _kernel_blocks(x, x):
        kernel[np.arange(len(kernel)), np.arange(rows.start, rows.stop)] = 0.0
        sums += ((member @ kernel.T) * member[:, rows]).sum(axis=1)
    return sums


def _row_sums(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of the kernel of each x with all y, (n,)."""
    return np.concatenate([kernel.sum(axis=1) for _, kernel in _kernel_blocks(x, y)])


def _kernel_blocks(x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    for rows in blocks(len(x)):
        yield rows, (x[rows] @ y.T / x.shape[1] + 1) ** 3
