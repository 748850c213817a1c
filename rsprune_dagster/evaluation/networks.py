"""The feature networks in params.yaml, and why one is unavailable."""

from pathlib import Path

from rsprune_dagster.config.params import suggest
from rsprune_dagster.evaluation.coverage import NAMES
from rsprune_dagster.evaluation.features import INCEPTION, MEASURES, FeatureNetwork, encoder, inception
from rsprune_dagster.evaluation.image_set import PIXELS
from rsprune_dagster.utils.errors import RunError, UsageError


def named_networks(
    names: tuple[str, ...], *, image_size_px: int, device: str
) -> tuple[list[FeatureNetwork], dict[str, str]]:
    """Load the networks, each NAME or NAME=FILE; also returns the reason per score whose weights are unavailable.

    Weights given as FILE must exist. If published weights cannot be downloaded, their scores are left out, provided
    that another network is available.

    Raises:
        UsageError: an unknown or repeated name, or a missing or unsuitable file.
        RunError: no network is available, or the Inception file has another hash.
    """
    networks: list[FeatureNetwork] = []
    missing: dict[str, str] = {}
    for entry in names:
        name, _, file = entry.partition("=")
        if name in {network.name for network in networks}:
            raise UsageError(f"evaluation.networks names {name} twice: scores of one name would be two")
        try:
            networks.append(_network(name, file, image_size_px, device))
        except RunError as error:
            if file:
                raise
            missing |= dict.fromkeys(measures_of(name), str(error))
    if not networks:
        raise RunError(f"no network to measure on: {next(iter(missing.values()))}")
    return networks, missing


def measures_of(name: str) -> list[str]:
    """The names of the scores of all samples on a network."""
    distances = list(MEASURES.values()) if name == INCEPTION else [f"{distance}_{name}" for distance in MEASURES]
    return [*distances, *(f"{measure}_{name}" for measure in NAMES), f"recognised_{name}"]


def copy_network(name: str, networks: list[FeatureNetwork]) -> FeatureNetwork | None:
    """The network for the copy search besides downscaled images; None for `pixels`. UsageError: unknown name."""
    if name == PIXELS:
        return None
    for network in networks:
        if network.name == name:
            return network
    known = (PIXELS, *(network.name for network in networks))
    raise UsageError(f"evaluation.copies_in is {name}{suggest(name, known)}, expected one of {', '.join(known)}")


def _network(name: str, file: str, image_size_px: int, device: str) -> FeatureNetwork:
    if name == INCEPTION:
        return inception(Path(file) if file else None, device=device)
    return encoder(name, file, image_size_px, device=device)
