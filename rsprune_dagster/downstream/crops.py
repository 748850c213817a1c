"""The data of super-resolution: random crops of tiles at their own resolution, each with a low-resolution version."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.diffusion.objective import to_tensor
from rsprune_dagster.diffusion.tile_set import N_TURNS, Batch, Condition, OnChanged, TileSet, epoch_order, turned
from rsprune_dagster.downstream.degradation import DEGRADATIONS, enlarged
from rsprune_dagster.utils.errors import UsageError

N_READERS = 2


@dataclass(frozen=True)
class CropSet(TileSet):
    """Tiles whose crops of `image_size_px` are trained on; all have one scene."""

    scale: int = 4
    degradation: str = "bicubic"

    def fingerprint(self) -> str:
        """A hash of the tiles, their size and the degradation."""
        return hashlib.sha256(f"{super().fingerprint()} {self.scale} {self.degradation}".encode()).hexdigest()

    def batches(self, *, start: int, end: int, batch_size: int, seed: int, workers: int = N_READERS) -> Iterator[Batch]:
        """Crops `start` to `end`, each with its enlarged low-resolution version as the condition."""
        with ThreadPoolExecutor(workers) as pool:
            for first in range(start, end, batch_size):
                positions = np.arange(first, min(first + batch_size, end))
                chosen = epoch_order(positions, n_tiles=len(self), seed=seed)
                pairs = list(pool.map(lambda index, position: self.pair(index, (seed, position)), chosen, positions))
                high, low = (np.stack(each) for each in zip(*pairs, strict=True))
                yield Batch(first, high, np.zeros(len(high), np.int64), condition_of(to_tensor(low), self.scale))

    def pairs(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """One crop of each of n tiles, spread over all: (n, s, s, 3) and (n, s / scale, s / scale, 3), both uint8."""
        chosen = spread(len(self), n)
        high, low = zip(*(self.pair(index, (seed, index)) for index in chosen), strict=True)
        return np.stack(high), np.stack(low)

    def pair(self, index: int, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A random crop (s, s, 3) of a tile, rotated or flipped, and its low-resolution version; both uint8."""
        rng = np.random.default_rng(tuple(int(number) for number in seed))
        _, tile = self._read_from(int(index))
        edge = self.image_size_px
        top, left = (int(rng.integers(side - edge + 1)) for side in tile.shape[:2])
        crop = turned(tile[None, top : top + edge, left : left + edge], rng.integers(N_TURNS, size=1))[0]
        crop = np.ascontiguousarray(crop)
        return crop, DEGRADATIONS[self.degradation](crop, self.scale, rng)

    def _read(self, index: int) -> np.ndarray:
        row = self.table.slice(index, 1).to_pylist()[0]
        return self._reader().read_rgb(row)


def crop_set(
    table: pa.Table, options: ReadOptions, *, edge_px: int, scale: int, degradation: str, on_changed: OnChanged
) -> CropSet:
    """The tiles that are large enough for a crop, possibly none.

    Args:
        table: rows of a manifest or a subset.

    Raises:
        UsageError: the scale does not divide the edge.
    """
    check_scale(scale, edge_px)
    shorter = pc.min_element_wise(table.column("width_px"), table.column("height_px"))
    large = table.filter(pc.greater_equal(shorter, edge_px))
    scenes = np.zeros(large.num_rows, np.int64)
    return CropSet(large, scenes, ("",), options, edge_px, on_changed, scale=scale, degradation=degradation)


def spread(n_all: int, n: int) -> np.ndarray:
    """The places of at most n of n_all, spread over all."""
    return np.linspace(0, n_all - 1, min(n, n_all)).round().astype(int)


def check_scale(scale: int, edge_px: int) -> None:
    """Raise UsageError if the scale does not divide the edge of the foundation model's images."""
    if edge_px % scale:
        raise UsageError(
            f"super_resolution.scale {scale} does not divide the {edge_px} px of the foundation model's images: choose "
            f"another scale, or train a foundation of {max(1, edge_px // (8 * scale)) * 8 * scale} px "
            "(training.image_size_px)"
        )


def condition_of(low: torch.Tensor, scale: int) -> Condition:
    """Low-resolution images (n, 3, h, w) in [-1, 1], enlarged, as the condition of a denoiser."""
    return Condition(enlarged(low, scale).clamp(-1, 1).numpy(), is_image=True)
