"""Read options: the part of params.yaml that defines tiles and the scaling of their values."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ReadOptions:
    """Parameters of reading, from `corpus:` in params.yaml; each can change a result.

    `base` is not a parameter: it is the folder that relative uris of a manifest are resolved against.
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
        """Memory limit of a raster before scaling: 8 bytes per pixel, such as 4 bands of 16 bits."""
        return 8 * self.max_tile_pixels

    def values(self) -> dict[str, Any]:
        """The parameters by name."""
        return {name: value for name, value in asdict(self).items() if name != "base"}
