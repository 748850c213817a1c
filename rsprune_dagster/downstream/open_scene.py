"""A GeoTIFF scene that is to be enlarged: its bands, values, validity and range, and what makes it unusable.

Values are read as those of the corpus are (`corpus.rasters`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window
from scipy.ndimage import distance_transform_edt

from rsprune_dagster.corpus import gdal, rasters
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.utils.errors import TileError, UsageError

OVERLAP: Final = 0.25
"""Least share of a window's edge that it has in common with the next one."""
KINDS: Final = ("uint8", "uint16", "int16", "float32")
"""Sample types whose values float32 holds exactly."""


@dataclass(frozen=True)
class Scaling:
    """How a scene is enlarged."""

    scale: int
    edge_px: int
    """Edge of a window of the result: that of the model's images."""
    noise_shape: tuple[int, int]
    """Channels and edge of the noise that a window starts from."""
    seed: int
    other_bands: str = "refuse"
    """How bands other than red, green and blue are treated: refuse or bicubic."""
    at_once: int = 8
    """Windows of a batch."""

    @property
    def window_px(self) -> int:
        """Edge of a window of the input."""
        return self.edge_px // self.scale

    @property
    def overlap_px(self) -> int:
        """Least overlap of neighbouring windows of the input."""
        return math.ceil(self.window_px * OVERLAP)


@dataclass(frozen=True)
class OpenScene:
    """An open scene that can be enlarged."""

    raster: rasters.Raster
    scaling: Scaling
    path: Path

    @property
    def dataset(self) -> Any:
        return self.raster.dataset

    @property
    def shape(self) -> tuple[int, int]:
        return self.dataset.height, self.dataset.width

    @property
    def bands(self) -> list[int]:
        """Red, green and blue, from 1."""
        return self.raster.bands

    @property
    def alpha(self) -> list[int]:
        tags = zip(self.dataset.indexes, self.dataset.colorinterp, strict=True)
        return [band for band, tag in tags if tag == ColorInterp.alpha and band not in self.bands]

    @property
    def others(self) -> list[int]:
        return [band for band in self.dataset.indexes if band not in (*self.bands, *self.alpha)]

    @property
    def kind(self) -> np.dtype[Any]:
        return np.dtype(self.raster.dtype)

    @property
    def nodata(self) -> float | None:
        """The value of invalid pixels; None also for one that the type of the values does not have."""
        nodata: float | None = self.dataset.nodata
        if nodata is None or self.kind.kind == "f":
            return nodata
        limits = np.iinfo(self.kind)
        return nodata if limits.min <= nodata <= limits.max else None

    @cached_property
    def range(self) -> tuple[float, float]:
        """The stored values that the model is shown as black and white."""
        if self.kind == np.uint8:
            return 0.0, 255.0
        if self.raster.is_scene:
            return self.raster.range(np.zeros(0))  # it is measured at places all over the scene
        values, valid = self.colours(0, self.shape[0])
        return self.raster.range(values[:, valid]) if valid.any() else (0.0, 1.0)

    def colours(self, top: int, end: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Values (3, n, width) of some lines, invalid ones replaced by the nearest valid pixel, and which are valid."""
        with self._told():
            values, valid = self.raster.values((0, top, self.shape[1], end - top))
        return _filled(values.astype(np.float32), np.ones(values.shape[1:], bool) if valid is None else valid)

    def other(self, band: int, top: int, end: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The same of another band: (1, n, width)."""
        with self._told():
            read = self.dataset.read([band], window=self.window(top, end), masked=True)
        values = np.asarray(read.data, np.float32)
        return _filled(values, (~np.ma.getmaskarray(read) & np.isfinite(values))[0])

    def stored(self, band: int, top: int, end: int) -> NDArray[Any]:
        """(n, width) values as they are."""
        with self._told():
            return np.asarray(self.dataset.read(band, window=self.window(top, end)))

    def window(self, top: int, end: int) -> Window:
        return Window(0, top, self.shape[1], end - top)

    def writes_mask(self) -> bool:
        """Whether validity is in a mask of the whole scene."""
        per_scene = any(MaskFlags.per_dataset in flags for flags in self.dataset.mask_flag_enums)
        return self.nodata is None and not self.alpha and (per_scene or self.raster.scene.mask is not None)

    def remarks(self) -> list[str]:
        """Remarks for the user: what of the input the result lacks, or has without the model."""
        found, scene = [], self.raster.scene
        if scene.crs is None and scene.transform.is_identity and not self.dataset.gcps[0]:
            found.append("the input has no georeference, so the result has none")
        if self.dataset.rpcs is not None:
            found.append("the rational polynomial coefficients (RPC) of the input are left out")
        if self.others:
            plural = "s" * (len(self.others) != 1)
            found.append(f"band{plural} {', '.join(map(str, self.others))} enlarged by bicubic interpolation alone")
        return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except rasterio.RasterioIOError as error:
            raise UsageError(f"{self.path} is damaged: {gdal.gdal_message(error)}") from None


@contextmanager
def open_scene(source: Path, scaling: Scaling, options: ReadOptions) -> Iterator[OpenScene]:
    try:
        with rasters.opened(str(source)) as scene:
            opened = OpenScene(rasters.Raster(scene, options), scaling, source)
            _check(opened)
            yield opened
    except TileError as error:
        raise UsageError(f"{source} cannot be used: {error}") from None
    except rasterio.RasterioIOError as error:
        raise UsageError(f"{source} cannot be read as a GeoTIFF: {gdal.gdal_message(error)}") from None


def _check(scene: OpenScene) -> None:
    (height, width), scaling, path = scene.shape, scene.scaling, scene.path
    if min(height, width) < scaling.window_px:
        raise UsageError(
            f"{path} has {width} x {height} px, less than a window of {scaling.window_px} px: it is too small for this "
            "model"
        )
    if len(scene.bands) != 3:
        n = scene.dataset.count - len(scene.alpha)
        raise UsageError(f"{path} has {n} band{'s' * (n != 1)}, expected red, green and blue")
    if scene.others and scaling.other_bands == "refuse":
        n = len(scene.others)
        raise UsageError(
            f"{path} has {n} band{'s' * (n != 1)} beside red, green and blue, which the model does not know: leave "
            "them out, or pass them on by bicubic enlargement (--other-bands bicubic)"
        )
    if scene.raster.dtype not in KINDS:
        raise UsageError(f"{path} has values of type {scene.raster.dtype}, expected {', '.join(KINDS)}: convert it")


def _filled(values: NDArray[np.float32], valid: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Values (c, h, w) with invalid pixels replaced by the nearest valid one, 0 if there is none."""
    valid = np.asarray(valid, bool)
    if valid.all() or not valid.any():
        return np.where(valid, values, np.float32(0)), valid
    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return values[:, nearest[0], nearest[1]], valid
