"""Pictures, and masks: the class of each pixel, read from files and checked against the palette.

A mask is a picture in the colours of the palette, or a TIFF of one band of integers without a colour table, whose
values are the numbers of the classes; what its nodata or mask leaves out is of no class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError

from rsprune_dagster.corpus import gdal
from rsprune_dagster.utils.errors import UsageError

NO_CLASS: Final = "unlabeled"
"""The name in the palette for pixels of no class."""
UNLABELED: Final = 255
"""The number of pixels of no class: nothing is learned from them, and they do not count in a measure."""
NOT_VALID: Final = -(2**62)
"""Stands for pixels of a label raster that are not valid."""
FORMATS: Final = ("PNG", "JPEG", "TIFF")
N_NAMED: Final = 3
"""Colours or labels that an error names."""


@dataclass(frozen=True)
class Palette:
    """The classes of masks, and the colours that show them."""

    names: tuple[str, ...]
    """The classes, in the order of their numbers."""
    numbers: Mapping[int, int]
    """The class of each colour, red first; UNLABELED: of no class."""

    @classmethod
    def of(cls, classes: Sequence[str]) -> "Palette":
        """From lines of a colour and its class, such as `#3c1098 building`; `unlabeled` is no class.

        Raises:
            UsageError: no such line, one colour twice, or fewer than two classes.
        """
        lines = [_line(text) for text in classes]
        names = tuple(dict.fromkeys(name for _, name in lines if name != NO_CLASS))
        if not 2 <= len(names) < UNLABELED:
            raise UsageError(f"the palette has {len(names)} classes, expected 2 to {UNLABELED - 1}: a colour for each")
        numbers: dict[int, int] = {}
        for value, name in lines:
            if value in numbers:
                raise UsageError(f"the palette has the colour #{value:06x} twice")
            numbers[value] = UNLABELED if name == NO_CLASS else names.index(name)
        return cls(names, numbers)

    def __len__(self) -> int:
        return len(self.names)

    def classes(self, picture: np.ndarray, source: object) -> np.ndarray:
        """The class (h, w) uint8 of each pixel of (h, w, 3) uint8. UsageError: names colours that are in no class."""
        packed = _packed(picture)
        values, places = np.unique(packed, return_inverse=True)
        if unknown := [place for place, value in enumerate(values) if int(value) not in self.numbers]:
            counts = np.bincount(places.ravel(), minlength=len(values))
            unknown.sort(key=lambda place: -counts[place])
            named = ", ".join(f"#{values[place]:06x} ({counts[place]:,} pixels)" for place in unknown[:N_NAMED])
            more = f" and {len(unknown) - N_NAMED} more" if len(unknown) > N_NAMED else ""
            raise UsageError(
                f"{source} has colours that are not in the palette: {named}{more}; give them a class in "
                f"semantic_synthesis.classes ({NO_CLASS}: none), or correct the mask"
            )
        return np.array([self.numbers[int(value)] for value in values], np.uint8)[places.reshape(packed.shape)]

    def picture(self, classes: np.ndarray) -> np.ndarray:
        """Classes (h, w) as a picture (h, w, 3) uint8, each in its first colour; without one, black."""
        colours = np.zeros((UNLABELED + 1, 3), np.uint8)
        for value, number in reversed(list(self.numbers.items())):
            colours[number] = value >> 16, value >> 8 & 255, value & 255
        return np.asarray(colours[classes])


def read_mask(path: Path, palette: Palette) -> np.ndarray:
    """The class (h, w) uint8 of each pixel of a mask.

    Raises:
        UsageError: a colour or value that is in no class, or as `read_picture`.
    """
    if path.suffix.lower() in gdal.TIFF_SUFFIXES:
        labels = _labels(path)
        if labels is not None:
            return _within(labels, palette, path)
    return palette.classes(read_picture(path), path)


def read_picture(path: Path) -> np.ndarray:
    """A picture (h, w, 3) uint8. UsageError: it cannot be read, has more than 8 bits, or transparent pixels."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.mode.startswith(("I", "F")) or any("16" in str(tile[3]) for tile in opened.tile):
                raise UsageError(f"{path} has more than 8 bits for a value: expected a picture of 8 bits")
            transparent = "A" in opened.getbands() or "transparency" in opened.info
            picture = np.asarray(opened.convert("RGBA" if transparent else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as a picture: {' '.join(str(error).split())}") from None
    if transparent and int(picture[..., 3].min()) < 255:
        n_clear = int((picture[..., 3] < 255).sum())
        raise UsageError(f"{path} has {n_clear:,} transparent pixels, which belong to no class: fill them")
    return np.ascontiguousarray(picture[..., :3])


def _labels(path: Path) -> np.ndarray | None:
    """The values of a TIFF of one band, NOT_VALID where they are not valid; None: it is a picture."""
    try:
        with gdal.opened(str(path)) as raster:
            is_integer = np.issubdtype(np.dtype(raster.dtypes[0]), np.integer)
            if raster.count != 1 or not is_integer or raster.colorinterp[0] is ColorInterp.palette:
                return None
            labels, is_valid = raster.read(1).astype(np.int64), raster.read_masks(1) > 0
    except RasterioIOError as error:
        raise UsageError(f"{path} cannot be read: {gdal.gdal_message(error)}") from None
    labels[~is_valid] = NOT_VALID
    return np.asarray(labels)


def _within(labels: np.ndarray, palette: Palette, path: Path) -> np.ndarray:
    values, counts = np.unique(labels, return_counts=True)
    known = {*range(len(palette)), NOT_VALID}
    bad = [(int(value), int(n)) for value, n in zip(values, counts, strict=True) if int(value) not in known]
    if bad:
        named = ", ".join(f"{value} ({n:,} pixels)" for value, n in bad[:N_NAMED])
        raise UsageError(
            f"{path} has labels that are no class: {named}; classes are numbered from 0 ({palette.names[0]}) to "
            f"{len(palette) - 1} ({palette.names[-1]}), and what is of no class is nodata"
        )
    return np.where(labels == NOT_VALID, UNLABELED, labels).astype(np.uint8)


def _packed(colours: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _line(text: str) -> tuple[int, str]:
    """The colour, red first, and the class of a line of the palette."""
    colour, _, name = text.strip().partition(" ")
    digits = colour.removeprefix("#")
    if len(digits) != 6 or any(letter not in "0123456789abcdefABCDEF" for letter in digits) or not name.strip():
        raise UsageError(f"the palette has {text!r}: expected a colour and a class, such as '#3c1098 building'")
    return int(digits, 16), name.strip()
