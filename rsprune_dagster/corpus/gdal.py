"""GDAL, restricted to the one file that it is given.

GDAL chooses a driver by a file's content, and many drivers read other files or URLs that the content names; any driver
opens sidecars (`.aux.xml`, `.ovr`, `.msk`). So each file is opened with the driver of its format only, without access
to neighbouring files or the network. `sidecars.py` reads the supported sidecars.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import rasterio
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning

from rsprune_dagster.corpus import storage

TIFF_SUFFIXES = (".tif", ".tiff")
BLOCK_CACHE_MB = 64
"""GDAL's default is 5 % of memory."""

_ALONE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # hide the other files of the folder
    "GDAL_PAM_ENABLED": False,  # no .aux.xml
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".no-url-ends-like-this",
    "GDAL_CACHEMAX": BLOCK_CACHE_MB,
}


@contextmanager
def opened(source: str, driver: str = "GTiff") -> Iterator[Any]:
    """A rasterio dataset of a uri, or of a file in memory.

    Args:
        driver: the one GDAL driver that may open it.

    Raises:
        rasterio.errors.RasterioIOError: the file is missing, or is not of the driver's format.
    """
    # process-wide: tiles are read in threads, where restoring warning filters is not safe
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(**_ALONE))
        as_text = (
            not storage.is_remote(source) and storage.escaped_name(source) == source
        )  # rasterio accepts no other names
        file = source if as_text else stack.enter_context(storage.open_binary(source))
        yield stack.enter_context(rasterio.open(file, driver=driver))


def scaled_points(points: Sequence[GroundControlPoint], down: float, right: float) -> list[GroundControlPoint]:
    """Ground control points of a raster that has `down` times the lines and `right` times the columns."""
    return [GroundControlPoint(p.row * down, p.col * right, p.x, p.y, p.z, p.id, p.info) for p in points]


def gdal_message(error: BaseException) -> str:
    """GDAL's message on one line, without paths and names of in-memory files, so that reasons are reproducible."""
    words = " ".join(str(error.__cause__ or error).split())
    return re.sub(r"'?((?<![\w.])/[^\s':,]+|[0-9a-f]{8}-[0-9a-f-]{27}(\.\w+)?)'?", "the file", words)
