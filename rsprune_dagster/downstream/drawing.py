"""The file of an image that was drawn for a mask: a PNG, or a GeoTIFF at the place of the mask."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from rsprune_dagster.corpus import gdal
from rsprune_dagster.utils.atomic_write import atomic_write

SUFFIXES: Final = (".png", *gdal.TIFF_SUFFIXES)


def targets(target: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """The file of each seed: `target` of one seed; of several, with the seed in its name."""
    if len(seeds) == 1:
        return {seeds[0]: target}
    return {seed: target.with_name(f"{target.stem}-{seed}{target.suffix}") for seed in seeds}


def write_drawing(image: NDArray[np.uint8], mask: Path, target: Path) -> str:
    """Write an image (H, W, 3) of a mask; returns a remark on its georeference, or nothing.

    A GeoTIFF gets the place of the mask, with pixels that are larger or smaller as the image has fewer or more.
    """
    if target.suffix.lower() not in gdal.TIFF_SUFFIXES:
        with atomic_write(target) as draft:
            Image.fromarray(image).save(draft, "PNG")
        return ""
    height, width = image.shape[:2]
    place = _place(mask, height, width)
    layout = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": height, "width": width, **place}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            atomic_write(target) as draft,
            rasterio.open(draft, "w", photometric="RGB", compress="deflate", **layout) as out,
        ):
            out.write(image.transpose(2, 0, 1))
    return "" if place else f"{mask} has no georeference, so {target.name} has none"


def _place(mask: Path, height: int, width: int) -> dict[str, object]:
    """The CRS and transform, or ground control points, of an image of the same place; nothing if the mask has none."""
    try:
        with gdal.opened(str(mask)) as raster:
            down, right = height / raster.height, width / raster.width
            points, crs = raster.gcps
            if points:
                return {"crs": crs, "gcps": gdal.scaled_points(points, down, right)}
            if raster.transform.is_identity:
                return {}
            return {"crs": raster.crs, "transform": raster.transform @ Affine.scale(1 / right, 1 / down)}
    except RasterioIOError:  # a picture
        return {}
