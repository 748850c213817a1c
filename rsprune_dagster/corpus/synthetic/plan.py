"""The plan of a synthetic corpus: its tiles and their places, before anything is painted."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.corpus.synthetic.scenes import SCENES
from rsprune_dagster.utils.errors import UsageError

PAINTING_VERSION: Final = 1
"""Increment when the same plan gives other bytes, so that existing corpora are regenerated."""

CONTAINERS: Final = {
    "part": (0.50, ".jpg"),
    "archive_a.tar": (0.20, ".jpg"),
    "archive_b.tar": (0.15, ".png"),
    "rows.parquet": (0.15, ".jpg"),
}
"""Each container's share of the tiles and the encoding of originals in it. `part`: folders of loose files."""

TILES_PER_FOLDER: Final = 100

COPIES: Final = ("exact_copy", "near_duplicate")
"""The kinds that are derived from another tile."""


@dataclass(frozen=True)
class SyntheticPlan:
    """Size and faults of a synthetic corpus. Raises UsageError if the values are inconsistent.

    `n_tiles` includes blanks, copies and noise, whose shares refer to `n_tiles`; scene files, broken files, the
    reference and the held-out tiles are extra. The other tiles are distinct; their counts per scene fall
    geometrically, the most common scene having `imbalance` times as many as the rarest.
    """

    n_tiles: int = 1200
    size_px: int = 64
    imbalance: float = 12.0
    blank_share: float = 0.05
    exact_copy_share: float = 0.05
    near_duplicate_share: float = 0.08
    noise_share: float = 0.02
    n_scene_files: int = 3
    scene_file_px: int = 512
    window_px: int = 256
    n_broken: int = 7
    n_reference_per_scene: int = 20
    n_held_out_per_scene: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.n_scene_files, self.n_broken, self.n_reference_per_scene, self.n_held_out_per_scene, self.seed)
        if min(counts) < 0:
            raise UsageError(f"a synthetic corpus has counts and a seed of 0 or more, got {min(counts)}")
        if min(self.shares.values()) < 0 or sum(self.shares.values()) > 0.9:
            raise UsageError(f"shares of a synthetic corpus are 0 or more and at most 0.9 together, got {self.shares}")
        if self.imbalance < 1:
            raise UsageError(f"imbalance is the commonest scene over the rarest, 1 or more, got {self.imbalance:g}")
        if not 16 <= self.size_px <= 1024:
            raise UsageError(f"size_px is 16 to 1024, got {self.size_px}")
        if self.window_px < 64 or self.scene_file_px % self.window_px:
            raise UsageError(
                f"scene_file_px is a multiple of window_px, 64 or more, got {self.scene_file_px} and {self.window_px}"
            )
        if min(self.scene_counts) < 1:
            raise UsageError(f"{self.n_tiles} tiles leave some scene without any: ask for more, or for less imbalance")

    @property
    def shares(self) -> dict[str, float]:
        """The share of each kind that is not a distinct tile of a scene."""
        return {
            "blank": self.blank_share,
            "exact_copy": self.exact_copy_share,
            "near_duplicate": self.near_duplicate_share,
            "noise": self.noise_share,
        }

    @cached_property
    def scene_counts(self) -> tuple[int, ...]:
        """Number of distinct tiles per scene, in the order of SCENES."""
        n_distinct = self.n_tiles - sum(round(share * self.n_tiles) for share in self.shares.values())
        bounds = np.rint(np.cumsum(self.scene_weights) * n_distinct).astype(int)
        return tuple(int(n) for n in np.diff(bounds, prepend=0))

    @property
    def scene_weights(self) -> NDArray[np.float64]:
        """Share of each scene among distinct tiles, falling geometrically."""
        weights: NDArray[np.float64] = np.power(self.imbalance, -np.linspace(0, 1, len(SCENES)))
        weights /= weights.sum()
        return weights

    def as_dict(self) -> dict[str, Any]:
        """Everything that the corpus's bytes depend on, for `plan.json`."""
        return {"painting_version": PAINTING_VERSION, **asdict(self)}

    def generator(self, role: str, name: str, index: int) -> np.random.Generator:
        """The random generator of one picture; it depends on the seed and these three values only."""
        words = (self.seed, zlib.crc32(role.encode()), zlib.crc32(name.encode()), index)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


@dataclass(frozen=True)
class Planted:
    """A tile to be written: content, original and place."""

    kind: str
    """tile, blank, exact_copy, near_duplicate or noise"""
    name: str
    """the scene that is painted, or the fault"""
    index: int
    """its number among those of its kind and name"""
    original: "Planted | None" = None
    """the tile it is a copy of"""
    container: str = ""
    """folder, tar or Parquet file, relative to the corpus"""
    number: int = 0
    """its place in the container"""
    suffix: str = ".png"
    """its encoding: .jpg or .png"""

    @property
    def member(self) -> str:
        """Its name in the container; in a Parquet file its row."""
        return str(self.number) if self.container.endswith(".parquet") else f"{self.number:06d}{self.suffix}"

    @property
    def tile_id(self) -> str:
        """The path relative to the corpus."""
        return f"{self.container}/{self.member}"

    @property
    def scene(self) -> str | None:
        """The scene it shows, if any."""
        shown = self.original or self
        return shown.name if shown.kind == "tile" else None


def lay_out(plan: SyntheticPlan, *, ways: Mapping[str, Iterable[str]]) -> list[Planted]:
    """Every tile of the plan with its place, shuffled so that place and name do not reveal the content.

    `ways` gives the variants of each kind other than `tile`; they are used in turn. An original is copied a second
    time only after every original was copied.
    """
    rng = plan.generator("lay out", "", 0)
    in_order = _slots(plan.n_tiles)
    slots = (in_order[at] for at in rng.permutation(plan.n_tiles))
    tiles = [
        _placed(Planted("tile", scene, index), next(slots))
        for scene, n in zip(SCENES, plan.scene_counts, strict=True)
        for index in range(n)
    ]
    originals = cycle(tiles[at] for at in rng.permutation(len(tiles)))
    spoiled = [
        _placed(Planted(kind, way, index, next(originals) if kind in COPIES else None), next(slots))
        for kind, share in plan.shares.items()
        for index, way in enumerate(islice(cycle(ways[kind]), round(share * plan.n_tiles)))
    ]
    return sorted(tiles + spoiled, key=lambda item: (item.container, item.number))


def _slots(n_tiles: int) -> list[tuple[str, int, str]]:
    """Container, number in it and encoding of every tile."""
    slots: list[tuple[str, int, str]] = []
    bounds = np.rint(np.cumsum([share for share, _ in CONTAINERS.values()]) * n_tiles).astype(int)
    for (name, (_, suffix)), n in zip(CONTAINERS.items(), np.diff(bounds, prepend=0), strict=True):
        folder = name == "part"
        slots += [(f"part_{i // TILES_PER_FOLDER:04d}" if folder else name, i, suffix) for i in range(int(n))]
    return slots


def _placed(item: Planted, slot: tuple[str, int, str]) -> Planted:
    """The item in its slot. An exact copy keeps the encoding of its original, a near-duplicate is always a JPEG."""
    container, number, suffix = slot
    if item.original:
        suffix = item.original.suffix if item.kind == "exact_copy" else ".jpg"
    return replace(item, container=container, number=number, suffix=suffix)
