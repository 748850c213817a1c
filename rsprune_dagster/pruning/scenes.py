"""Stage 2a: the labelled reference as strata, without training. Closed-form statistics assign each tile a scene.

The reference's embeddings give a shrinkage linear discriminant (Fisher 1936; Friedman 1989): directions in which scenes
differ, in units of how much tiles of one scene differ. Prototypes are the scenes' means there. How far a tile of a
*known* scene lies from its prototype is learnt from reference tiles held out of the fit, so a tile's distance becomes a
p-value (split conformal prediction: Vovk 2005; Bates et al. 2023, doi:10.1214/22-AOS2244), and a pool's foreignness one
number.
"""

from dataclasses import dataclass

import numpy as np

from rsprune_dagster.pruning.numerics import blocks, one_thread, padded

SHRINKAGE = 0.1
N_FOLDS = 4


@dataclass(frozen=True)
class Projection:
    """An affine map of vectors to a space of few axes."""

    mean: np.ndarray  # (d,)
    axes: np.ndarray  # (d, c)

    @property
    def n_axes(self) -> int:
        """c."""
        return int(self.axes.shape[1])

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """`vectors` (n, d) in the space (n, c), float64; the bits of a row do not depend on its neighbours."""
        out = np.empty((len(vectors), self.n_axes))
        with one_thread():
            for rows in blocks(len(vectors)):
                part = padded(vectors[rows] - self.mean) @ self.axes
                out[rows] = part[: rows.stop - rows.start]
        return out


@dataclass(frozen=True)
class Discriminant:
    """The map to discriminant space, where the pooled within-scene covariance is the identity; and the scenes there."""

    projection: Projection
    prototypes: np.ndarray  # (C, c)


@dataclass(frozen=True)
class HeldOut:
    """What a model says of reference tiles it was not fitted on: m of them, none where scenes have but one tile."""

    distances: np.ndarray  # (m,) to the nearest prototype, rising
    accuracy: float  # share whose nearest prototype is their own scene's; 0 where there are none


@dataclass(frozen=True)
class SceneModel:
    """What the reference knows: its scenes' names and discriminant, and the distances of its held-out tiles."""

    names: tuple[str, ...]
    discriminant: Discriminant
    whitening: np.ndarray  # (d, d) to vectors whose pooled within-scene covariance is the identity
    held_out: HeldOut

    def assign(self, vectors: np.ndarray) -> "SceneAssignment":
        """The scene of each of `vectors` (n, d)."""
        projected = self.discriminant.projection.project(vectors)
        distances = squared_distances(projected, self.discriminant.prototypes)
        scene = distances.argmin(axis=1)
        nearest = np.sqrt(distances[np.arange(len(scene)), scene])
        return SceneAssignment(
            scene=scene.astype(np.int32),
            confidence=confidence(distances),
            novelty=novelty(nearest, self.held_out.distances),
            projected=projected,
        )


@dataclass(frozen=True)
class SceneAssignment:
    """Scenes of n tiles. `confidence` and `novelty` lie in 0 to 1; `novelty` 0.99: farther than 99 % of known tiles."""

    scene: np.ndarray  # (n,) int32
    confidence: np.ndarray  # (n,)
    novelty: np.ndarray  # (n,)
    projected: np.ndarray  # (n, c)


def fit_scene_model(
    reference_vectors: np.ndarray, labels: np.ndarray, *, shrinkage: float = SHRINKAGE, n_folds: int = N_FOLDS
) -> SceneModel:
    """The model of a labelled reference: vectors (M, d), labels (M,) of at least two scenes, in content order."""
    names, scene = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    vectors = np.asarray(reference_vectors, dtype=np.float64)
    with one_thread():
        whitening = fit_whitening(vectors, scene, shrinkage=shrinkage)
        discriminant = fit_discriminant(vectors, scene, whitening)
        held_out = fit_held_out(vectors, scene, shrinkage=shrinkage, n_folds=n_folds)
    return SceneModel(tuple(names.tolist()), discriminant, whitening, held_out)


def fit_whitening(vectors: np.ndarray, scene: np.ndarray, *, shrinkage: float) -> np.ndarray:
    """A (d, d) for which A^T W A = I, where W is the shrunk pooled covariance within scenes: A = L^-T, W = L L^T."""
    means = scene_means(vectors, scene)
    fallback = vectors - means.mean(axis=0)
    within = within_covariance(vectors - means[scene], len(means), shrinkage, fallback=fallback)
    return np.asarray(np.linalg.inv(np.linalg.cholesky(within)).T)


def fit_discriminant(vectors: np.ndarray, scene: np.ndarray, whitening: np.ndarray) -> Discriminant:
    """LDA of `vectors` (M, d) with scenes 0 to C - 1: the principal axes of the whitened scene means, C - 1 at most."""
    means = scene_means(vectors, scene)
    centre = means.mean(axis=0)
    _, strength, directions = np.linalg.svd((means - centre) @ whitening, full_matrices=False)
    n_axes = max(int(np.sum(strength[: len(means) - 1] > 1e-9 * strength[0])), 1)
    axes = whitening @ directions[:n_axes].T
    return Discriminant(Projection(centre, axes), (means - centre) @ axes)


def fit_principal_axes(vectors: np.ndarray, n_axes: int, *, whitening: np.ndarray | None = None) -> Projection:
    """PCA of `vectors` (n, d), after `whitening` (d, d) where one is given: at most `n_axes` axes."""
    rows = np.asarray(vectors, dtype=np.float64)
    with one_thread():
        centre = rows.mean(axis=0)
        seen = rows - centre if whitening is None else (rows - centre) @ whitening
        _, directions = np.linalg.eigh(seen.T @ seen)
        axes = directions[:, ::-1][:, :n_axes]
        return Projection(centre, np.ascontiguousarray(axes if whitening is None else whitening @ axes))


def scene_means(vectors: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """The mean vector of each scene, (C, d)."""
    return np.asarray([vectors[scene == index].mean(axis=0) for index in range(scene.max() + 1)])


def within_covariance(residuals: np.ndarray, n_scenes: int, shrinkage: float, *, fallback: np.ndarray) -> np.ndarray:
    """(1 - a) W + a tr(W)/d I. With one tile a scene there is no within-scene scatter: `fallback` stands in."""
    degrees = len(residuals) - n_scenes
    if degrees < 1 or not np.any(residuals):
        residuals, degrees, shrinkage = fallback, max(len(fallback) - 1, 1), max(shrinkage, 0.5)
    scatter = residuals.T @ residuals / degrees
    scale = max(float(np.trace(scatter)) / len(scatter), 1e-12)
    return np.asarray((1 - shrinkage) * scatter + shrinkage * scale * np.eye(len(scatter)))


def fit_held_out(vectors: np.ndarray, scene: np.ndarray, *, shrinkage: float, n_folds: int) -> HeldOut:
    """Leave out a fold at a time, fit on the others, and look at the tiles left out."""
    fold = folds(scene, n_folds)
    distances, hits = [np.empty(0)], [np.empty(0, bool)]
    for index in range(n_folds):
        out = fold == index
        if not out.any() or len(np.unique(scene[~out])) <= scene.max():
            continue
        model = fit_discriminant(
            vectors[~out], scene[~out], fit_whitening(vectors[~out], scene[~out], shrinkage=shrinkage)
        )
        squared = squared_distances(model.projection.project(vectors[out]), model.prototypes)
        distances.append(np.sqrt(squared.min(axis=1)))
        hits.append(squared.argmin(axis=1) == scene[out])
    correct = np.concatenate(hits)
    return HeldOut(np.sort(np.concatenate(distances)), float(correct.mean()) if len(correct) else 0.0)


def folds(scene: np.ndarray, n_folds: int) -> np.ndarray:
    """A fold per tile: the tiles of a scene are dealt in turn; a scene's only tile is never held out (-1)."""
    fold = np.full(len(scene), -1)
    for index in range(scene.max() + 1):
        rows = np.flatnonzero(scene == index)
        if len(rows) > 1:
            fold[rows] = np.arange(len(rows)) % n_folds
    return fold


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, C) of (n, c) to (C, c), never negative; a row's bits do not depend on others."""
    out = np.empty((len(points), len(centres)))
    norms = np.einsum("kc,kc->k", centres, centres)
    with one_thread():
        for rows in blocks(len(points)):
            block = padded(points[rows])
            part = np.einsum("nc,nc->n", block, block)[:, None] - 2 * (block @ centres.T) + norms
            out[rows] = part[: rows.stop - rows.start]
    return np.maximum(out, 0, out=out)


def confidence(squared: np.ndarray) -> np.ndarray:
    """Posterior of the nearest scene under equal priors and unit covariance: softmax of -squared/2. 1/C to 1."""
    gaps = squared - squared.min(axis=1, keepdims=True)
    return np.asarray(1 / np.exp(-gaps / 2).sum(axis=1))


def novelty(distances: np.ndarray, held_out_distances: np.ndarray) -> np.ndarray:
    """1 - the conformal p-value: the share of held-out known tiles that lie nearer. 0.5 where none was held out."""
    if not len(held_out_distances):
        return np.full(len(distances), 0.5)
    return np.searchsorted(held_out_distances, distances, side="left") / (len(held_out_distances) + 1)


def foreignness(pool_novelty: np.ndarray) -> float:
    """0: the pool lies as near the prototypes as held-out reference tiles do, or nearer; 1: all of it lies farther.

    Twice the area under the ROC curve (pool against held-out) less one, and never negative: Somers' D.
    """
    return float(np.clip(2 * np.mean(pool_novelty) - 1, 0, 1)) if len(pool_novelty) else 0.0


def foreignness_sentence(value: float | None, foreign_from: float) -> str:
    """What the number means for the person who reads the report; None: there is no reference."""
    if value is None:
        return "There is no reference of two scenes or more: clusters carry the balance."
    if value < foreign_from:
        return f"The pool looks like the reference (foreignness {value:.2f} of 1): its scenes carry the balance."
    return (
        f"The pool is foreign to the reference (foreignness {value:.2f} of 1): clusters, not its scenes, "
        "carry the balance."
    )
