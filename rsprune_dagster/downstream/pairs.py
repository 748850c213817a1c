"""Pairs of an image and its mask: read, checked, and cropped for the training of semantic image synthesis.

A source is a local folder. In it, or in folders below it, `images/` and `masks/` lie side by side, and a mask has the
name of its image, apart from the suffix. All pairs are held in memory: 4 bytes for a pixel.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rsprune_dagster.diffusion.tile_set import N_TURNS, Batch, Condition, turned
from rsprune_dagster.downstream.crops import spread
from rsprune_dagster.downstream.masks import UNLABELED, Palette, read_mask, read_picture
from rsprune_dagster.utils.errors import UsageError

IMAGES, MASKS = "images", "masks"
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
LEAST_COVERED: Final = 0.05
LEAST_LABELLED: Final = 0.5
"""Least share of labelled pixels of a crop that is measured on."""


@dataclass(frozen=True)
class Pair:
    """An image and the class of each of its pixels."""

    name: str
    image: np.ndarray
    """(h, w, 3) uint8."""
    mask: np.ndarray
    """(h, w) uint8: class or UNLABELED."""

    @cached_property
    def digest(self) -> str:
        """sha256 of the image and its shape."""
        return hashlib.sha256(repr(self.image.shape).encode() + self.image.tobytes()).hexdigest()


def read_pairs(sources: Sequence[str], palette: Palette) -> tuple[Pair, ...]:
    """All pairs of the sources, sorted by name.

    Raises:
        UsageError: no pair, an image without mask or the reverse, two sizes, transparency, a colour or value that is in
            no class, a file that cannot be read, or two files of one name.
    """
    found = [pair for source in sources for pair in _pairs_below(Path(source).expanduser(), palette)]
    if not found:
        raise UsageError(
            f"no pairs in {', '.join(map(str, sources))}: expected folders {IMAGES}/ and {MASKS}/ side by side, with "
            "files of the same names"
        )
    return tuple(sorted(found, key=lambda pair: pair.name))


@dataclass(frozen=True)
class Crops:
    """Crops of pairs, reduced to one size."""

    images: NDArray[np.uint8]
    """(n, s, s, 3)."""
    masks: NDArray[np.uint8]
    """(n, s, s): the commonest class of each pixel, or UNLABELED."""
    shares: NDArray[np.float32]
    """(n, k, s, s): the share of each class in each pixel."""
    pairs: NDArray[np.int64]
    """(n,): the place of the pair in its set. Crops of one pair are not independent."""

    def __len__(self) -> int:
        return len(self.images)

    def varied(self, n: int) -> "Crops":
        """At most n of them: those with the most classes that cover LEAST_COVERED or more of a crop."""
        n_classes = (self.shares.mean(axis=(2, 3)) >= LEAST_COVERED).sum(axis=1)
        chosen = np.sort(np.argsort(-n_classes, kind="stable")[:n])
        return Crops(self.images[chosen], self.masks[chosen], self.shares[chosen], self.pairs[chosen])


@dataclass(frozen=True)
class PairSet:
    """Crops of pairs as training images; the condition is the share of each class in each pixel."""

    pairs: tuple[Pair, ...]
    n_classes: int
    image_size_px: int
    crop_px: int
    """Edge of a crop in the image, which is reduced to `image_size_px`."""
    scene_names: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        small = [pair for pair in self.pairs if min(pair.mask.shape) < self.crop_px]
        if small:
            height, width = small[0].mask.shape
            raise UsageError(
                f"{len(small):,} of {len(self.pairs):,} images are smaller than a crop of {self.crop_px} px, such as "
                f"{small[0].name} of {width} x {height}: lower semantic_synthesis.crop_px, or take them out"
            )

    def __len__(self) -> int:
        """The number of different crops."""
        shapes = [pair.mask.shape for pair in self.pairs]
        return sum((height - self.crop_px + 1) * (width - self.crop_px + 1) for height, width in shapes)

    @property
    def n_labelled(self) -> int:
        """The number of pairs with a crop that can be measured on (`grid_of_crops`)."""
        return sum(bool(grid_of_crops(number, pair, self.crop_px)) for number, pair in enumerate(self.pairs))

    def fingerprint(self) -> str:
        """A hash of the pairs and of their crops."""
        digest = hashlib.sha256(f"{self.n_classes} {self.image_size_px} {self.crop_px}".encode())
        for pair in self.pairs:
            digest.update(pair.image.tobytes() + pair.mask.tobytes())
        return digest.hexdigest()

    def batches(self, *, start: int, end: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Crops `start` to `end`, rotated and flipped with their masks; large pairs are drawn more often."""
        for first in range(start, end, batch_size):
            positions = range(first, min(first + batch_size, end))
            crops = self._reduced([self.crop(position, seed) for position in positions])
            yield Batch(first, crops.images, np.zeros(len(crops), np.int64), Condition(crops.shares, is_image=False))

    def crop(self, position: int, seed: int) -> "Crop":
        """A training image, in a random orientation."""
        rng = np.random.default_rng((seed, position))
        number = int(rng.choice(len(self.pairs), p=self._areas))
        pair = self.pairs[number]
        top, left = (int(rng.integers(side - self.crop_px + 1)) for side in pair.mask.shape)
        area = np.s_[top : top + self.crop_px, left : left + self.crop_px]
        both = np.concatenate([pair.image[area], pair.mask[area][..., None]], axis=2)
        both = turned(both[None], rng.integers(N_TURNS, size=1))[0]
        return Crop(number, np.ascontiguousarray(both[..., :3]), np.ascontiguousarray(both[..., 3]))

    @cached_property
    def _areas(self) -> np.ndarray:
        """The share of each pair in the area of all."""
        areas = np.array([pair.mask.size for pair in self.pairs], np.float64)
        return np.asarray(areas / areas.sum())

    def random_crops(self, n: int, seed: int) -> Crops:
        """The first n training images of a seed."""
        return self._reduced([self.crop(position, seed) for position in range(n)])

    def spread_crops(self, n: int) -> Crops:
        """At most n of the crops that tile the pairs, spread over all."""
        crops = [crop for number, pair in enumerate(self.pairs) for crop in grid_of_crops(number, pair, self.crop_px)]
        return self._reduced([crops[number] for number in spread(len(crops), n)])

    def _reduced(self, crops: Sequence["Crop"]) -> Crops:
        edge, k = self.image_size_px, self.n_classes
        return Crops(
            np.stack([reduced_image(crop.image, edge) for crop in crops]),
            np.stack([reduced_mask(crop.mask, k, edge) for crop in crops]),
            np.stack([class_shares(crop.mask, k, (edge, edge)) for crop in crops]),
            np.array([crop.pair for crop in crops]),
        )


@dataclass(frozen=True)
class Crop:
    """A part of a pair, in its own resolution."""

    pair: int
    """The place of the pair in its set."""
    image: np.ndarray
    """(p, p, 3) uint8."""
    mask: np.ndarray
    """(p, p) uint8."""


def grid_of_crops(number: int, pair: Pair, crop_px: int) -> list[Crop]:
    """The crops that tile a pair from its top left corner, if LEAST_LABELLED of them or more has a class."""
    height, width = pair.mask.shape
    areas = [
        np.s_[top : top + crop_px, left : left + crop_px]
        for top in range(0, height - crop_px + 1, crop_px)
        for left in range(0, width - crop_px + 1, crop_px)
    ]
    labelled = [area for area in areas if (pair.mask[area] != UNLABELED).mean() >= LEAST_LABELLED]
    return [Crop(number, pair.image[area], pair.mask[area]) for area in labelled]


def reduced_image(image: np.ndarray, edge: int) -> np.ndarray:
    """A square image (p, p, 3) uint8 resized to (edge, edge, 3) with Pillow's Lanczos filter."""
    if len(image) == edge:
        return image
    return np.asarray(Image.fromarray(image).resize((edge, edge), Image.Resampling.LANCZOS))


def class_shares(mask: np.ndarray, n_classes: int, shape: tuple[int, int]) -> np.ndarray:
    """The share of each class (n_classes, *shape) float32 in a mask (h, w), reduced to `shape`; unlabeled: zeros."""
    return np.stack([_share(mask == number, shape) for number in range(n_classes)])


def _share(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    plane = torch.from_numpy(pixels.astype(np.float32))[None]
    return np.asarray(torch.nn.functional.adaptive_avg_pool2d(plane, shape)[0].numpy())


def reduced_mask(mask: np.ndarray, n_classes: int, edge: int) -> np.ndarray:
    """The commonest class of each of edge x edge pixels, (edge, edge) uint8, or UNLABELED."""
    shares = class_shares(mask, n_classes, (edge, edge))
    unlabeled = 1 - shares.sum(axis=0)
    commonest = shares.argmax(axis=0)
    return np.where(unlabeled > shares.max(axis=0), UNLABELED, commonest).astype(np.uint8)


def _pairs_below(source: Path, palette: Palette) -> Iterator[Pair]:
    if not source.is_dir():
        raise UsageError(f"{source} is no local folder: expected one with {IMAGES}/ and {MASKS}/ in it or below it")
    for images in sorted(path for path in (source, *source.rglob("*")) if (path / IMAGES).is_dir()):
        found = {name: _files(images / name) for name in (IMAGES, MASKS)}
        for name, other in ((IMAGES, MASKS), (MASKS, IMAGES)):
            if alone := sorted(found[name].keys() - found[other].keys()):
                first = found[name][alone[0]]
                raise UsageError(
                    f"{len(alone):,} of {len(found[name]):,} files in {images / name} have no partner in "
                    f"{other}/, such as {first.name}: add it, or take it out"
                )
        for stem, path in sorted(found[IMAGES].items()):
            yield _pair(f"{images.relative_to(source.parent)}/{stem}", path, found[MASKS][stem], palette)


def _pair(name: str, image_path: Path, mask_path: Path, palette: Palette) -> Pair:
    image, mask = read_picture(image_path), read_mask(mask_path, palette)
    if image.shape[:2] != mask.shape:
        sizes = [f"{width} x {height}" for height, width in (image.shape[:2], mask.shape)]
        raise UsageError(f"{image_path} has {sizes[0]} px and its mask {mask_path} {sizes[1]}: expected the same size")
    return Pair(name, image, mask)


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise UsageError(f"{found[path.stem].name} and {path.name} in {folder} have one name: take one out")
            found[path.stem] = path
    return found
