"""Parameters that have an effect only with certain values of others: their conditions and the error sentence."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rsprune_dagster.config.params import NO_TRACKING, Params


@dataclass(frozen=True)
class Condition:
    """The condition under which a parameter has an effect: as a function and in words."""

    met: Callable[[Params], bool]
    what: str


_NETWORK = Condition(
    lambda params: params.embedding.backbone != "descriptor", "an embedding.backbone other than the descriptor"
)
_RSPRUNE = Condition(lambda params: params.selection.strategy == "rsprune", "selection.strategy=rsprune")
_CHAMPION = Condition(lambda params: bool(params.evaluation.champion_score), "an evaluation.champion_score")
_AUTOMATION = Condition(lambda params: params.automation.enabled, "automation.enabled=true")

NEEDS: Mapping[str, Condition] = {
    "entropy.threshold_bits": Condition(
        lambda params: (
            params.entropy.threshold_from == "bits"
            or (params.entropy.threshold_from == "reference" and not params.reference.sources)
        ),
        "entropy.threshold_from=bits, or =reference without a reference",
    ),
    "entropy.threshold_quantile": Condition(
        lambda params: params.entropy.threshold_from == "quantile", "entropy.threshold_from=quantile"
    ),
    "embedding.weights_sha256": Condition(lambda params: bool(params.embedding.weights), "an embedding.weights file"),
    "embedding.image_size_px": _NETWORK,
    "embedding.descriptor_weight": _NETWORK,
    "embedding.precision": _NETWORK,
    "clustering.candidates": Condition(lambda params: params.clustering.n_clusters == 0, "clustering.n_clusters=0"),
    "selection.scene_exponent": Condition(
        lambda params: _RSPRUNE.met(params) and bool(params.reference.sources), f"{_RSPRUNE.what} and a reference"
    ),
    "selection.cluster_exponent": _RSPRUNE,
    "evaluation.champion_margin": _CHAMPION,
    "evaluation.champion_max_copies": _CHAMPION,
    "automation.schedule": _AUTOMATION,
    "automation.timezone": _AUTOMATION,
    "automation.look_every_s": _AUTOMATION,
    "tracking.experiment": Condition(
        lambda params: params.tracking.uri_in_effect != NO_TRACKING,
        "an MLFLOW_TRACKING_URI or tracking.uri other than none",
    ),
}
"""By section.key. Conditions on the tiles themselves, such as for `corpus.bands`, are a check of raw_corpus."""


def without_effect(params: Params, given: Iterable[str]) -> list[str]:
    """A sentence for each given parameter (section.key) that has no effect with the current values of the others."""
    return [
        f"{key} has no effect here: it needs {NEEDS[key].what}"
        for key in given
        if key in NEEDS and not NEEDS[key].met(params)
    ]
