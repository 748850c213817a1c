"""Evaluate generated images against real images that are not in the training set.

    networks = [inception(None, device="cpu"), encoder("mobilenet_v2", weights, 224, device="cpu")]
    reference = see(tiles, networks, pixel_edge_px=16, scenes=labels)
    held_out = see(others, [], pixel_edge_px=16, turned_in=networks[1])
    training = see(batches, [networks[1]], pixel_edge_px=16)
    generated = see(samples, networks, pixel_edge_px=16, turned_in=networks[1], scenes=asked_for)
    evaluation = evaluate(generated, reference, training, held_out, networks, settings=settings)

Scores that cannot be measured are left out with the reason; no score is replaced by another one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from rsprune_dagster.evaluation.coverage import N_NEIGHBOURS, NAMES, coverage_scores
from rsprune_dagster.evaluation.features import INCEPTION, FeatureNetwork
from rsprune_dagster.evaluation.fidelity import frechet_score, kernel_scale, kernel_score
from rsprune_dagster.evaluation.image_set import PIXELS, ImageSet
from rsprune_dagster.evaluation.intervals import Resampling
from rsprune_dagster.evaluation.leakage import NEAR_DUPLICATE_CORRELATION, Leak, leaks, leaks_sentence, raise_on_leaks
from rsprune_dagster.evaluation.memorization import COPY_NEIGHBOURS, HELD_OUT_QUANTILE, Memorization, memorization
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.evaluation.scene_scores import (
    MEAN,
    MIN_PER_SCENE,
    Labels,
    Recognition,
    recognition,
    scene_distances,
)
from rsprune_dagster.utils.errors import RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation. Scores are compared only if they were measured with the same ones."""

    resampling: Resampling = field(default_factory=Resampling)
    n_neighbours: int = N_NEIGHBOURS
    min_per_scene: int = MIN_PER_SCENE
    held_out_quantile: float = HELD_OUT_QUANTILE
    copy_neighbours: int = COPY_NEIGHBOURS
    near_duplicate_correlation: float = NEAR_DUPLICATE_CORRELATION
    on_leak: Literal["refuse", "report"] = "refuse"


@dataclass(frozen=True)
class Evaluation:
    """All measured scores, and the reasons for those left out."""

    scores: tuple[Score, ...]
    left_out: dict[str, str]
    recognitions: dict[str, Recognition]  # by network
    memorizations: dict[str, Memorization]  # by space
    leaked: dict[str, tuple[Leak, ...]]
    """By set: `reference` and `held_out` (only the latter if they are one set); absent if not compared."""
    leak_sentences: tuple[str, ...]

    def score(self, name: str) -> Score:
        """The score of that name. RunError: it was not measured; gives the reason."""
        for score in self.scores:
            if score.name == name:
                return score
        why = self.left_out.get(name, f"there are {', '.join(score.name for score in self.scores)}")
        raise RunError(f"there is no score {name}: {why}")

    def metrics(self) -> dict[str, float]:
        """Flat metrics: each score with `_low` and `_high`, p-values of copying, and counts of leaks."""
        flat = {f"n_leaked_{name}": float(len(found)) for name, found in self.leaked.items()}
        flat |= {f"recognised_{name}_of_real": seen.held_out_accuracy for name, seen in self.recognitions.items()}
        for seen in self.memorizations.values():
            for excess in (seen.closer, seen.singled_out):
                flat[f"{excess.score.name}_chance"] = excess.chance
        for score in self.scores:
            flat |= {score.name: score.value, f"{score.name}_low": score.low, f"{score.name}_high": score.high}
        return flat

    def protocols(self) -> dict[str, dict[str, Any]]:
        """Value, interval, protocol and caution by score."""
        return {score.name: score.as_json() for score in self.scores}

    def as_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "metrics": self.metrics(),
            "protocols": self.protocols(),
            "left_out": self.left_out,
            "leaks": self.leak_sentences,
        }


@dataclass(frozen=True)
class _Sheet:
    """The results so far, and the reasons for missing ones."""

    scores: list[Score] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def attempt(self, names: Sequence[str], measure: Callable[[], T]) -> T | None:
        """The result of `measure`; None if it raises RunError, whose reason is recorded for `names`."""
        try:
            return measure()
        except RunError as error:
            self.left_out.update(dict.fromkeys(names, str(error)))
            return None


def evaluate(
    generated: ImageSet,
    reference: ImageSet,
    training: ImageSet | None,
    held_out: ImageSet | None,
    networks: Sequence[FeatureNetwork],
    *,
    settings: Settings,
) -> Evaluation:
    """Measure `generated` against `reference` in every network, and memorization against `training` and `held_out`.

    Args:
        generated: with features of all `networks`, and of all orientations in the network that copies are searched in.
        reference: real images outside the training set, with features of all `networks`.
        training: the training set, with features of the network that copies are searched in; None: no such search.
        held_out: real images outside the training set, from the same distribution, with all orientations; may be the
        reference.

    Raises RunError if evaluation tiles are in the training set, unless settings.on_leak is `report`.
    """
    sets: dict[str, ImageSet | None] = {"reference": reference, "held_out": held_out}
    if held_out is reference:
        del sets["reference"]
    leaked, sentences = _leaks(sets, training, settings)
    sheet, recognitions = _Sheet(), {}
    for network in networks:
        protocol = protocol_of(network, generated, reference)
        _measure_fidelity(sheet, network, protocol, generated, reference, settings)
        recognised = _measure_scenes(sheet, network, protocol, generated, reference, settings)
        if recognised is not None:
            recognitions[network.name] = recognised
    memorizations = _measure_copying(sheet, networks, generated, training, held_out, settings)
    return Evaluation(tuple(sheet.scores), sheet.left_out, recognitions, memorizations, leaked, sentences)


def protocol_of(network: FeatureNetwork, generated: ImageSet, reference: ImageSet) -> Protocol:
    """The protocol of a score of `generated` against `reference` in `network`."""
    return Protocol(network.name, network.sha256, network.resize, reference.content, len(reference), len(generated))


def _leaks(
    sets: dict[str, ImageSet | None], training: ImageSet | None, settings: Settings
) -> tuple[dict[str, tuple[Leak, ...]], tuple[str, ...]]:
    leaked: dict[str, tuple[Leak, ...]] = {}
    sentences: list[str] = []
    for what, images in sets.items():
        if images is None or training is None:
            continue
        both = images.identities, training.identities
        leaked[what] = leaks(*both, correlation=settings.near_duplicate_correlation)
        if settings.on_leak == "refuse":
            raise_on_leaks(leaked[what], *both, what=what)
        if leaked[what]:
            sentences.append(leaks_sentence(leaked[what], *both, what=what))
    return leaked, tuple(sentences)


def _measure_fidelity(
    sheet: _Sheet,
    network: FeatureNetwork,
    protocol: Protocol,
    generated: ImageSet,
    reference: ImageSet,
    settings: Settings,
) -> None:
    x, y, resampling = generated.spaces[network.name], reference.spaces[network.name], settings.resampling
    frechet, kernel = network.measure("frechet"), network.measure("kernel")
    distances: dict[str, Callable[[], Score]] = {
        frechet: partial(frechet_score, x, y, name=frechet, protocol=protocol, resampling=resampling),
        kernel: partial(
            kernel_score,
            x,
            y,
            scale=_kernel_scale(network, reference),
            name=kernel,
            protocol=_of_kernel(network, protocol),
            resampling=resampling,
        ),
    }
    for name, distance in distances.items():
        if (score := sheet.attempt([name], distance)) is not None:
            sheet.scores.append(score)
    covering: Callable[[], tuple[Score, ...]] = partial(
        coverage_scores,
        x,
        y,
        n_neighbours=settings.n_neighbours,
        network=network.name,
        protocol=protocol,
        resampling=resampling,
    )
    sheet.scores.extend(sheet.attempt([f"{name}_{network.name}" for name in NAMES], covering) or ())


def _kernel_scale(network: FeatureNetwork, reference: ImageSet) -> float:
    """1 for Inception, as KID defines; for other networks the scale that gives features of similar size."""
    return 1.0 if network.name == INCEPTION else kernel_scale(reference.spaces[network.name])


def _of_kernel(network: FeatureNetwork, protocol: Protocol) -> Protocol:
    scaled = () if network.name == INCEPTION else (("features", "divided by the reference's root mean square"),)
    return replace(protocol, parameters=(*protocol.parameters, *scaled))


def _measure_scenes(
    sheet: _Sheet,
    network: FeatureNetwork,
    protocol: Protocol,
    generated: ImageSet,
    reference: ImageSet,
    settings: Settings,
) -> Recognition | None:
    name, recognised = network.measure("kernel"), f"recognised_{network.name}"
    if generated.scenes is None or reference.scenes is None:
        who = "samples" if generated.scenes is None else "reference images"
        sheet.left_out.update(dict.fromkeys([f"{name}/{MEAN}", recognised], f"the {who} have no scenes"))
        return None
    if not set(generated.scenes.tolist()) & set(reference.scenes.tolist()):
        sheet.left_out.update(
            dict.fromkeys([f"{name}/{MEAN}", recognised], _unlike(generated.scenes, reference.scenes))
        )
        return None
    labelled = generated.spaces[network.name], generated.scenes, reference.spaces[network.name], reference.scenes
    scores, left_out = scene_distances(
        *labelled,
        scale=_kernel_scale(network, reference),
        name=name,
        protocol=_of_kernel(network, protocol),
        min_per_scene=settings.min_per_scene,
        resampling=settings.resampling,
    )
    sheet.scores.extend(scores)
    sheet.left_out.update(left_out)
    level = settings.resampling.level
    seen = sheet.attempt([recognised], lambda: recognition(*labelled, name=recognised, protocol=protocol, level=level))
    sheet.scores.extend(seen.scores if seen else ())
    return seen


def _unlike(asked_for: Labels, labels: Labels) -> str:
    """The reason for missing scores per scene: the scenes of a foreign pool are clusters."""
    ours, theirs = (sorted(set(names.tolist())) for names in (asked_for, labels))
    return (
        f"the samples have {len(ours)} scenes ({ours[0]} and so on) and the reference images {len(theirs)} "
        f"({theirs[0]} and so on), and no scene is in both: clusters stand for the scenes of a pool that is foreign "
        "to its reference"
    )


def _measure_copying(
    sheet: _Sheet,
    networks: Sequence[FeatureNetwork],
    generated: ImageSet,
    training: ImageSet | None,
    held_out: ImageSet | None,
    settings: Settings,
) -> dict[str, Memorization]:
    if training is None or held_out is None or not generated.turned:
        missing = "training set" if training is None else "held-out set" if held_out is None else "turn of the samples"
        sheet.left_out["memorization"] = f"there is no {missing}"
        return {}
    found = {}
    for space in generated.turned:
        measure: Callable[[], Memorization] = partial(
            memorization,
            generated,
            held_out,
            training,
            space=space,
            protocol=_protocol_of_copies(space, networks, generated, training, held_out),
            quantile=settings.held_out_quantile,
            n_neighbours=settings.copy_neighbours,
            level=settings.resampling.level,
        )
        if (seen := sheet.attempt([f"closer_{space}", f"singled_out_{space}"], measure)) is not None:
            found[space] = seen
            sheet.scores.extend([seen.closer.score, seen.singled_out.score])
    return found


def _protocol_of_copies(
    space: str, networks: Sequence[FeatureNetwork], generated: ImageSet, training: ImageSet, held_out: ImageSet
) -> Protocol:
    """The protocol of memorization: the reference is the training set; the held-out set is a parameter."""
    resizes = {PIXELS: ("", f"area averages to {generated.pixel_edge_px} px")}
    resizes |= {network.name: (network.sha256, network.resize) for network in networks}
    held = ("held_out", held_out.content), ("n_held_out", len(held_out))
    return Protocol(space, *resizes[space], training.content, len(training), len(generated), held)
