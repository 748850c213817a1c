"""Decode image bytes to pixels, and give the reason if an image is rejected.

JPEG by simplejpeg (strict: a truncated file is rejected, not filled with grey), PNG, WebP and BMP by Pillow, TIFF and
16-bit PNG by GDAL. The EXIF orientation is ignored: nadir tiles have no canonical orientation.
"""

import hashlib
import io
import struct
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.pixels import Bytes, Mask, Pixels, shown
from rsprune_dagster.utils.errors import TileError

LEAST_EDGE_PX = 8
MOST_JPEG_SCANS = 50
"""Limit for a progressive JPEG. Each scan costs a pass over all pixels; encoders write about 10."""
LFS_POINTER = "a git-LFS pointer"
LFS_REASON = f"{LFS_POINTER}, not the data: fetch it with `git lfs pull`"
_SUFFIX_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WebP",
    ".bmp": "BMP",
}
_JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ""})
_SCAN, _END, _FIRST_SEGMENT, _RESTARTS = b"\xff\xda", 0xD9, 0xC0, range(0xD0, 0xD8)
_JPEG_BANDS = {"Gray": 1, "CMYK": 4, "YCCK": 4}


def read_grey(data: bytes, suffix: str, options: ReadOptions) -> Pixels:
    """Grey levels and metadata of an encoded image; for JPEG the stored luma, without colour conversion.

    Args:
        suffix: suffix of the file name, lower case with its dot; "" if unknown.

    Raises:
        TileError: the image cannot be used; the message says why.
    """
    if data[:2] == b"\xff\xd8" and suffix in _JPEG_SUFFIXES:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if width < LEAST_EDGE_PX or height < LEAST_EDGE_PX or width * height > options.max_tile_pixels:
                raise TileError(_size_problem(width, height, options))
            _check_scans(data)
            grey = simplejpeg.decode_jpeg(data, "GRAY").reshape(height, width)
        except ValueError as error:
            raise TileError(_jpeg_problem(error)) from error
        return Pixels(md5(data), grey, None, None, width, height, _JPEG_BANDS.get(colours, 3))
    return read_colour(data, suffix, options)


def read_colour(data: bytes, suffix: str, options: ReadOptions) -> Pixels:
    """Colours, grey levels and metadata of an encoded image.

    Raises:
        TileError: the image cannot be used; the message says why.
    """
    kind = sniff(data)
    if kind not in _DECODERS:
        raise TileError(_not_an_image(data, kind, suffix))
    expected = _SUFFIX_FORMATS.get(suffix)
    if expected is not None and expected != kind:
        raise TileError(f"wrongly named: {suffix} on a {kind} image; rename it")
    return _DECODERS[kind](data, options)


def md5(data: bytes) -> str:
    """The content hash of a tile's encoded bytes. Not for security."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def sniff(data: bytes) -> str:
    """The format by magic bytes: JPEG, PNG, TIFF, WebP, BMP, or a description of another type."""
    if data[:12].startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    for start, kind in _STARTS:
        if data.startswith(start):
            return kind
    text = data[:512].lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if text.startswith(b"<"):
        return "XML text"
    return "text" if text and all(byte in _TEXT_BYTES for byte in data[:512]) else "unknown"


_STARTS = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "a GIF image"),
    (b"\0\0\0\x0cjP", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"%PDF", "a PDF"),
    (b"\0\0\0\x01Bud1", "a folder note of macOS (.DS_Store)"),
    (b"version https://git-lfs", LFS_POINTER),
)
_TEXT_BYTES = frozenset(range(32, 256)) | {9, 10, 13}


def _not_an_image(data: bytes, kind: str, suffix: str) -> str:
    if not data:
        return "zero bytes: the file is empty"
    if kind == LFS_POINTER:
        return LFS_REASON
    if not any(data):
        return f"damaged: all {len(data):,} bytes are zero"
    if kind == "unknown":
        return f"no image: the bytes are of no known format{f', though the name says {suffix}' if suffix else ''}"
    return f"{f'wrongly named: {suffix} on' if suffix in _SUFFIX_FORMATS else 'unsupported:'} {kind}"


def _check_size(width: int, height: int, options: ReadOptions) -> None:
    if min(width, height) < LEAST_EDGE_PX or width * height > options.max_tile_pixels:
        raise TileError(_size_problem(width, height, options))


def _size_problem(width: int, height: int, options: ReadOptions) -> str:
    if min(width, height) < LEAST_EDGE_PX:
        return f"too small: {width} x {height} px, at least {LEAST_EDGE_PX} px an edge are needed"
    return f"oversized: {width} x {height} px are more than {options.max_tile_pixels:,} pixels; refused before decoding"


def _check_scans(data: bytes) -> None:
    if data.count(_SCAN) <= MOST_JPEG_SCANS:  # fast path for most tiles
        return
    n_scans = jpeg_scans(data)
    if n_scans > MOST_JPEG_SCANS:
        raise TileError(
            f"oversized: {n_scans:,} JPEG scans are more than {MOST_JPEG_SCANS} (MOST_JPEG_SCANS in formats.py); "
            "refused before decoding"
        )


def jpeg_scans(data: bytes) -> int:
    """The number of scans of a JPEG, ignoring markers in metadata (such as thumbnails) and after the end marker."""
    n_scans, at = 0, 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        marker = data[at + 1]
        if marker == _END:
            break
        n_scans += marker == _SCAN[1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker < _FIRST_SEGMENT or marker in _RESTARTS:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return n_scans


def _jpeg_problem(error: ValueError) -> str:
    said = " ".join(str(error).split())
    return f"truncated JPEG: {said}" if "Premature end" in said else f"damaged JPEG: {said}"


def _jpeg(data: bytes, options: ReadOptions) -> Pixels:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, options)
        _check_scans(data)
        n_planes = 1 if colours == "Gray" else 3
        planes = simplejpeg.decode_jpeg(data, "GRAY" if n_planes == 1 else "RGB")
        grey = planes[:, :, 0] if n_planes == 1 else simplejpeg.decode_jpeg(data, "GRAY")[:, :, 0]
    except ValueError as error:
        raise TileError(_jpeg_problem(error)) from error
    rgb = planes if n_planes == 3 else None
    return Pixels(md5(data), grey, None, rgb, width, height, _JPEG_BANDS.get(colours, 3))


def _png(data: bytes, options: ReadOptions) -> Pixels:
    if len(data) < 33:
        raise TileError(f"truncated PNG: only {len(data)} bytes")
    width, height, depth = struct.unpack(">IIB", data[16:25])
    _check_size(width, height, options)
    return _gdal(data, options) if depth == 16 else _pillow(data, options)


def _pillow(data: bytes, options: ReadOptions) -> Pixels:
    kind = sniff(data)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_size(*image.size, options)
            n_bands = len(image.getbands())
            planes, valid = _planes(image)
    except TileError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TileError(f"oversized: {error}") from error
    except Exception as error:  # Pillow's decoders raise many exception types
        raise TileError(f"damaged {kind}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if valid is not None and not valid.any():
        raise TileError("not one valid pixel: all are transparent")
    return shown(md5(data), planes, valid, n_bands=n_bands)


def _planes(image: Image.Image) -> tuple[Bytes, Mask | None]:
    """(H, W, 1 or 3) planes, and with an alpha channel the mask of pixels that are not fully transparent."""
    transparent = "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBA", "RGBa")
    is_grey = image.mode in ("1", "L", "LA", "La")
    array = np.asarray(image.convert(("LA" if is_grey else "RGBA") if transparent else ("L" if is_grey else "RGB")))
    if transparent:
        return np.ascontiguousarray(array[:, :, :-1]), array[:, :, -1] > 0
    return (array[:, :, None] if is_grey else array), None


def _gdal(data: bytes, options: ReadOptions) -> Pixels:
    from rasterio.io import MemoryFile

    from rsprune_dagster.corpus import gdal
    from rsprune_dagster.corpus.rasters import Raster, Scene, place_of

    kind = sniff(data)
    try:
        with MemoryFile(data) as file, gdal.opened(file.name, _DRIVERS[kind]) as dataset:
            _check_size(dataset.width, dataset.height, options)
            raster = Raster(Scene.alone(dataset), options)
            raster.is_scene = False
            box = (0, 0, dataset.width, dataset.height)
            values, valid = raster.values(box)
            if valid is not None and not valid.any():
                raise TileError("not one valid pixel: all are nodata")
            planes, low, high = raster.planes(values, valid)
            facts = {
                **place_of(raster.scene, box)._asdict(),
                "scale_low": low,
                "scale_high": high,
                "dtype": raster.dtype,
            }
            return shown(md5(data), planes, valid, n_bands=dataset.count, **facts)
    except TileError:
        raise
    except Exception as error:  # GDAL raises many exception types
        raise TileError(f"damaged {kind}: {gdal.gdal_message(error)}") from error


_DRIVERS = {"PNG": "PNG", "TIFF": "GTiff"}
_DECODERS: dict[str, Callable[[bytes, ReadOptions], Pixels]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WebP": _pillow,
    "BMP": _pillow,
    "TIFF": _gdal,
}
