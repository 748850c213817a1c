"""GeoTIFF scenes: window grid, band selection, scaling to 8 bits, masks and georeferencing.

**Windows** start at the upper left corner, `tile_size_px - overlap_px` apart, row by row. The last of a row or column
is cut at the scene's edge, so that tiles do not overlap; the area beyond the edge counts as invalid, so
that slivers fail `min_valid_fraction` like windows of nodata.

**Values.** 8-bit rasters are used unchanged. Others are mapped linearly from [low, high] to 0..255, with one range for
all bands to preserve colours: `value_range` if given; for a scene of several windows the 2nd and 98th percentile of
its valid pixels at 256 evenly spaced places; for a single tile its exposure (`exposure_range`), since stretching
each tile to its own extremes would amplify the noise of calm water to the entropy of a city.

**Masks** are those of the file as GDAL reads them (nodata value, alpha band, mask band), or the mask sidecar
(`sidecars`). A pixel is valid if any selected band is. NaN and infinity are nodata.

**Limits.** A small file can declare a huge raster, so bytes, windows and bands are checked before anything is decoded.
"""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as reproject
from rasterio.windows import Window

from rsprune_dagster.corpus import gdal, sidecars
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.pixels import Bytes, Mask
from rsprune_dagster.utils.errors import TileError

PROBES = 16
"""Places per edge at which a scene is sampled for its value range."""
LISTING_PROBES = 4
"""Places per edge at which the listing checks that a scene is readable."""

MOST_WINDOWS = 500_000
"""Limit per scene: 181,000 px per edge with windows of 256 px."""

MOST_SCENE_BYTES = 2**40
"""Limit of the bytes decoded for a scene whose blocks are decoded anew per window; takes 15 minutes."""

MOST_BANDS = 10_000
"""Imaging spectrometers have hundreds of bands, infrared sounders thousands."""

HEADROOM = 1.5
"""The range extends to this multiple of the 98th percentile; brighter pixels are clipped."""

CHUNK_VALUES = 2**22
"""Values scaled at a time, since the intermediate values are float64."""

_GRID_FILE = re.compile(r"grids=(?!@null[\s\"])|PROJ4_GRIDS|PARAMETERFILE|PROJ-based|\+(?:file|init)=")

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


class Place(NamedTuple):
    """Georeference of a window."""

    crs: str | None = None
    lon: float | None = None
    lat: float | None = None
    gsd_m: float | None = None


def grid(width_px: int, height_px: int, *, tile_size_px: int, overlap_px: int) -> list[Box]:
    """The windows of a scene, row by row. They cover the scene, and none is contained in its neighbours."""
    step = tile_size_px - overlap_px
    columns = range(0, max(width_px - overlap_px, 1), step)
    rows = range(0, max(height_px - overlap_px, 1), step)
    return [(x, y, min(tile_size_px, width_px - x), min(tile_size_px, height_px - y)) for y in rows for x in columns]


def probes(width_px: int, height_px: int, n_along: int, edge_px: int = 64) -> Iterator[Box]:
    """At most n_along x n_along evenly spaced windows of at most edge_px; they cover a small scene completely."""
    w, h = (min(edge_px, math.ceil(length / n_along)) for length in (width_px, height_px))
    for row in range(n_along):
        for column in range(n_along):
            yield (width_px - w) * column // (n_along - 1), (height_px - h) * row // (n_along - 1), w, h


class Scene(NamedTuple):
    """An open raster with the information from its sidecars."""

    dataset: Any
    crs: Any
    transform: Any
    mask: Any

    @classmethod
    def alone(cls, dataset: Any) -> Self:
        """A scene without sidecars."""
        return cls(dataset, dataset.crs, dataset.transform, None)


@contextmanager
def opened(uri: str) -> Iterator[Scene]:
    """Open a GeoTIFF and its sidecars.

    Raises:
        TileError: a sidecar cannot be used.
        rasterio.errors.RasterioIOError: the file is missing, or is no GeoTIFF.
    """
    with ExitStack() as stack:
        scene = Scene.alone(stack.enter_context(gdal.opened(uri)))
        place = sidecars.georeference(uri)
        if place.wkt is not None:
            scene = scene._replace(crs=_crs(place.wkt, uri))
        transform = place.transform or (place.world if scene.transform.is_identity else None)
        if transform is not None:
            scene = scene._replace(transform=Affine(*transform))
        if (path := sidecars.mask_of(uri)) is not None:
            scene = scene._replace(mask=stack.enter_context(_opened_mask(path, scene.dataset)))
        yield scene


def _crs(wkt: str, uri: str) -> Any:
    try:
        return CRS.from_wkt(wkt)
    except CRSError as error:
        name = sidecars.name_of(uri + sidecars.GEOREFERENCE)
        raise TileError(f"{name} holds no CRS as WKT in SRS; mend it: {gdal.gdal_message(error)}") from error


@contextmanager
def _opened_mask(path: str, dataset: Any) -> Iterator[Any]:
    name = sidecars.name_of(path)
    with ExitStack() as stack:
        try:
            mask = stack.enter_context(gdal.opened(path))
        except RasterioError as error:
            raise TileError(f"the mask {name} is no TIFF that can be read; mend or remove it") from error
        if mask.shape != dataset.shape or mask.count not in (1, dataset.count):
            raise TileError(
                f"the mask {name} has {mask.width} x {mask.height} px and {mask.count} bands, but the scene "
                f"{dataset.width} x {dataset.height} px and {dataset.count}; expected its size and one band or as many"
            )
        yield mask


def layout(uri: str, options: ReadOptions) -> list[Box] | None:
    """The windows of a scene; None for a single tile or a file that is no GeoTIFF; empty for an unusable scene.

    A scene is a raster with a CRS, or one larger than a tile.
    """
    try:
        with opened(uri) as scene:
            dataset, size_px = scene.dataset, options.tile_size_px
            if scene.crs is None and dataset.width <= size_px and dataset.height <= size_px:
                return None
            if damage(scene, options) is not None:
                return []
            return grid(dataset.width, dataset.height, tile_size_px=size_px, overlap_px=options.overlap_px)
    except TileError:
        return []
    except (RasterioError, OSError):
        return None


def damage(scene: Scene, options: ReadOptions) -> str | None:
    """Why a scene cannot be used, from reading 16 places, or all of a single tile; None if they are readable."""
    try:
        raster = Raster(scene, options)
        if raster.is_scene:
            _check_windows(raster)
            _check_work(raster)
        width, height = raster.dataset.width, raster.dataset.height
        for box in probes(width, height, LISTING_PROBES, 1) if raster.is_scene else [(0, 0, width, height)]:
            raster.stored(box)
    except TileError as error:
        return str(error)
    except Exception as error:  # GDAL raises many exception types; each means that the scene is unreadable
        return f"damaged raster: {gdal.gdal_message(error)}"
    return None


def _check_windows(raster: "Raster") -> None:
    """Reject a file that declares too many windows, as a file of a few kB can."""
    dataset, n_windows = raster.dataset, raster.n_windows
    if n_windows > MOST_WINDOWS:
        raise TileError(
            f"oversized: {dataset.width} x {dataset.height} px make about {n_windows:,} windows, more than "
            f"{MOST_WINDOWS:,} (MOST_WINDOWS in rasters.py); cut the scene into several files or raise tile_size_px"
        )


def _check_work(raster: "Raster") -> None:
    """Reject a scene that takes too long: blocks larger than GDAL's cache are decoded again for each window."""
    dataset = raster.dataset
    n_bytes = _block_bytes(dataset) * (1 if dataset.interleaving == Interleaving.pixel else len(raster.bands))
    if n_bytes > gdal.BLOCK_CACHE_MB * 2**20 and n_bytes * raster.n_windows > MOST_SCENE_BYTES:
        height, width = dataset.block_shapes[0]
        raise TileError(
            f"oversized: each of {raster.n_windows:,} windows would decode blocks of {width} x {height} px, "
            f"{n_bytes:,} bytes, together more than {MOST_SCENE_BYTES:,} (MOST_SCENE_BYTES in rasters.py); write the "
            "scene anew in blocks of 512 x 512 px (gdal_translate -co TILED=YES)"
        )


def _check_bytes(n_bytes: int, what: str, options: ReadOptions) -> None:
    if n_bytes > options.max_decoded_bytes:
        raise TileError(
            f"oversized: {what} would take {n_bytes:,} bytes, more than {options.max_decoded_bytes:,}, which are 8 for "
            f"each of {options.max_tile_pixels:,} pixels; refused before decoding"
        )


def _block_bytes(dataset: Any) -> int:
    """Bytes of a block, the smallest unit that GDAL decodes; with pixel interleaving it holds all bands."""
    height, width = dataset.block_shapes[0]
    n_bands = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    return int(height * width * n_bands * np.dtype(dataset.dtypes[0]).itemsize)


def select_bands(dataset: Any, wanted: tuple[int, ...]) -> list[int]:
    """The bands for red, green and blue, or for grey: the wanted, else those with colour tags, else the first 3 or 1.

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
    """[low, high] for one tile: 0 to HEADROOM times the 98th percentile, like a camera's exposure.

    For integers, high is 255 up to a 98th percentile of 255 and grows HEADROOM times as fast beyond, so that 8-bit
    values in 16-bit files are unchanged. low is 0, or HEADROOM times the 2nd percentile if that is negative (SAR in
    dB). Noise keeps its size relative to the brightness, and a small brightness change has a small effect.

    Args:
        values: (n,) valid pixel values, n >= 1.
    """
    p2, p98 = percentiles(values)
    least = 255.0 if np.issubdtype(values.dtype, np.integer) else 0.0
    high = least + HEADROOM * max(p98 - least, 0.0)
    low = HEADROOM * min(p2, 0.0)
    return (low, high) if low < high else (0.0, 1.0)


def percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """The 2nd and 98th percentile, float64. Memory: one copy of the values (floats as float64)."""
    copy = values.copy() if np.issubdtype(values.dtype, np.integer) else values.astype(np.float64)
    p2, p98 = np.percentile(copy, (2, 98), overwrite_input=True)
    return float(p2), float(p98)


def to_8_bits(values: NDArray[Any], low: float, high: float) -> Bytes:
    """Map [low, high] linearly to 0..255, rounded and clipped. Memory: the result and one chunk."""
    scaled = np.empty(values.shape, np.uint8)
    n_rows = max(CHUNK_VALUES // max(math.prod(values.shape[1:]), 1), 1)
    for start in range(0, len(values), n_rows):
        rows = slice(start, start + n_rows)
        levels = (values[rows].astype(np.float64) - low) * (255 / (high - low))
        scaled[rows] = np.rint(np.clip(levels, 0, 255))
    return scaled


def place_of(scene: Scene, box: Box) -> Place:
    """CRS, centre in WGS 84, and ground sample distance in metres (square root of the centre pixel's ground area).

    Measured on the ellipsoid, so it is correct for degrees, feet and Web Mercator alike. For a CRS that references a
    grid-shift file only the name is given, since PROJ would read any file named there.
    """
    if scene.crs is None:
        return Place()
    if _GRID_FILE.search(scene.crs.to_wkt()):
        return Place(scene.crs.to_string())
    x, y, w, h = box
    column, row = x + w / 2, y + h / 2
    to_map = scene.transform
    points = ((column, row), (column + 1, row), (column, row + 1))
    easts = [to_map.a * i + to_map.b * j + to_map.c for i, j in points]
    norths = [to_map.d * i + to_map.e * j + to_map.f for i, j in points]
    lons, lats = reproject(scene.crs, "EPSG:4326", easts, norths)
    crs = scene.crs.to_string()
    if not all(math.isfinite(value) for value in (*lons, *lats)):
        return Place(crs)
    return Place(crs, lons[0], lats[0], _ground_step_m(lons, lats))


def _ground_step_m(lons: list[float], lats: list[float]) -> float:
    """Square root of the area spanned by the vectors from the first point to the other two, metres (WGS 84)."""
    phi = math.radians(lats[0])
    per_lat = 111132.954 - 559.822 * math.cos(2 * phi) + 1.175 * math.cos(4 * phi)
    per_lon = 111412.84 * math.cos(phi) - 93.5 * math.cos(3 * phi) + 0.118 * math.cos(5 * phi)
    east = [((lon - lons[0] + 180) % 360 - 180) * per_lon for lon in lons]
    north = [(lat - lats[0]) * per_lat for lat in lats]
    return math.sqrt(abs(east[1] * north[2] - east[2] * north[1]))


class Raster:
    """An open raster with its settings: bands, dtype, masks, value range and palette.

    Raises:
        TileError: complex values; too many bands; a wanted band is missing; a block takes too much memory.
    """

    def __init__(self, scene: Scene, options: ReadOptions) -> None:
        self.scene = scene
        self.dataset = dataset = scene.dataset
        self.options = options
        if dataset.count > MOST_BANDS:
            raise TileError(f"has {dataset.count:,} bands, more than {MOST_BANDS:,} (MOST_BANDS in rasters.py)")
        for each, what in ((dataset, "a block"), (scene.mask, "a block of the mask")):
            if each is not None:
                _check_bytes(_block_bytes(each), what, options)
        self.bands = select_bands(dataset, options.bands)
        self.dtype: str = dataset.dtypes[self.bands[0] - 1]
        if "complex" in self.dtype:
            raise TileError(f"complex values ({self.dtype}) are no picture; save their amplitude instead")
        self.is_scene = dataset.width > options.tile_size_px or dataset.height > options.tile_size_px
        step = options.tile_size_px - options.overlap_px
        self.n_windows = math.ceil(dataset.width / step) * math.ceil(dataset.height / step)
        flags = [dataset.mask_flag_enums[band - 1] for band in self.bands]
        self.has_mask = any(MaskFlags.all_valid not in each for each in flags)
        is_palette = dataset.colorinterp[self.bands[0] - 1] == ColorInterp.palette and len(self.bands) == 1
        self.palette = _palette(dataset, self.bands[0]) if is_palette else None
        self._scene_range: tuple[float, float] | None = None

    def stored(self, box: Box) -> NDArray[Any]:
        """(C, h, w) values as stored.

        Raises:
            TileError: they would take too much memory.
        """
        n_bytes = len(self.bands) * box[2] * box[3] * np.dtype(self.dtype).itemsize
        _check_bytes(n_bytes, f"{box[2]} x {box[3]} px x {len(self.bands)} bands of {self.dtype}", self.options)
        values: NDArray[Any] = self.dataset.read(self.bands, window=Window(*box))
        return values

    def values(self, box: Box) -> tuple[NDArray[Any], Mask | None]:
        """(C, h, w) values as stored, 0 if invalid, and the (h, w) mask of valid pixels, or None if all are valid."""
        values = self.stored(box)
        valid = self._mask(Window(*box))
        if np.issubdtype(values.dtype, np.floating):
            finite = np.isfinite(values).all(axis=0)
            valid = finite if valid is None else valid & finite
        if valid is None or valid.all():
            return values, None
        values[:, ~valid] = 0
        return values, valid

    def _mask(self, window: Window) -> Mask | None:
        mask = self.scene.mask
        if mask is None and not self.has_mask:
            return None
        if mask is None:
            planes = self.dataset.read_masks(self.bands, window=window)
        else:
            planes = mask.read([1] if mask.count == 1 else self.bands, window=window)
        valid: Mask = (planes != 0).any(axis=0)
        return valid

    def planes(self, values: NDArray[Any], valid: Mask | None) -> tuple[Bytes, float | None, float | None]:
        """(h, w, C) 8-bit planes, and the values mapped to 0 and 255 (None for 8-bit sources)."""
        if self.palette is not None:
            return self.palette[values[0]], None, None
        pixels = values.transpose(1, 2, 0)
        if values.dtype == np.uint8:
            return np.ascontiguousarray(pixels), None, None
        low, high = self.range(values if valid is None else values[:, valid])
        return to_8_bits(pixels, low, high), low, high

    def range(self, values: NDArray[Any]) -> tuple[float, float]:
        """[low, high] for a window with the given valid values."""
        if self.options.value_range:
            return self.options.value_range[0], self.options.value_range[1]
        if not self.is_scene:
            return exposure_range(values.reshape(-1))
        if self._scene_range is None:
            self._scene_range = self._measured_range()
        return self._scene_range

    def remember_range(self, low: float | None, high: float | None) -> None:
        """Use the range that the scan recorded for this scene instead of measuring it again."""
        if self.is_scene and low is not None and high is not None:
            self._scene_range = (low, high)

    def _measured_range(self) -> tuple[float, float]:
        """2nd and 98th percentile at the probes, at least 1/8 of the exposure range wide, to limit noise
        amplification."""
        seen = []
        for box in probes(self.dataset.width, self.dataset.height, PROBES):
            values, valid = self.values(box)
            seen.append((values if valid is None else values[:, valid]).reshape(-1))
        sample = np.concatenate(seen)
        if not sample.size:
            return 0.0, 1.0
        low, high = percentiles(sample)
        least, most = exposure_range(sample)
        return low, max(high, low + (most - least) / 8)


def _palette(dataset: Any, band: int) -> Bytes:
    """(256, 3) colour table of a palette band."""
    table = np.zeros((256, 3), np.uint8)
    for index, colour in dataset.colormap(band).items():
        table[index] = colour[:3]
    return table
