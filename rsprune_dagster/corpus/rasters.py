"""GeoTIFF scenes: the grid of windows, the bands seen, how their values become 8 bits, masks, and where on Earth it is.

**Windows** start at the upper left corner, `tile_size_px - overlap_px` apart, row by row. The last of a row or column
is cut at the scene's edge, so that no tile is partly a copy of another; what would lie beyond counts as not valid, so
slivers fail `min_valid_fraction` like any window of nodata.

**Values.** 8-bit rasters are taken as they are. Others are mapped linearly from [low, high] to 0..255, all bands
alike, so that colours stay true: `value_range` where given; for a scene of several windows the 2nd and 98th
percentile of its valid pixels, at 256 evenly spread places; for a single tile its exposure (`exposure_range`), since
stretching each tile to its own extremes would blow the noise of calm water up to the entropy of a city.

**Masks** are GDAL's: nodata value, alpha band, mask band; a pixel is valid where any seen band is. NaN and infinity are
nodata.
"""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform as reproject
from rasterio.windows import Window

from rsprune_dagster.corpus import storage
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.pixels import Bytes, Mask
from rsprune_dagster.errors import TileError

PROBES = 16
"""Places along an edge at which a scene is looked at for its scale."""
LISTING_PROBES = 4
"""Places along an edge at which listing checks that a scene can be read."""

BLOCK_CACHE_MB = 64

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


class Place(NamedTuple):
    """Where a window lies."""

    crs: str | None = None
    lon: float | None = None
    lat: float | None = None
    gsd_m: float | None = None


def grid(width_px: int, height_px: int, *, tile_size_px: int, overlap_px: int) -> list[Box]:
    """The windows of a scene, row by row; together they cover it, and none lies inside its neighbours."""
    step = tile_size_px - overlap_px
    columns = range(0, max(width_px - overlap_px, 1), step)
    rows = range(0, max(height_px - overlap_px, 1), step)
    return [(x, y, min(tile_size_px, width_px - x), min(tile_size_px, height_px - y)) for y in rows for x in columns]


def probes(width_px: int, height_px: int, n_along: int, edge_px: int = 64) -> Iterator[Box]:
    """At most n_along x n_along windows of at most edge_px, evenly spread; they cover a scene that is small enough."""
    w, h = (min(edge_px, math.ceil(length / n_along)) for length in (width_px, height_px))
    for row in range(n_along):
        for column in range(n_along):
            yield (width_px - w) * column // (n_along - 1), (height_px - h) * row // (n_along - 1), w, h


@contextmanager
def opened(uri: str) -> Iterator[Any]:
    """A rasterio dataset of a uri or a file in memory, with GDAL's block cache bounded: else it is 5 % of memory."""
    # for the process and not only here: tiles are read in threads, and to restore filters is not safe there
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=BLOCK_CACHE_MB))
        as_text = not storage.is_remote(uri) and storage.spelled(uri) == uri  # rasterio takes no other names
        source = uri if as_text else stack.enter_context(storage.open_binary(uri))
        yield stack.enter_context(rasterio.open(source))


def layout(uri: str, options: ReadOptions) -> list[Box] | None:
    """The windows of a scene; None for a plain tile or an unreadable header; an empty list for a damaged scene.

    A scene is a raster with a CRS, or one larger than a tile.
    """
    try:
        with opened(uri) as dataset:
            size_px = options.tile_size_px
            is_scene = dataset.width > size_px or dataset.height > size_px
            if dataset.crs is None and not is_scene:
                return None
            if damage(dataset, options) is not None:
                return []
            return grid(dataset.width, dataset.height, tile_size_px=size_px, overlap_px=options.overlap_px)
    except (rasterio.errors.RasterioError, OSError):
        return None


def damage(dataset: Any, options: ReadOptions) -> str | None:
    """Why a scene cannot be used, from a look at 16 places, or at all of a single tile; None when they can be read."""
    try:
        raster = Raster(dataset, options)
        whole = [(0, 0, dataset.width, dataset.height)]
        for box in probes(dataset.width, dataset.height, LISTING_PROBES, 1) if raster.is_scene else whole:
            dataset.read(raster.bands, window=Window(*box))
    except TileError as error:
        return str(error)
    except Exception as error:  # GDAL's errors have many classes; each means that the scene is not to be read
        return f"damaged raster: {said_by_gdal(error)}"
    return None


def said_by_gdal(error: BaseException) -> str:
    """GDAL's own words in one line, without paths and names of files in memory: reasons are the same in every run."""
    words = " ".join(str(error.__cause__ or error).split())
    return re.sub(r"'?((?<![\w.])/[^\s':,]+|[0-9a-f]{8}-[0-9a-f-]{27}(\.\w+)?)'?", "the file", words)


def seen_bands(dataset: Any, wanted: tuple[int, ...]) -> list[int]:
    """The bands seen as red, green and blue, or as grey: the wanted, else those tagged so, else the first three or one.

    Raises:
        TileError: a wanted band does not exist.
    """
    if any(band > dataset.count for band in wanted):
        raise TileError(f"has {dataset.count} bands, but bands {list(wanted)} are asked for")
    if wanted:
        return list(wanted)
    tags = dataset.colorinterp
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in tags for colour in colours):
        return [tags.index(colour) + 1 for colour in colours]
    opaque = [band for band, tag in enumerate(tags, start=1) if tag != ColorInterp.alpha]
    return opaque[:3] if len(opaque) >= 3 else opaque[:1]


def exposure_range(values: NDArray[Any]) -> tuple[float, float]:
    """[low, high] for one tile: from 0, in whole stops, like a camera's exposure.

    high is the power of two that the 98th percentile needs (for integers at least 8 bits, so that 8-bit values in
    16-bit files stay as they are); low is 0, or minus such a power where the 2nd percentile is negative (SAR in dB).
    Noise keeps its size relative to the brightness, and tiles of one sensor mostly share a range.

    Args:
        values: (n,) valid pixel values, n >= 1.
    """
    p2, p98 = (float(value) for value in np.percentile(values.astype(np.float64), (2, 98)))
    if np.issubdtype(values.dtype, np.integer):
        high = float(2 ** max(8, int(max(p98, 0)).bit_length()) - 1)
    else:
        high = _power_of_two(p98)
    low = -_power_of_two(-p2)
    return (low, high) if low < high else (0.0, 1.0)


def _power_of_two(value: float) -> float:
    """The smallest power of two that is not below a positive value; 0 for others."""
    if value <= 0:
        return 0.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))


def to_8_bits(values: NDArray[Any], low: float, high: float) -> Bytes:
    """Map [low, high] linearly to 0..255, rounded; what lies outside is clipped."""
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def place_of(dataset: Any, box: Box) -> Place:
    """CRS, centre in WGS 84, and ground sample distance: the root of the ground area of the centre's pixel, metres.

    Measured on the ellipsoid, so it holds for degrees, feet and the stretched metres of web Mercator alike.
    """
    if dataset.crs is None:
        return Place()
    x, y, w, h = box
    column, row = x + w / 2, y + h / 2
    to_map = dataset.transform
    points = ((column, row), (column + 1, row), (column, row + 1))
    easts = [to_map.a * i + to_map.b * j + to_map.c for i, j in points]
    norths = [to_map.d * i + to_map.e * j + to_map.f for i, j in points]
    lons, lats = reproject(dataset.crs, "EPSG:4326", easts, norths)
    crs = dataset.crs.to_string()
    if not all(math.isfinite(value) for value in (*lons, *lats)):
        return Place(crs)
    return Place(crs, lons[0], lats[0], _ground_step_m(lons, lats))


def _ground_step_m(lons: list[float], lats: list[float]) -> float:
    """Root of the area spanned by the steps from the first point to the second and third, metres (WGS 84 series)."""
    phi = math.radians(lats[0])
    per_lat = 111132.954 - 559.822 * math.cos(2 * phi) + 1.175 * math.cos(4 * phi)
    per_lon = 111412.84 * math.cos(phi) - 93.5 * math.cos(3 * phi) + 0.118 * math.cos(5 * phi)
    east = [((lon - lons[0] + 180) % 360 - 180) * per_lon for lon in lons]
    north = [(lat - lats[0]) * per_lat for lat in lats]
    return math.sqrt(abs(east[1] * north[2] - east[2] * north[1]))


class Raster:
    """An open raster with all that is decided once for it: bands, dtype, masks, scale, palette.

    Raises:
        TileError: complex values; a wanted band is missing.
    """

    def __init__(self, dataset: Any, options: ReadOptions) -> None:
        self.dataset = dataset
        self.options = options
        self.bands = seen_bands(dataset, options.bands)
        self.dtype: str = dataset.dtypes[self.bands[0] - 1]
        if "complex" in self.dtype:
            raise TileError(f"complex values ({self.dtype}) are no picture; save their amplitude instead")
        self.is_scene = dataset.width > options.tile_size_px or dataset.height > options.tile_size_px
        flags = [dataset.mask_flag_enums[band - 1] for band in self.bands]
        self.has_mask = any(MaskFlags.all_valid not in each for each in flags)
        is_palette = dataset.colorinterp[self.bands[0] - 1] == ColorInterp.palette and len(self.bands) == 1
        self.palette = _palette(dataset, self.bands[0]) if is_palette else None
        self._scene_range: tuple[float, float] | None = None

    def values(self, box: Box) -> tuple[NDArray[Any], Mask | None]:
        """(C, h, w) values as stored, 0 where not valid, and the (h, w) mask of valid pixels, or None when all are."""
        window = Window(*box)
        values = self.dataset.read(self.bands, window=window)
        valid = self.dataset.read_masks(self.bands, window=window).any(axis=0) if self.has_mask else None
        if np.issubdtype(values.dtype, np.floating):
            finite = np.isfinite(values).all(axis=0)
            valid = finite if valid is None else valid & finite
        if valid is None or valid.all():
            return values, None
        return np.where(valid, values, np.zeros((), values.dtype)), valid

    def planes(self, values: NDArray[Any], valid: Mask | None) -> tuple[Bytes, float | None, float | None]:
        """(h, w, C) 8-bit planes, and the values shown as 0 and 255 (None for 8-bit sources)."""
        if self.palette is not None:
            return self.palette[values[0]], None, None
        pixels = np.ascontiguousarray(values.transpose(1, 2, 0))
        if values.dtype == np.uint8:
            return pixels, None, None
        low, high = self.range(pixels if valid is None else pixels[valid])
        return to_8_bits(pixels, low, high), low, high

    def range(self, values: NDArray[Any]) -> tuple[float, float]:
        """[low, high] for a window with these valid values."""
        if self.options.value_range:
            return self.options.value_range[0], self.options.value_range[1]
        if not self.is_scene:
            return exposure_range(values.reshape(-1))
        if self._scene_range is None:
            self._scene_range = self._measured_range()
        return self._scene_range

    def remember_range(self, low: float | None, high: float | None) -> None:
        """Take the range that the scan recorded for this scene, which spares measuring it again."""
        if self.is_scene and low is not None and high is not None:
            self._scene_range = (low, high)

    def _measured_range(self) -> tuple[float, float]:
        """2nd and 98th percentile at the probes; at least an eighth of the exposure wide, so that noise stays noise."""
        seen = []
        for box in probes(self.dataset.width, self.dataset.height, PROBES):
            values, valid = self.values(box)
            seen.append((values if valid is None else values[:, valid]).reshape(-1))
        sample = np.concatenate(seen)
        if not sample.size:
            return 0.0, 1.0
        low, high = (float(value) for value in np.percentile(sample.astype(np.float64), (2, 98)))
        least, most = exposure_range(sample)
        return low, max(high, low + (most - least) / 8)


def _palette(dataset: Any, band: int) -> Bytes:
    """(256, 3) colours of a palette band."""
    table = np.zeros((256, 3), np.uint8)
    for index, colour in dataset.colormap(band).items():
        table[index] = colour[:3]
    return table
