"""How tiles are read: the part of params.yaml that decides what a tile is and how its values are shown."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ReadOptions:
    """Parameters of reading, as `corpus:` in params.yaml has them; every one of them can change a result.

    `base` is none of them: it is the folder that the relative uris of a manifest start from.
    """

    tile_size_px: int = 256
    overlap_px: int = 0
    min_valid_fraction: float = 0.5
    bands: tuple[int, ...] = ()
    value_range: tuple[float, ...] = ()
    max_tile_pixels: int = 64_000_000
    image_columns: tuple[str, ...] = ()
    base: str = field(default="", compare=False)

    @property
    def max_decoded_bytes(self) -> int:
        """What a raster may take in memory before it is scaled: 8 bytes a pixel, such as 4 bands of 16 bits."""
        return 8 * self.max_tile_pixels

    def values(self) -> dict[str, Any]:
        """The parameters by name."""
        return {name: value for name, value in asdict(self).items() if name != "base"}
