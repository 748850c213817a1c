"""A set of images with features, downscaled pixels and content hashes, computed in one pass, in content order.

All measures use these arrays only, so images may come as a stream, and neither their order nor the batching affects a
result.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rsprune_dagster.corpus.pixels import luma
from rsprune_dagster.evaluation.features import FeatureNetwork, Images, check_images
from rsprune_dagster.pruning.entropy import thumbnail
from rsprune_dagster.utils.errors import RunError

N_TURNS: Final = 8
"""Number of orientations: quarter turns of the image and of its mirror image."""
PIXELS: Final = "pixels"
"""Name of the space of downscaled images, besides those of the networks."""
PIXEL_EDGE_PX: Final = 16
"""Edge of the downscaled images that copies are searched in."""


@dataclass(frozen=True)
class ImageIds:
    """Content hashes, thumbnails and names of images."""

    md5: tuple[str, ...]  # (n,) of size and pixels
    thumbnails: NDArray[np.uint8]  # (n, 256): 16 x 16 grey levels, as in the corpus scan
    names: tuple[str, ...]  # (n,) for messages


@dataclass(frozen=True)
class ImageSet:
    """n images in content order. Spaces are named by their network, or PIXELS."""

    rows: NDArray[np.int64]  # (n,) input position of each image
    identities: ImageIds
    spaces: dict[str, NDArray[np.float32]]  # (n, d) each
    turned: dict[str, NDArray[np.float32]]  # (8, n, d) each, of the eight orientations; the first is the original
    scenes: NDArray[np.str_] | None  # (n,)
    pixel_edge_px: int
    content: str = field(init=False)  # hash of all images, independent of their order

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", hashlib.sha256("".join(self.identities.md5).encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.rows)


def image_set_of(
    batches: Iterable[Images],
    networks: Sequence[FeatureNetwork],
    *,
    pixel_edge_px: int = PIXEL_EDGE_PX,
    turned: bool = False,
    turned_in: FeatureNetwork | None = None,
    scenes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> ImageSet:
    """Compute the set of all images in `batches`, each uint8 (B, H, W, 3), in one pass.

    Args:
        networks: networks whose features are computed.
        pixel_edge_px: edge of the downscaled images in the space PIXELS.
        turned: also compute downscaled images of all eight orientations, to search the nearest training tiles of
            samples and held-out tiles.
        turned_in: if given, also compute features of all eight orientations in this network (implies `turned`).
        scenes, names: one for each image; default names are numbers.

    Raises RunError for a wrong shape or dtype, and if the number of scenes or names is wrong.
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
    return ImageSet(
        rows=order,
        identities=ImageIds(
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
    """md5 of size and pixels, independent of the file format."""
    return hashlib.md5(str(image.shape).encode() + image.tobytes(), usedforsecurity=False).hexdigest()


def _described(batch: Images, networks: Sequence[FeatureNetwork], pixel_edge_px: int) -> dict[str, NDArray[np.float32]]:
    return {PIXELS: small(batch, pixel_edge_px)} | {network.name: network.extract([batch]) for network in networks}


def _turned(batch: Images, network: FeatureNetwork | None, pixel_edge_px: int) -> dict[str, NDArray[np.float32]]:
    turns = [np.ascontiguousarray(oriented(batch, turn)) for turn in range(N_TURNS)]
    in_pixels = {PIXELS: np.stack([small(images, pixel_edge_px) for images in turns])}
    if network is None:
        return in_pixels
    return in_pixels | {network.name: np.stack([network.extract([images]) for images in turns])}


def oriented(images: Images, turn: int) -> Images:
    """Images (n, H, W, 3) in one of the eight orientations: `turn` % 4 quarter turns, transposed first from 4 on."""
    return np.rot90(images if turn < 4 else images.swapaxes(1, 2), turn % 4, axes=(1, 2))


def small(batch: Images, edge_px: int) -> NDArray[np.float32]:
    """Images downscaled by area averaging, RGB in grey levels, float32 (n, edge_px² * 3)."""
    planes = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float()
    averaged = torch.nn.functional.adaptive_avg_pool2d(planes, edge_px)
    return np.asarray(averaged.permute(0, 2, 3, 1).flatten(1).numpy(), np.float32)
