"""How tiles are read: the part of params.yaml that decides what a tile is and how its values are shown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """Parameters of reading, as `corpus:` in params.yaml has them; every one of them can change a result."""

    tile_size_px: int = 256
    overlap_px: int = 0
    min_valid_fraction: float = 0.5
    bands: tuple[int, ...] = ()
    value_range: tuple[float, ...] = ()
    max_tile_pixels: int = 64_000_000
