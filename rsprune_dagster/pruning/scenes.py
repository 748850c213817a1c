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
class Discriminant:
    """The affine map to discriminant space, in which the pooled within-scene covariance is the identity."""

    mean: np.ndarray  # (d,)
    axes: np.ndarray  # (d, c)
    prototypes: np.ndarray  # (C, c)

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """`vectors` (n, d) in discriminant space (n, c), float64; the bits of a row do not depend on its neighbours."""
        out = np.empty((len(vectors), self.axes.shape[1]))
        with one_thread():
            for rows in blocks(len(vectors)):
                part = padded(vectors[rows] - self.mean) @ self.axes
                out[rows] = part[: rows.stop - rows.start]
        return out


@dataclass(frozen=True)
class SceneModel:
    """What the reference knows: its scenes' names and discriminant, and the distances of its held-out tiles."""

    names: tuple[str, ...]
    discriminant: Discriminant
    held_out_distances: np.ndarray  # (m,) rising
    held_out_accuracy: float

    def assign(self, vectors: np.ndarray) -> "SceneAssignment":
        """The scene of each of `vectors` (n, d)."""
        projected = self.discriminant.project(vectors)
        distances = squared_distances(projected, self.discriminant.prototypes)
        scene = distances.argmin(axis=1)
        nearest = np.sqrt(distances[np.arange(len(scene)), scene])
        return SceneAssignment(
            scene=scene.astype(np.int32),
            confidence=confidence(distances),
            novelty=novelty(nearest, self.held_out_distances),
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
        discriminant = fit_discriminant(vectors, scene, shrinkage=shrinkage)
        distances, hits = held_out(vectors, scene, shrinkage=shrinkage, n_folds=n_folds)
    return SceneModel(
        tuple(names.tolist()), discriminant, np.sort(distances), float(np.mean(hits)) if len(hits) else 0.0
    )


def fit_discriminant(vectors: np.ndarray, scene: np.ndarray, *, shrinkage: float) -> Discriminant:
    """Shrinkage LDA of `vectors` (M, d) with scenes 0 to C - 1: at most C - 1 axes."""
    means = scene_means(vectors, scene)
    centre = means.mean(axis=0)
    root = np.linalg.cholesky(
        within_covariance(vectors - means[scene], len(means), shrinkage, fallback=vectors - centre)
    )
    between = np.linalg.solve(root, (means - centre).T)
    directions, strength, _ = np.linalg.svd(between, full_matrices=False)
    useful = directions[:, strength > 1e-9 * max(strength[0], 1e-300)][:, : max(len(means) - 1, 1)]
    axes = np.linalg.solve(root.T, useful)
    return Discriminant(centre, axes, (means - centre) @ axes)


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


def held_out(
    vectors: np.ndarray, scene: np.ndarray, *, shrinkage: float, n_folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest prototype (m,), and whether it is the right one (m,), of tiles left out of the fit."""
    fold = folds(scene, n_folds)
    distances, hits = [], []
    for index in range(n_folds):
        out = fold == index
        if not out.any() or len(np.unique(scene[~out])) <= scene.max():
            continue
        model = fit_discriminant(vectors[~out], scene[~out], shrinkage=shrinkage)
        squared = squared_distances(model.project(vectors[out]), model.prototypes)
        distances.append(np.sqrt(squared.min(axis=1)))
        hits.append(squared.argmin(axis=1) == scene[out])
    return (np.concatenate(distances), np.concatenate(hits)) if distances else (np.empty(0), np.empty(0, bool))


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


def foreignness_sentence(value: float, accuracy: float) -> str:
    """What the number means for the person who reads the report."""
    if value < 0.25:
        return f"The pool looks like the reference (foreignness {value:.2f} of 1): its scenes carry the balance."
    return (
        f"The pool is foreign to the reference (foreignness {value:.2f} of 1): clusters, not its scenes, "
        f"carry the balance (held-out accuracy of the reference's own scenes: {accuracy:.0%})."
    )
