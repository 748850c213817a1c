"""Stage 2a: strata from the labelled reference. Closed-form statistics assign each tile a scene, without training.

The reference's embeddings give a shrinkage linear discriminant (Fisher 1936; Friedman 1989): the directions of large
variance between scenes relative to the variance within scenes. Prototypes are the scene means in that space. The
distances of held-out reference tiles calibrate a tile's distance to a p-value (split conformal prediction: Vovk 2005;
Bates et al. 2023, doi:10.1214/22-AOS2244), and give a pool's domain shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from rsprune_dagster.pruning.numerics import blocks, one_thread, padded
from rsprune_dagster.pruning.posteriors import fit_priors, fit_temperature, log_scores

SHRINKAGES: Final = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Candidates; the one with the highest likelihood of held-out reference tiles is used."""
BLIND_SHRINKAGE: Final = 0.5
"""The shrinkage if no reference tile can be held out."""
N_FOLDS: Final = 4


@dataclass(frozen=True)
class LinearProjection:
    """An affine map of vectors to a low-dimensional space."""

    mean: np.ndarray  # (d,)
    axes: np.ndarray  # (d, c)

    @property
    def n_axes(self) -> int:
        """c."""
        return int(self.axes.shape[1])

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Project `vectors` (n, d) to (n, c), float64; bit-identical for a row whatever the other rows."""
        out = np.empty((len(vectors), self.n_axes))
        with one_thread():
            for rows in blocks(len(vectors)):
                part = padded(vectors[rows] - self.mean) @ self.axes
                out[rows] = part[: rows.stop - rows.start]
        return out


@dataclass(frozen=True)
class Discriminant:
    """The map to discriminant space, where the pooled within-scene covariance is the identity; and the prototypes."""

    projection: LinearProjection
    prototypes: np.ndarray  # (C, c)


@dataclass(frozen=True)
class HeldOut:
    """Statistics of m held-out reference tiles; m is 0 if every scene has one tile only."""

    distances: np.ndarray  # (m,) to the nearest prototype, ascending
    accuracy: float  # share whose nearest prototype is their own scene's; 0 without tiles
    log_likelihood: float  # mean ln posterior of the true scene, nats; minus infinity without tiles
    temperature: float  # maximum-likelihood temperature; 1 without tiles
    shrinkage: float  # of the evaluated model


@dataclass(frozen=True)
class SceneModel:
    """The model of the reference: scene names, discriminant, and distances of held-out tiles."""

    names: tuple[str, ...]
    discriminant: Discriminant
    whitening: np.ndarray  # (d, d) makes the pooled within-scene covariance the identity
    held_out: HeldOut
    priors: np.ndarray  # (C,) scene priors; they sum to 1

    def adapted(self, sample: np.ndarray) -> "SceneModel":
        """The model with the priors of a pool, estimated from an evenly spaced `sample` (n, d)."""
        squared = squared_distances(self.discriminant.projection.project(sample), self.discriminant.prototypes)
        return replace(self, priors=fit_priors(squared, self.held_out.temperature))

    def assign(self, vectors: np.ndarray) -> "SceneAssignment":
        """The most probable scene of each of `vectors` (n, d)."""
        projected = self.discriminant.projection.project(vectors)
        squared = squared_distances(projected, self.discriminant.prototypes)
        return SceneAssignment(
            scene=log_scores(squared, self.held_out.temperature, self.priors).argmax(axis=1).astype(np.int32),
            novelty=novelty(np.sqrt(squared.min(axis=1)), self.held_out.distances),
            projected=projected,
        )


@dataclass(frozen=True)
class SceneAssignment:
    """Scenes of n tiles. `novelty` lies in 0 to 1; 0.99: farther than 99 % of known tiles."""

    scene: np.ndarray  # (n,) int32
    novelty: np.ndarray  # (n,)
    projected: np.ndarray  # (n, c)


def fit_scene_model(
    reference_vectors: np.ndarray,
    labels: np.ndarray,
    *,
    shrinkages: Sequence[float] = SHRINKAGES,
    n_folds: int = N_FOLDS,
) -> SceneModel:
    """Fit the model of a labelled reference: vectors (M, d), labels (M,) of two or more scenes, in content order."""
    names, scene = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    vectors = np.asarray(reference_vectors, dtype=np.float64)
    with one_thread():
        held_out = fit_held_out(vectors, scene, shrinkages=shrinkages, n_folds=n_folds)
        within = shrunk(within_scatter(vectors, scene), held_out.shrinkage)
        discriminant = fit_discriminant(scene_means(vectors, scene), within)
        whitening = fit_whitening(within)
    return SceneModel(tuple(names.tolist()), discriminant, whitening, held_out, np.full(len(names), 1 / len(names)))


def fit_whitening(within: np.ndarray) -> np.ndarray:
    """An A (d, d) for which A^T W A = I, where W (d, d) is the covariance within scenes: A = L^-T, W = L L^T."""
    return np.asarray(np.linalg.inv(np.linalg.cholesky(within)).T)


def fit_discriminant(means: np.ndarray, within: np.ndarray) -> Discriminant:
    """LDA of scenes with `means` (C, d) and covariance `within` (d, d): at most C - 1 axes.

    With centred means M: the eigenvectors v of M W^-1 M^T with eigenvalues s give the axes W^-1 M^T v / sqrt(s).
    """
    centre = means.mean(axis=0)
    apart = means - centre
    solved = np.linalg.solve(within, apart.T)
    strength, mixing = np.linalg.eigh(apart @ solved)
    strength, mixing = strength[::-1], mixing[:, ::-1]
    n_axes = max(int(np.sum(strength[: len(means) - 1] > 1e-12 * strength[0])), 1)
    axes = solved @ mixing[:, :n_axes] / np.sqrt(np.maximum(strength[:n_axes], 1e-300))
    return Discriminant(LinearProjection(centre, axes), apart @ axes)


def fit_principal_axes(vectors: np.ndarray, n_axes: int, *, whitening: np.ndarray | None = None) -> LinearProjection:
    """PCA of `vectors` (n, d), after `whitening` (d, d) where one is given: at most `n_axes` axes."""
    rows = np.asarray(vectors, dtype=np.float64)
    with one_thread():
        centre = rows.mean(axis=0)
        seen = rows - centre if whitening is None else (rows - centre) @ whitening
        _, directions = np.linalg.eigh(seen.T @ seen)
        axes = directions[:, ::-1][:, :n_axes]
        return LinearProjection(centre, np.ascontiguousarray(axes if whitening is None else whitening @ axes))


def scene_means(vectors: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """The mean vector of each scene, (C, d)."""
    return np.asarray([vectors[scene == index].mean(axis=0) for index in range(scene.max() + 1)])


def within_scatter(vectors: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """The pooled within-scene covariance (d, d); that of all tiles if every scene has one tile only."""
    means = scene_means(vectors, scene)
    residuals, degrees = vectors - means[scene], len(vectors) - len(means)
    if degrees < 1 or not np.any(residuals):
        residuals, degrees = vectors - means.mean(axis=0), max(len(vectors) - 1, 1)
    return np.asarray(residuals.T @ residuals / degrees)


def neighbour_scatter(vectors: np.ndarray, n_neighbours: int) -> np.ndarray:
    """The within-scene covariance (d, d), estimated without labels from `vectors` (n, d), n > `n_neighbours`.

    A tile and its nearest neighbours mostly show the same scene, so half the mean outer product of their differences
    estimates it. O(n^2 d).
    """
    rows = np.asarray(vectors, dtype=np.float64)
    neighbours = np.concatenate([_nearest(rows, part, n_neighbours) for part in blocks(len(rows))])
    scatter = np.zeros((rows.shape[1], rows.shape[1]))
    with one_thread():
        for column in neighbours.T:
            differences = rows - rows[column]
            scatter += differences.T @ differences
    return np.asarray(scatter / (2 * neighbours.size))


def _nearest(rows: np.ndarray, part: slice, n_neighbours: int) -> np.ndarray:
    """The nearest other rows of `rows[part]`, (b, n_neighbours) row numbers, unsorted."""
    squared = squared_distances(rows[part], rows)
    squared[np.arange(len(squared)), np.arange(part.start, part.start + len(squared))] = np.inf
    return np.argpartition(squared, n_neighbours - 1, axis=1)[:, :n_neighbours]


def shrunk(scatter: np.ndarray, shrinkage: float) -> np.ndarray:
    """(1 - a) W + a tr(W)/d I, for the shrinkage a in 0 to 1."""
    scale = max(float(np.trace(scatter)) / len(scatter), 1e-12)
    return np.asarray((1 - shrinkage) * scatter + shrinkage * scale * np.eye(len(scatter)))


def fit_held_out(vectors: np.ndarray, scene: np.ndarray, *, shrinkages: Sequence[float], n_folds: int) -> HeldOut:
    """Cross-validate the shrinkages: the held-out statistics of the one with the highest likelihood.

    Ties go to the shrinkage named first.
    """
    fold = folds(scene, n_folds)
    whole = [index for index in range(n_folds) if _complete(scene, fold, index)]
    if not whole:
        return HeldOut(np.empty(0), 0.0, -np.inf, 1.0, BLIND_SHRINKAGE)
    left_out = [_squared_when_left_out(vectors, scene, fold == index, shrinkages) for index in whole]
    truth = np.concatenate([scene[fold == index] for index in whole])
    tried = [
        held_out_statistics(np.concatenate(parts), truth, a)
        for a, parts in zip(shrinkages, zip(*left_out, strict=True), strict=True)
    ]
    return max(tried, key=lambda held_out: held_out.log_likelihood)


def held_out_statistics(squared: np.ndarray, truth: np.ndarray, shrinkage: float) -> HeldOut:
    """The statistics of held-out tiles at squared distances (m, C), whose scenes are `truth` (m,)."""
    temperature, likelihood = fit_temperature(squared, truth)
    accuracy = float(np.mean(squared.argmin(axis=1) == truth))
    return HeldOut(np.sort(np.sqrt(squared.min(axis=1))), accuracy, likelihood, temperature, shrinkage)


def _complete(scene: np.ndarray, fold: np.ndarray, index: int) -> bool:
    """Whether the fold is not empty and every scene has tiles outside it."""
    out = fold == index
    return bool(out.any()) and len(np.unique(scene[~out])) == scene.max() + 1


def _squared_when_left_out(
    vectors: np.ndarray, scene: np.ndarray, out: np.ndarray, shrinkages: Sequence[float]
) -> list[np.ndarray]:
    """For each shrinkage, the squared distances (n, C) of the held-out tiles from the prototypes of the others."""
    means, scatter = scene_means(vectors[~out], scene[~out]), within_scatter(vectors[~out], scene[~out])
    models = [fit_discriminant(means, shrunk(scatter, shrinkage)) for shrinkage in shrinkages]
    return [squared_distances(model.projection.project(vectors[out]), model.prototypes) for model in models]


def folds(scene: np.ndarray, n_folds: int) -> np.ndarray:
    """The fold of each tile, round-robin within scenes; a scene's only tile is never held out (-1)."""
    fold = np.full(len(scene), -1)
    for index in range(scene.max() + 1):
        rows = np.flatnonzero(scene == index)
        if len(rows) > 1:
            fold[rows] = np.arange(len(rows)) % n_folds
    return fold


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, C) of (n, c) to (C, c), not negative; bit-identical whatever the other rows."""
    out = np.empty((len(points), len(centres)))
    norms = np.einsum("kc,kc->k", centres, centres)
    with one_thread():
        for rows in blocks(len(points)):
            block = padded(points[rows])
            part = np.einsum("nc,nc->n", block, block)[:, None] - 2 * (block @ centres.T) + norms
            out[rows] = part[: rows.stop - rows.start]
    return np.maximum(out, 0, out=out)


def novelty(distances: np.ndarray, held_out_distances: np.ndarray) -> np.ndarray:
    """1 - conformal p-value: the share of held-out reference tiles that lie nearer. 0.5 without held-out tiles."""
    if not len(held_out_distances):
        return np.full(len(distances), 0.5)
    return np.searchsorted(held_out_distances, distances, side="left") / (len(held_out_distances) + 1)


def domain_shift(pool_novelty: np.ndarray) -> float:
    """0: pool tiles are as near to the prototypes as held-out reference tiles, or nearer; 1: all are farther.

    Twice the area under the ROC curve (pool against held-out) less one, and never negative: Somers' D.
    """
    return float(np.clip(2 * np.mean(pool_novelty) - 1, 0, 1)) if len(pool_novelty) else 0.0


def is_foreign(scene_names: Sequence[str], balance_over: str) -> bool:
    """Whether clusters are a pool's scenes, as its reference has scenes and none of them is the pool's."""
    return len(scene_names) > 1 and balance_over == "clusters"


def domain_shift_sentence(value: float | None, balance_over: str) -> str:
    """The domain shift as a sentence for the user; None: there is no reference."""
    if value is None:
        return "There is no reference of two scenes or more: clusters carry the balance."
    if balance_over == "scenes":
        return f"The pool looks like the reference (domain shift {value:.2f} of 1): its scenes carry the balance."
    return (
        f"The pool is foreign to the reference (domain shift {value:.2f} of 1): clusters carry the balance and are its "
        "scenes; a scene of the reference is a guess."
    )
