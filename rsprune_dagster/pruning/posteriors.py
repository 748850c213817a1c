"""Scene probabilities from distances: calibrated on held-out reference tiles, with priors estimated from the pool.

A tile at squared distances d_c^2 from the prototypes is of scene c with a probability proportional to
pi_c exp(-d_c^2 / (2 T)). The temperature T (Guo et al. 2017, arXiv 1706.04599) corrects overconfidence: it maximises
the likelihood of the scenes of held-out reference tiles. The priors pi are estimated from the unlabelled pool by the EM
of Saerens, Latinne & Decaestecker (2002, doi:10.1162/089976602753284446): a scene that is rare in the pool then gets
fewer ambiguous tiles of common scenes.
"""

from typing import Final

import numpy as np

TEMPERATURES: Final = np.geomspace(0.5, 50, 81)
N_STEPS: Final = 200
TOLERANCE: Final = 1e-6
PRIOR_WEIGHT: Final = 0.25
"""Weight of the symmetric Dirichlet prior, in pseudo-tiles per tile of the pool. A fixed weight of one tile per scene
let EM assign ambiguous tiles to a common scene (126 instead of 61). More than a quarter harms the rarest scene of a
pool that the reference separates well. Figures: docs/log.md."""


def posteriors(squared: np.ndarray, temperature: float, priors: np.ndarray) -> np.ndarray:
    """Probabilities (n, C) of the scenes at `squared` distances (n, C), under `priors` (C,); rows sum to 1."""
    scores = log_scores(squared, temperature, priors)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def log_scores(squared: np.ndarray, temperature: float, priors: np.ndarray) -> np.ndarray:
    """ln pi_c - d_c^2 / (2 T), (n, C): log posteriors up to a constant per row."""
    return np.asarray(np.log(priors) - squared / (2 * temperature))


def log_likelihood(squared: np.ndarray, scene: np.ndarray, temperature: float) -> float:
    """Mean ln posterior of the true `scene` (n,) with equal priors and equal weight per scene; 0 is certainty."""
    n_scenes = squared.shape[1]
    scores = -squared / (2 * temperature)
    top = scores.max(axis=1)
    normaliser = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    each = scores[np.arange(len(scene)), scene] - normaliser
    counts = np.bincount(scene, minlength=n_scenes)
    return float(np.mean(np.bincount(scene, weights=each, minlength=n_scenes)[counts > 0] / counts[counts > 0]))


def fit_temperature(squared: np.ndarray, scene: np.ndarray) -> tuple[float, float]:
    """The value of TEMPERATURES with the highest log-likelihood of the held-out tiles' scenes, and that likelihood."""
    found = [log_likelihood(squared, scene, float(temperature)) for temperature in TEMPERATURES]
    best = int(np.argmax(found))
    return float(TEMPERATURES[best]), found[best]


def fit_priors(squared: np.ndarray, temperature: float) -> np.ndarray:
    """The scene priors (C,) of tiles at `squared` distances (n, C); they sum to 1.

    EM from equal priors with a symmetric Dirichlet prior: in every step, the new prior of a scene is its mean posterior
    with a = PRIOR_WEIGHT n / C tiles of each scene added. So priors lie between w / ((1 + w) C), w = PRIOR_WEIGHT,
    and that + 1 / (1 + w). Without tiles the priors are equal.
    """
    n_tiles, n_scenes = squared.shape
    priors = np.full(n_scenes, 1 / n_scenes)
    added = PRIOR_WEIGHT * max(n_tiles, 1) / n_scenes
    for _ in range(N_STEPS):
        before = priors
        priors = (posteriors(squared, temperature, before).sum(axis=0) + added) / (n_tiles + n_scenes * added)
        if np.abs(priors - before).max() < TOLERANCE:
            break
    return priors
