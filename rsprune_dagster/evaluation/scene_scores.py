"""Scores per scene: the distance of a scene's samples to that scene, and recognition of the scene.

**Distance with fifty samples per scene.** A Fréchet distance is unsuitable: with fewer samples than features the
covariance is singular and the bias dominates; shrinking the covariance introduces another, scene-dependent bias. The
kernel distance is unbiased at any sample size, has mean 0 for a correct model, and an interval that reflects the
small sample. The value of a single scene is noisy; the mean over scenes is not.

**Recognition** uses the closed-form discriminant that pruning uses for its strata, fitted on the reference. Its
accuracy on held-out reference tiles is reported too, as the level to be expected from real images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.evaluation.fidelity import kernel_score
from rsprune_dagster.evaluation.intervals import Resampling, share_interval
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.pruning.encoders.encoder import unit
from rsprune_dagster.pruning.scenes import fit_scene_model
from rsprune_dagster.utils.errors import RunError

Labels = NDArray[np.str_]
Features = NDArray[np.floating]

MIN_PER_SCENE = 20
"""Fewest generated and reference images for a distance per scene; with fewer, it is mostly noise."""
MEAN = "mean_of_scenes"


@dataclass(frozen=True)
class Recognition:
    """Recognition of samples. `confusion` (C, C): requested scenes in rows, recognised ones in columns."""

    scenes: tuple[str, ...]
    confusion: NDArray[np.int64]
    scores: tuple[Score, ...]  # all samples, then each scene
    held_out_accuracy: float  # of the classifier on reference tiles it was not fitted on


def scene_distances(
    generated: Features,
    generated_scenes: Labels,
    reference: Features,
    reference_scenes: Labels,
    *,
    scale: float,
    name: str,
    protocol: Protocol,
    min_per_scene: int,
    resampling: Resampling,
) -> tuple[tuple[Score, ...], dict[str, str]]:
    """The kernel distance of each scene and their mean; and the reason for each scene left out.

    `scale`: feature scale of the distance over all images, so that all scenes use the same kernel. A scene needs
    `min_per_scene` generated and reference images. The mean exists only if no scene is left out.
    """
    scores, left_out = [], {}
    for scene in sorted({*generated_scenes.tolist(), *reference_scenes.tolist()}):
        x, y = generated[generated_scenes == scene], reference[reference_scenes == scene]
        if min(len(x), len(y)) < max(min_per_scene, 4):
            left_out[f"{name}/{scene}"] = (
                f"{len(x):,} generated and {len(y):,} reference images of {scene}, fewer than {max(min_per_scene, 4)}"
            )
            continue
        scores.append(
            kernel_score(
                x,
                y,
                scale=scale,
                name=f"{name}/{scene}",
                protocol=replace(protocol, n_generated=len(x), n_reference=len(y)),
                resampling=resampling,
            )
        )
    if left_out:
        left_out[f"{name}/{MEAN}"] = f"{len(left_out)} scenes have no distance"
        return tuple(scores), left_out
    return (*scores, mean_score(scores, name=f"{name}/{MEAN}", protocol=protocol)), left_out


def mean_score(scores: Sequence[Score], *, name: str, protocol: Protocol) -> Score:
    """The mean of scores with independent errors: interval half-widths are added in quadrature."""
    value = math.fsum(score.value for score in scores) / len(scores)
    below = math.hypot(*(score.value - score.low for score in scores)) / len(scores)
    above = math.hypot(*(score.high - score.value for score in scores)) / len(scores)
    first, used = scores[0], replace(protocol, parameters=(*protocol.parameters, ("n_scenes", len(scores))))
    return Score(name, value, value - below, value + above, first.level, first.n_resamples, used, False)


def recognition(
    generated: Features,
    generated_scenes: Labels,
    reference: Features,
    reference_scenes: Labels,
    *,
    name: str,
    protocol: Protocol,
    level: float,
) -> Recognition:
    """Classify samples by the reference's scenes. RunError: samples of scenes that the reference does not have."""
    _check_known(generated_scenes, reference_scenes)
    model = fit_scene_model(unit(reference), reference_scenes)
    asked = np.searchsorted(np.asarray(model.names), generated_scenes)
    confusion = np.zeros((len(model.names), len(model.names)), np.int64)
    np.add.at(confusion, (asked, model.assign(unit(generated)).scene), 1)
    scores = [_agreement(name, np.trace(confusion), confusion.sum(), protocol, level)]
    for row, scene in enumerate(model.names):
        if n := int(confusion[row].sum()):
            used = replace(protocol, n_generated=n, n_reference=int(np.sum(reference_scenes == scene)))
            scores.append(_agreement(f"{name}/{scene}", confusion[row, row], n, used, level))
    return Recognition(model.names, confusion, tuple(scores), model.held_out.accuracy)


def _agreement(name: str, n_hits: int, n: int, protocol: Protocol, level: float) -> Score:
    low, high = share_interval(int(n_hits), int(n), level=level)
    return Score(name, int(n_hits) / int(n), low, high, level, 0, protocol, True)


def _check_known(generated_scenes: Labels, reference_scenes: Labels) -> None:
    known = sorted(set(reference_scenes.tolist()))
    foreign = sorted(set(generated_scenes.tolist()) - set(known))
    if foreign or len(known) < 2:
        raise RunError(
            f"recognition needs a reference of 2 scenes or more that has all scenes of the samples; it has "
            f"{', '.join(known)}, and the samples also {', '.join(foreign) or 'no others'}"
        )
