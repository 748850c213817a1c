"""Read the pixels or bytes of a tile, given its row, in place.

A reader keeps the last container open (tar, row group, scene), since the tiles of a shard come from one container.
"""

import errno
import hashlib
import io
import os
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from rsprune_dagster.corpus import formats, parquets, storage
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.pixels import Bytes, Pixels, shown
from rsprune_dagster.utils.errors import RunError, TileError, UserError

__all__ = ["Pixels", "TileReader"]

Row = Mapping[str, Any]

MOST_TILE_BYTES = 2**30
"""Tiles with more encoded bytes are rejected unread; four 16-bit bands of the largest tile
(`ReadOptions.max_tile_pixels`) are half of it."""
_VANISHED = "vanished: the file is gone, or the link to it is broken"
_NOT_REGULAR = "not a regular file: a pipe, socket or device"
_TAR_NO_BYTES = "no bytes of its own in the tar: a link to what is not there, a symbolic link, a pipe or a device"
_TAR_DAMAGED = "the tar is damaged or cut off behind its last readable member; copy it again"
_PARQUET_DAMAGED = "the Parquet file is damaged: its footer or its names cannot be read; copy it again"
_TAR_COMPRESSED = "a compressed tar cannot be read in place; decompress it first (gunzip, unxz, bunzip2, unzstd)"


class TileReader:
    """Reads the tiles of a shard. A context manager; not thread-safe.

    Each method takes a LOCATION row as a dict; a manifest row saves work, since it holds the scale of a scene. Each
    raises TileError with the reason if a tile cannot be used, and RunError if the storage fails. If the row has a
    `content_md5`, other content raises TileError.
    """

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._base = options.base
        self._uri = ""
        self._fd, self._n_bytes = -1, 0
        self._handle: Any = None
        self._raster: Any = None
        self._dataset = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close open files."""
        if self._fd >= 0:
            os.close(self._fd)
        if self._handle is not None:
            self._handle.close()
        self._dataset.close()
        self._uri, self._fd, self._handle, self._raster = "", -1, None, None

    def read_grey(self, row: Row) -> Pixels:
        """Grey levels and facts, for the scan; JPEGs come without colours."""
        if row["kind"] == "window":
            return self._window(row)
        return formats.read_grey(self._encoded(row), _suffix(row), self._options)

    def read_rgb(self, row: Row) -> Bytes:
        """(H, W, 3) colours for the encoder; a single band is repeated, invalid pixels get the mean of the valid
        ones."""
        if row["kind"] == "window":
            pixels = self._window(row)
        else:
            pixels = formats.read_colour(self._encoded(row), _suffix(row), self._options)
        _check_content(row, pixels)
        return np.repeat(pixels.grey[:, :, None], 3, axis=2) if pixels.rgb is None else pixels.rgb

    def try_rgb(self, row: Row) -> Bytes | None:
        """The colours; None where the tile cannot be used any more."""
        try:
            return self.read_rgb(row)
        except TileError:
            return None

    def read_bytes(self, row: Row) -> bytes:
        """The encoded image as stored; a window is encoded as PNG, with the encoder's colours."""
        if row["kind"] != "window":
            return self._encoded(row)
        encoded = io.BytesIO()
        Image.fromarray(self.read_rgb(row)).save(encoded, "PNG")
        return encoded.getvalue()

    def read_md5(self, row: Row) -> str:
        """The `content_md5` as computed by a scan, without decoding if possible."""
        return self._window(row).content_md5 if row["kind"] == "window" else formats.md5(self._encoded(row))

    def _encoded(self, row: Row) -> bytes:
        kind, uri = row["kind"], storage.located(row["uri"], self._base)
        try:
            if kind == "tar":
                return self._tar_bytes(uri, row["offset"], row["length"])
            return self._parquet_bytes(uri, row["offset"]) if kind == "parquet" else _file_bytes(uri, row.get("length"))
        except (TileError, UserError):
            raise
        except Exception as error:
            if (told := _storage_error(row["uri"], error)) is None:
                raise
            raise told from error

    def _tar_bytes(self, uri: str, offset: int | None, length: int | None) -> bytes:
        if offset is None or length is None:
            raise TileError(_tar_problem(uri, offset, length))
        if self._uri != uri:
            self._open_tar(uri)
        _check_size(length)
        held = min(max(self._n_bytes - offset, 0), length)
        if self._fd >= 0:
            data = _bytes_at(self._fd, offset, held)
        else:
            self._handle.seek(offset)
            data = self._handle.read(held)
        if len(data) < length:
            raise TileError(f"truncated: only {len(data):,} of {length:,} bytes are in the tar")
        return data

    def _open_tar(self, uri: str) -> None:
        self.close()
        if storage.is_remote(uri):
            self._handle = storage.open_binary(uri)
            self._n_bytes = self._handle.seek(0, io.SEEK_END)
        else:
            self._fd, self._n_bytes = storage.open_regular(uri)
        self._uri = uri

    def _parquet_bytes(self, uri: str, row: int | None) -> bytes:
        try:
            if row is None:
                raise TileError(formats.LFS_REASON if _is_lfs_pointer(uri) else _PARQUET_DAMAGED)
            if self._uri != uri:
                self.close()
                self._handle, self._uri = parquets.ImageRows(uri, self._options.image_columns), uri
            data: bytes | None = self._handle.read(row)
        except parquets.DamagedError as error:
            raise TileError(f"damaged Parquet: {error}") from error
        if data is None:
            raise TileError("zero bytes: the row holds no image")
        _check_size(len(data))
        return data

    def _window(self, row: Row) -> Pixels:
        from rsprune_dagster.corpus.gdal import gdal_message
        from rsprune_dagster.corpus.rasters import damage

        try:
            if self._uri != (uri := storage.located(row["uri"], self._base)):
                self._open_scene(uri)
            if row["x"] is None:
                raise TileError(
                    damage(self._raster.scene, self._options) or "the scene changed while it was read; run again"
                )
            self._raster.remember_range(row.get("scale_low"), row.get("scale_high"))
            return _window_pixels(self._raster, (row["x"], row["y"], row["w"], row["h"]), self._options)
        except (TileError, RunError):
            raise
        except Exception as error:  # GDAL's errors have many classes
            raise TileError(f"damaged raster: {gdal_message(error)}") from error

    def _open_scene(self, uri: str) -> None:
        from rsprune_dagster.corpus.rasters import Raster, opened

        self.close()
        if not storage.is_remote(uri) and (stamp := storage.size_and_etag(uri)[1]) in _NO_FILE:
            raise TileError(_NO_FILE[stamp])
        self._raster, self._uri = Raster(self._dataset.enter_context(opened(uri)), self._options), uri


def _check_content(row: Row, pixels: Pixels) -> None:
    """Raise TileError if the pixels do not match the row's content hash."""
    scanned = row.get("content_md5")
    if scanned is not None and scanned != pixels.content_md5:
        raise TileError(f"changed: its content hash was {scanned}, now it is {pixels.content_md5}")


def _window_pixels(raster: Any, box: tuple[int, int, int, int], options: ReadOptions) -> Pixels:
    from rsprune_dagster.corpus.rasters import place_of

    values, valid = raster.values(box)
    dataset = raster.dataset
    full = min(options.tile_size_px, dataset.width) * min(options.tile_size_px, dataset.height)
    share = (box[2] * box[3] if valid is None else int(valid.sum())) / full
    if share < options.min_valid_fraction or share == 0:
        raise TileError(f"only {share:.0%} valid pixels, {options.min_valid_fraction:.0%} asked".replace("%", " %"))
    if min(box[2:]) < formats.LEAST_EDGE_PX:
        raise TileError(f"too small: {box[2]} x {box[3]} px, at least {formats.LEAST_EDGE_PX} px an edge are needed")
    planes, low, high = raster.planes(values, valid)
    facts = {**place_of(raster.scene, box)._asdict(), "scale_low": low, "scale_high": high, "dtype": raster.dtype}
    return shown(_pixels_md5(values, valid), planes, valid, n_bands=dataset.count, **facts)


def _pixels_md5(values: Any, valid: Any) -> str:
    """The content hash of a window: its stored values, shape, type and validity mask."""
    digest = hashlib.md5(f"{values.dtype.str}{values.shape}".encode(), usedforsecurity=False)
    digest.update(np.ascontiguousarray(values).data)
    if valid is not None:
        digest.update(np.packbits(valid).data)
    return digest.hexdigest()


def _suffix(row: Row) -> str:
    """The suffix of the tile's name; empty for a Parquet row."""
    if row["kind"] == "parquet":
        return ""
    tile_id = row["tile_id"]
    if tile_id[-4:] == ".jpg":  # fast path for most tiles
        return ".jpg"
    _, dot, end = tile_id.rpartition(".")
    return f"{dot}{end}".lower().partition("~")[0]


def _file_bytes(uri: str, length: int | None) -> bytes:
    """The whole file; `length` is the size of a remote file according to the listing."""
    if storage.is_remote(uri):
        _check_size(length or 0)
        fs, path = storage.filesystem(uri)
        data: bytes = fs.cat_file(path)
        return data
    fd, n_bytes = storage.open_regular(uri)  # four system calls; a file object makes seven
    try:
        _check_size(n_bytes)
        return _bytes_at(fd, 0, n_bytes)
    finally:
        os.close(fd)


def _bytes_at(fd: int, offset: int, length: int) -> bytes:
    """At most `length` bytes. A network file system returns them in many pieces, which are joined once."""
    pieces = [os.pread(fd, length, offset)]
    done = len(pieces[0])
    while done < length and (more := os.pread(fd, length - done, offset + done)):
        pieces.append(more)
        done += len(more)
    return b"".join(pieces)


def _check_size(n_bytes: int) -> None:
    if n_bytes > MOST_TILE_BYTES:
        raise TileError(f"oversized: {n_bytes:,} bytes, {MOST_TILE_BYTES:,} at most; refused before reading")


def _storage_error(uri: str, error: Exception) -> TileError | RunError | None:
    """Translate a storage error: TileError for one unusable tile, RunError to stop the run, None for a bug."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or number in storage.GONE:
        return TileError(_VANISHED)
    if isinstance(error, storage.NotRegularError):
        return TileError(_NOT_REGULAR)
    if isinstance(error, PermissionError):
        return TileError("not readable: permission denied")
    if number == errno.EIO:
        return TileError("not readable: the disk reports an input/output error")
    if isinstance(error, OSError) or storage.is_remote(uri):  # filesystems behind fsspec have errors of their own
        said = storage.escaped_name(" ".join(str(error).split()) or type(error).__name__)
        return RunError(f"cannot read {uri}: {said}; run again: finished work is kept")
    return None


_NO_FILE = {storage.MISSING: _VANISHED, storage.SPECIAL: _NOT_REGULAR}


def _tar_problem(uri: str, offset: int | None, length: int | None) -> str:
    from rsprune_dagster.corpus.sources import COMPRESSED_TARS

    if offset is not None:
        return _TAR_NO_BYTES
    if uri.lower().endswith(COMPRESSED_TARS):
        return _TAR_COMPRESSED
    if length is not None:
        return "a sparse member, whose bytes do not lie together in the tar"
    return formats.LFS_REASON if _is_lfs_pointer(uri) else _TAR_DAMAGED


def _is_lfs_pointer(uri: str) -> bool:
    with storage.open_binary(uri) as file:
        return formats.sniff(file.read(512)) == formats.LFS_POINTER
