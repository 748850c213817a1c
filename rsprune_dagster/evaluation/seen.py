"""A set of images looked at once: features, pixels and identities, in the order of their content.

All that is measured later reads these arrays, so images may come as a stream, and neither the order they came in nor
how they were batched can reach a number.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rsprune_dagster.corpus.pixels import luma
from rsprune_dagster.errors import RunError
from rsprune_dagster.evaluation.features import FeatureNetwork, Images, check_images
from rsprune_dagster.pruning.entropy import thumbnail

N_TURNS: Final = 8
"""Nadir tiles have no up: quarter turns, and those of the mirror image."""
PIXELS: Final = "pixels"
"""The space of small pictures, beside those of the networks."""


@dataclass(frozen=True)
class Identities:
    """What images are recognised by."""

    md5: tuple[str, ...]  # (n,) of size and pixels
    thumbnails: NDArray[np.uint8]  # (n, 256): 16 x 16 grey levels, as the scan of a corpus makes them
    names: tuple[str, ...]  # (n,) for messages


@dataclass(frozen=True)
class Seen:
    """n images in the order of their content. Spaces are named by their network, or PIXELS."""

    rows: NDArray[np.int64]  # (n,) where each image stood as it came
    identities: Identities
    spaces: dict[str, NDArray[np.float32]]  # (n, d) each
    turned: dict[str, NDArray[np.float32]]  # (8, n, d) each, of the eight turns; the first is the image as it is
    scenes: NDArray[np.str_] | None  # (n,)
    pixel_edge_px: int
    content: str = field(init=False)  # hash of all images, whatever their order

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", hashlib.sha256("".join(self.identities.md5).encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.rows)


def see(
    batches: Iterable[Images],
    networks: Sequence[FeatureNetwork],
    *,
    pixel_edge_px: int,
    turned: bool = False,
    turned_in: FeatureNetwork | None = None,
    scenes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Seen:
    """Look once at all images in `batches`, each uint8 (B, H, W, 3).

    Args:
        networks: those whose features are wanted.
        pixel_edge_px: edge of the small pictures in the space PIXELS.
        turned: also the small pictures of all eight turns: for samples and held-out tiles, whose nearest training tile
            is sought.
        turned_in: where given, also the features of all eight turns in this network, and the turned small pictures.
        scenes, names: one for each image; where there are no names, numbers stand in.

    Raises RunError for images of another shape or dtype, and where scenes or names are not one for each image.
    """
    identities: list[tuple[str, NDArray[np.uint8]]] = []
    spaces: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (PIXELS, *(one.name for one in networks))}
    turns: dict[str, list[NDArray[np.float32]]] = {
        name: [] for name in (PIXELS, *([turned_in.name] if turned_in else ())) if turned or turned_in
    }
    for batch in batches:
        check_images(batch)
        identities += [(_md5(image), thumbnail(luma(image)).ravel()) for image in batch]
        for name, features in _described(batch, networks, pixel_edge_px).items():
            spaces[name].append(features)
        if turns:
            for name, features in _turned(batch, turned_in, pixel_edge_px).items():
                turns[name].append(features)
    if not identities:
        raise RunError("no images came: give one or more")
    order = np.asarray(sorted(range(len(identities)), key=lambda row: identities[row][0]), np.int64)
    return Seen(
        rows=order,
        identities=Identities(
            tuple(identities[row][0] for row in order),
            np.stack([identities[row][1] for row in order]),
            tuple(np.asarray(_one_each(names or [str(row) for row in range(len(order))], len(order), "names"))[order]),
        ),
        spaces={name: np.concatenate(parts)[order] for name, parts in spaces.items()},
        turned={name: np.concatenate(parts, axis=1)[:, order] for name, parts in turns.items()},
        scenes=None if scenes is None else np.asarray(_one_each(scenes, len(order), "scenes"), np.str_)[order],
        pixel_edge_px=pixel_edge_px,
    )


def _one_each(values: Sequence[str], n_images: int, what: str) -> Sequence[str]:
    if len(values) != n_images:
        raise RunError(f"{len(values):,} {what} came for {n_images:,} images: give one for each image, or none")
    return values


def _md5(image: NDArray[np.uint8]) -> str:
    """Of size and pixels: the same picture in another file format has the same."""
    return hashlib.md5(str(image.shape).encode() + image.tobytes(), usedforsecurity=False).hexdigest()


def _described(batch: Images, networks: Sequence[FeatureNetwork], pixel_edge_px: int) -> dict[str, NDArray[np.float32]]:
    return {PIXELS: small(batch, pixel_edge_px)} | {network.name: network.extract([batch]) for network in networks}


def _turned(batch: Images, network: FeatureNetwork | None, pixel_edge_px: int) -> dict[str, NDArray[np.float32]]:
    turns = [np.ascontiguousarray(turn_of(batch, turn)) for turn in range(N_TURNS)]
    in_pixels = {PIXELS: np.stack([small(images, pixel_edge_px) for images in turns])}
    if network is None:
        return in_pixels
    return in_pixels | {network.name: np.stack([network.extract([images]) for images in turns])}


def turn_of(images: Images, turn: int) -> Images:
    """Images (n, H, W, 3) in one of the eight turns: `turn` % 4 quarter turns, of the transposed from 4 on."""
    return np.rot90(images if turn < 4 else images.swapaxes(1, 2), turn % 4, axes=(1, 2))


def small(batch: Images, edge_px: int) -> NDArray[np.float32]:
    """Area averages in grey levels of red, green and blue, float32 (n, edge_px² * 3)."""
    planes = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float()
    averaged = torch.nn.functional.adaptive_avg_pool2d(planes, edge_px)
    return np.asarray(averaged.permute(0, 2, 3, 1).flatten(1).numpy(), np.float32)
