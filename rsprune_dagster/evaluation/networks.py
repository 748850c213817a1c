"""The networks that params.yaml names, and why one of them is not to be had."""

from pathlib import Path

from rsprune_dagster.errors import RunError, UsageError
from rsprune_dagster.evaluation.coverage import NAMES
from rsprune_dagster.evaluation.features import INCEPTION, MEASURES, FeatureNetwork, encoder, inception
from rsprune_dagster.evaluation.seen import PIXELS
from rsprune_dagster.params import suggest


def named_networks(
    names: tuple[str, ...], *, image_size_px: int, device: str
) -> tuple[list[FeatureNetwork], dict[str, str]]:
    """The networks, each NAME or NAME=FILE, and for the measures of those without weights the reason.

    Weights that were named must be there. Published ones may be out of reach: then what they measure is left out, as
    long as another network is left.

    Raises:
        UsageError: an unknown name, a name twice, a file that is not there or does not fit.
        RunError: no network is left, or the Inception file is another one.
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
    """The network in which copies are sought besides small pictures; None for `pixels`. UsageError: not among them."""
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
