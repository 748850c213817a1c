"""GeoTIFF scenes: the grid of windows, the bands seen, how their values become 8 bits, masks, and where on Earth it is.

**Windows** start at the upper left corner, `tile_size_px - overlap_px` apart, row by row. The last of a row or column
is cut at the scene's edge, so that no tile is partly a copy of another; what would lie beyond counts as not valid, so
slivers fail `min_valid_fraction` like any window of nodata.

**Values.** 8-bit rasters are taken as they are. Others are mapped linearly from [low, high] to 0..255, all bands
alike, so that colours stay true: `value_range` where given; for a scene of several windows the 2nd and 98th
percentile of its valid pixels, at 256 evenly spread places; for a single tile its exposure (`exposure_range`), since
stretching each tile to its own extremes would blow the noise of calm water up to the entropy of a city.

**Masks** are those in the file as GDAL reads them (nodata value, alpha band, mask band), or the mask beside it
(`sidecars`); a pixel is valid where any seen band is. NaN and infinity are nodata.

**Limits.** A small file can claim to be large. What would have to be decoded at once, the windows and the bands are
counted before anything is decoded.
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
from rsprune_dagster.errors import TileError

PROBES = 16
"""Places along an edge at which a scene is looked at for its scale."""
LISTING_PROBES = 4
"""Places along an edge at which listing checks that a scene can be read."""

MOST_WINDOWS = 500_000
"""Of one scene: 181,000 px along an edge, in windows of 256 px."""

MOST_SCENE_BYTES = 2**40
"""Decoded for all windows of a scene whose blocks are so large that each window decodes them: a quarter of an hour."""

MOST_BANDS = 10_000
"""Spectrometers have hundreds of bands, infrared sounders thousands."""

HEADROOM = 1.5
"""What is brighter than the 98th percentile is told apart up to so many times as bright."""

CHUNK_VALUES = 2**22
"""Values scaled at a time: in between they are float64."""

_GRID_FILE = re.compile(r"grids=(?!@null[\s\"])|PROJ4_GRIDS|PARAMETERFILE|PROJ-based|\+(?:file|init)=")

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


class Scene(NamedTuple):
    """An open raster with what its sidecars say of it."""

    dataset: Any
    crs: Any
    transform: Any
    mask: Any

    @classmethod
    def alone(cls, dataset: Any) -> Self:
        """A raster without sidecars."""
        return cls(dataset, dataset.crs, dataset.transform, None)


@contextmanager
def opened(uri: str) -> Iterator[Scene]:
    """A GeoTIFF and its sidecars.

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
        raise TileError(f"{name} holds no CRS as WKT in SRS; mend it: {gdal.said_by_gdal(error)}") from error


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
    """The windows of a scene; None for a plain tile or what is no GeoTIFF; an empty list for a scene of no use.

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
    """Why a scene cannot be used, from a look at 16 places, or at all of a single tile; None when they can be read."""
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
    except Exception as error:  # GDAL's errors have many classes; each means that the scene is not to be read
        return f"damaged raster: {gdal.said_by_gdal(error)}"
    return None


def _check_windows(raster: "Raster") -> None:
    """A file of some kB can claim a million windows."""
    dataset, n_windows = raster.dataset, raster.n_windows
    if n_windows > MOST_WINDOWS:
        raise TileError(
            f"oversized: {dataset.width} x {dataset.height} px make about {n_windows:,} windows, more than "
            f"{MOST_WINDOWS:,} (MOST_WINDOWS in rasters.py); cut the scene into several files or raise tile_size_px"
        )


def _check_work(raster: "Raster") -> None:
    """Blocks that do not fit into GDAL's cache are decoded for each window anew."""
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
            "each of max_tile_pixels; refused before decoding"
        )


def _block_bytes(dataset: Any) -> int:
    """Bytes of a block, the least that GDAL decodes; with pixel interleaving all bands lie in it."""
    height, width = dataset.block_shapes[0]
    n_bands = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    return int(height * width * n_bands * np.dtype(dataset.dtypes[0]).itemsize)


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
    """[low, high] for one tile: from 0 to HEADROOM times the 98th percentile, like a camera's exposure.

    Integers have at least 8 bits: high is 255 up to a 98th percentile of 255 and grows HEADROOM times as fast beyond,
    so that 8-bit values in 16-bit files stay as they are. low is 0, or HEADROOM times the 2nd percentile where that is
    negative (SAR in dB). Noise keeps its size relative to the brightness, and a little more light changes little.

    Args:
        values: (n,) valid pixel values, n >= 1.
    """
    p2, p98 = percentiles(values)
    least = 255.0 if np.issubdtype(values.dtype, np.integer) else 0.0
    high = least + HEADROOM * max(p98 - least, 0.0)
    low = HEADROOM * min(p2, 0.0)
    return (low, high) if low < high else (0.0, 1.0)


def percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """The 2nd and the 98th, in float64. Memory: one copy, of integers as they are, of others as float64."""
    copy = values.copy() if np.issubdtype(values.dtype, np.integer) else values.astype(np.float64)
    p2, p98 = np.percentile(copy, (2, 98), overwrite_input=True)
    return float(p2), float(p98)


def to_8_bits(values: NDArray[Any], low: float, high: float) -> Bytes:
    """Map [low, high] linearly to 0..255, rounded; what lies outside is clipped. Memory: the result and a chunk."""
    scaled = np.empty(values.shape, np.uint8)
    n_rows = max(CHUNK_VALUES // max(math.prod(values.shape[1:]), 1), 1)
    for start in range(0, len(values), n_rows):
        rows = slice(start, start + n_rows)
        levels = (values[rows].astype(np.float64) - low) * (255 / (high - low))
        scaled[rows] = np.rint(np.clip(levels, 0, 255))
    return scaled


def place_of(scene: Scene, box: Box) -> Place:
    """CRS, centre in WGS 84, and ground sample distance: the root of the ground area of the centre's pixel, metres.

    Measured on the ellipsoid, so it holds for degrees, feet and the stretched metres of web Mercator alike. A CRS can
    name a file with a grid of shifts, and PROJ would read whatever is there; with such a CRS only its name is given.
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
        self.bands = seen_bands(dataset, options.bands)
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
        """(C, h, w) values as stored, 0 where not valid, and the (h, w) mask of valid pixels, or None when all are."""
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
        """(h, w, C) 8-bit planes, and the values shown as 0 and 255 (None for 8-bit sources)."""
        if self.palette is not None:
            return self.palette[values[0]], None, None
        pixels = values.transpose(1, 2, 0)
        if values.dtype == np.uint8:
            return np.ascontiguousarray(pixels), None, None
        low, high = self.range(values if valid is None else values[:, valid])
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
        low, high = percentiles(sample)
        least, most = exposure_range(sample)
        return low, max(high, low + (most - least) / 8)


def _palette(dataset: Any, band: int) -> Bytes:
    """(256, 3) colours of a palette band."""
    table = np.zeros((256, 3), np.uint8)
    for index, colour in dataset.colormap(band).items():
        table[index] = colour[:3]
    return table
