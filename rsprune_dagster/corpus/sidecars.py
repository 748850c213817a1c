"""Sidecar files of a GeoTIFF scene on a local disk. Other neighbouring files are ignored.

| file | what it gives |
|---|---|
| `scene.tif.msk` | the mask, a TIFF of the scene's size: 0 is invalid; replaces nodata value and alpha |
| `scene.tif.aux.xml` | CRS (`SRS`, as WKT) and `GeoTransform`, which override those in the scene |
| `scene.tfw`, `.tifw`, `.wld` | the geotransform of a scene that has none |
"""

import html
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from rsprune_dagster.corpus import storage
from rsprune_dagster.utils.errors import TileError

MASK = ".msk"
GEOREFERENCE = ".aux.xml"
ENDINGS = (MASK, GEOREFERENCE, ".tfw", ".tifw", ".tiffw", ".wld")

MOST_SIDECAR_BYTES = 2**24
"""The XML also holds GDAL's statistics and attribute tables, which can take some megabytes."""

Transform = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: x = a column + b row + c, y = d column + e row + f."""


class Georeference(NamedTuple):
    """A scene's georeference from its sidecars; None where they have none."""

    wkt: str | None = None
    transform: Transform | None = None
    world: Transform | None = None
    """The transform of the world file."""


def is_sidecar(name: str) -> bool:
    """Whether the name has the ending of a sidecar."""
    return name.lower().endswith(ENDINGS)


def stamp(uri: str, own: str) -> str:
    """The stamp of a raster with its sidecars: it changes when one of them is added, removed or rewritten.

    Args:
        own: the stamp of the raster alone.
    """
    return "+".join([own, *(f"{name_of(path)}:{storage.size_and_etag(path)[1]}" for path in _beside(uri))])


def name_of(path: str) -> str:
    """The escaped name of a file, as in tables."""
    return storage.escaped_name(os.path.basename(path))


def mask_of(uri: str) -> str | None:
    """The path of a scene's mask; None if it has none."""
    return next((path for path in _beside(uri) if path.endswith(MASK)), None)


def georeference(uri: str) -> Georeference:
    """Read the georeference from a scene's sidecars.

    Raises:
        TileError: a sidecar is too large, cannot be read, or its numbers are invalid.
    """
    wkt, transform, world = None, None, None
    for path in _beside(uri):
        if path.endswith(GEOREFERENCE):
            text = _text(path)
            wkt = html.unescape(_element("SRS", text)).strip() or None
            if numbers := _element("GeoTransform", text):
                c, a, b, f, d, e = _six_numbers(numbers.split(","), path)
                transform = (a, b, c, d, e, f)
        elif not path.endswith(MASK) and world is None:
            a, d, b, e, x, y = _six_numbers(_text(path).split()[:6], path)  # x, y: the centre of the first pixel
            world = (a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)
    return Georeference(wkt, transform, world)


def _beside(uri: str) -> Iterator[str]:
    """The existing sidecars."""
    if not storage.is_remote(uri):
        yield from filter(os.path.isfile, _candidates(uri))


def _candidates(uri: str) -> list[str]:
    """The possible paths of sidecars, by priority."""
    stem, suffix = os.path.splitext(uri)
    endings = (f"{suffix[1:2]}{suffix[-1:]}w", f"{suffix[1:]}w", "wld")
    worlds = [f"{stem}.{each}" for ending in endings for each in (ending.lower(), ending.upper())]
    return [uri + MASK, uri + GEOREFERENCE, *worlds]


def _text(path: str) -> str:
    try:
        size = os.path.getsize(path)
        if size > MOST_SIDECAR_BYTES:
            raise TileError(f"{name_of(path)} has {size:,} bytes, more than {MOST_SIDECAR_BYTES:,}; remove it")
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise TileError(f"{name_of(path)} cannot be read: {error.strerror}; mend or remove it") from error


def _element(name: str, xml: str) -> str:
    found = re.search(rf"<{name}\b[^<>]*>([^<]*)</{name}>", xml)
    return found[1] if found else ""


def _six_numbers(words: list[str], path: str) -> Transform:
    try:
        a, b, c, d, e, f = (float(word) for word in words)
    except ValueError:
        raise TileError(f"{name_of(path)} does not hold the six numbers of a geotransform; mend it") from None
    return a, b, c, d, e, f
