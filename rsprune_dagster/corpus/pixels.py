"""A decoded tile: 8-bit colours, grey levels, validity mask and metadata."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Pixels(NamedTuple):
    """A decoded tile. A named tuple for speed: one is created per tile.

    Invalid pixels (nodata, transparent) are set to the mean colour of the valid ones.
    """

    content_md5: str
    grey: Bytes
    """(H, W) luma, ITU-R BT.601."""
    valid: Mask | None
    """(H, W), or None when all are valid."""
    rgb: Bytes | None
    """(H, W, 3), or None if only grey levels exist or were requested."""
    width_px: int
    height_px: int
    n_bands: int
    dtype: str = "uint8"
    crs: str | None = None
    lon: float | None = None
    lat: float | None = None
    gsd_m: float | None = None
    scale_low: float | None = None
    scale_high: float | None = None


def luma(rgb: Bytes) -> Bytes:
    """(H, W, 3) to (H, W): 0.299 R + 0.587 G + 0.114 B, rounded (ITU-R BT.601), in 16-bit fixed point."""
    red, green, blue = (rgb[:, :, band].astype(np.uint32) for band in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).astype(np.uint8)


def shown(content_md5: str, planes: Bytes, valid: Mask | None, *, n_bands: int, **facts: Any) -> Pixels:
    """Build Pixels from 8-bit planes.

    Args:
        planes: (H, W, 1) grey or (H, W, 3) colour.
        valid: (H, W) with at least one valid pixel, or None.
    """
    if valid is not None and valid.all():
        valid = None
    if valid is not None:
        planes = np.where(valid[:, :, None], planes, np.rint(planes[valid].mean(axis=0)).astype(np.uint8))
    height, width, n_planes = planes.shape
    rgb = planes if n_planes == 3 else None
    grey = luma(planes) if n_planes == 3 else np.ascontiguousarray(planes[:, :, 0])
    return Pixels(content_md5, grey, valid, rgb, width, height, n_bands, **facts)
