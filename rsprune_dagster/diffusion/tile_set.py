"""Kept tiles as training images: read in place, resized, randomly rotated, in a seeded order that can be resumed."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import local
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rsprune_dagster.config.layout import TILES
from rsprune_dagster.config.params import TrainingParams
from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions, read_options
from rsprune_dagster.utils.errors import RunError, TileError, UsageError

N_TURNS = 8
"""Number of rotations and flips: nadir tiles have no canonical orientation."""

OnChanged = Literal["fail", "skip"]


@dataclass(frozen=True)
class Batch:
    """Consecutive training images."""

    first: int
    images: np.ndarray
    """(n, size, size, 3) uint8."""
    scenes: np.ndarray
    """(n,) int64."""
    condition: "Condition | None" = None
    """Additional input of the denoiser; None: there is none."""


@dataclass(frozen=True)
class Condition:
    """Additional input of a denoiser, image by image."""

    planes: np.ndarray
    """(n, c, size, size) float32."""
    is_image: bool
    """Whether the planes are RGB in [-1, 1], which a latent diffusion encodes; else it averages them by area."""

    def __getitem__(self, rows: np.ndarray | slice) -> "Condition":
        """The condition of some of the images."""
        return Condition(self.planes[rows], self.is_image)


class TrainingData(Protocol):
    """The images that a denoiser is trained on."""

    @property
    def image_size_px(self) -> int: ...

    @property
    def scene_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """A hash of everything that the images of a training depend on besides its seed."""
        ...

    def batches(self, *, start: int, end: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Training images `start` to `end`. An image depends on its number and the seed alone."""
        ...


@dataclass(frozen=True)
class TileSet:
    """Tiles by index, as square RGB images of one size; decoded images are cached in memory up to a limit.

    Attributes:
        table: rows of a subset or a manifest (`corpus.tiles.LOCATION` and `content_md5`).
        scene_ids: (N,) int64, an index into `scene_names`.
    """

    table: pa.Table
    scene_ids: np.ndarray
    scene_names: tuple[str, ...]
    options: ReadOptions
    image_size_px: int
    on_changed: OnChanged
    memory: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    memory_limit_bytes: int = 4 << 30
    _held: list[int] = field(default_factory=lambda: [0], init=False, compare=False, repr=False)
    """Bytes of the decoded images in `memory`."""
    _readers: local = field(default_factory=local, compare=False, repr=False)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def images(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images (n, size, size, 3) uint8; see `labelled`."""
        return self.labelled(indices)[0]

    def labelled(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, size, size, 3) uint8 and their scenes (n,) int64.

        For a tile that vanished or changed since pruning: fail, or use the next tile with that tile's scene.

        Raises:
            RunError: a tile changed and `on_changed` is `fail`, or no tile can be read any more.
        """
        read = [self._read_from(int(index)) for index in indices]
        return np.stack([image for _, image in read]), self.scene_ids[[at for at, _ in read]]

    def fingerprint(self) -> str:
        """A hash of the tiles, their scenes and their size, and of the options that change their pixels.

        Options that are not set add nothing: hashes of earlier versions hold.
        """
        read_as = f"{self.options.bands or ''}{self.options.value_range or ''}"
        digest = hashlib.sha256(f"{self.image_size_px} {self.scene_names}{read_as}".encode())
        for content, scene in zip(self.table.column("content_md5").to_pylist(), self.scene_ids, strict=True):
            digest.update(f"{content}{scene}".encode())
        return digest.hexdigest()

    def batches(self, *, start: int, end: int, batch_size: int, seed: int, workers: int = 2) -> Iterator[Batch]:
        """Training images `start` to `end` in batches, each randomly rotated and flipped by its number."""
        with ThreadPoolExecutor(workers) as pool:
            for first in range(start, end, batch_size):
                positions = np.arange(first, min(first + batch_size, end))
                chosen = epoch_order(positions, n_tiles=len(self), seed=seed)
                parts = np.array_split(chosen, workers)
                read = list(pool.map(self.labelled, [part for part in parts if len(part)]))
                images, scenes = (np.concatenate(each) for each in zip(*read, strict=True))
                turns = np.random.default_rng((seed, first, N_TURNS)).integers(N_TURNS, size=len(positions))
                yield Batch(first, turned(images, turns), scenes)

    def _read_from(self, index: int) -> tuple[int, np.ndarray]:
        """Index and image of the tile at `index`, or of the next readable one."""
        for step in range(len(self)):
            at = (index + step) % len(self)
            if (known := self.memory.get(at)) is not None:
                return at, known
            try:
                image = self._read(at)
            except TileError as error:
                self._refuse(at, error)
                continue
            if self._held[0] + image.nbytes <= self.memory_limit_bytes:
                self.memory[at] = image
                self._held[0] += image.nbytes
            return at, image
        raise RunError(
            f"none of the {len(self):,} tiles can be read as it was when the corpus was pruned: prune it anew"
        )

    def _read(self, index: int) -> np.ndarray:
        row = self.table.slice(index, 1).to_pylist()[0]
        return squared(self._reader().read_rgb(row), self.image_size_px)

    def _refuse(self, index: int, error: TileError) -> None:
        if self.on_changed == "fail":
            tile_id = self.table.column("tile_id")[index].as_py()
            raise RunError(
                f"{tile_id} is not the tile that was pruned ({error}): prune the corpus anew, "
                "or set training.on_changed_tile to skip"
            ) from error

    def _reader(self) -> TileReader:
        if not hasattr(self._readers, "reader"):
            self._readers.reader = TileReader(self.options)
        return self._readers.reader  # type: ignore[no-any-return]


def tile_set(
    table: pa.Table,
    options: ReadOptions,
    *,
    image_size_px: int,
    on_changed: OnChanged = "fail",
    scene_column: str = "scene",
) -> TileSet:
    """The tiles of a subset with their scenes; one scene for all if the column is null.

    Raises:
        UsageError: there are no tiles.
    """
    if table.num_rows == 0:
        raise UsageError("there are no tiles to train on: the subset is empty")
    scenes = [scene or "" for scene in table.column(scene_column).to_pylist()]
    names = tuple(sorted(set(scenes)))
    places = {name: number for number, name in enumerate(names)}
    ids = np.array([places[scene] for scene in scenes], np.int64)
    return TileSet(table, ids, names, options, image_size_px, on_changed)


def squared(image: np.ndarray, size_px: int) -> np.ndarray:
    """The central square of an (h, w, 3) image, resized to (size, size, 3) with Pillow's Lanczos filter."""
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = image[top : top + edge, left : left + edge]
    if edge == size_px:
        return np.ascontiguousarray(square)
    return np.asarray(Image.fromarray(square).resize((size_px, size_px), Image.Resampling.LANCZOS))


def epoch_order(positions: np.ndarray, *, n_tiles: int, seed: int) -> np.ndarray:
    """The tile of the i-th training image: every epoch is a permutation of all tiles.

    Args:
        positions: (n,) numbers of training images, from 0.

    Returns:
        (n,) tile indices; they depend on the seed only, not on batches, processes or interruptions.
    """
    epochs, places = np.divmod(positions, n_tiles)
    order = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        permutation = np.random.default_rng((seed, int(epoch))).permutation(n_tiles)
        order[epochs == epoch] = permutation[places[epochs == epoch]]
    return order


def turned(images: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Rotate images (n, s, s, 3), or masks, by `turns` (n,) quarter turns each; mirrored first if that is 4 or more."""
    return np.stack(
        [
            np.rot90(image[:, ::-1] if turn >= N_TURNS // 2 else image, turn % 4)
            for image, turn in zip(images, turns, strict=True)
        ]
    )


def kept_tiles(corpus: Path, subset: Path, params: TrainingParams) -> TileSet:
    """The tiles of a pruned subset, with the corpus' read options.

    Raises:
        UsageError: the subset is empty.
    """
    return tile_set(
        pq.read_table(subset / TILES),
        read_options(corpus),
        image_size_px=params.image_size_px,
        on_changed=params.on_changed_tile,
    )
