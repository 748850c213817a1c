"""A gallery as one sheet: for the web UI, which shows a picture and no page."""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rsprune_dagster.utils.terminal import printable
from rsprune_dagster.viz.blocks import Gallery, Tile, TileRow

MAX_BYTES = 120_000
"""A picture lives in Dagster's event log as text: a larger one is written with less quality, then smaller."""
QUALITIES = (92, 84, 76, 68)
"""JPEG quality of a sheet."""
MIN_EDGE_PX = 64
"""No sheet is shrunk below this."""
COLUMNS = 16
TILE_PX = 56
GAP_PX = 10
FRAME_PX = 3
CAPTION_PX = 12
HEADING_PX = 14
WHITE, INK, MUTED, PALE, KEPT = "#ffffff", "#15201d", "#4d5a56", "#dde2e7", "#d55e00"


def sheet(gallery: Gallery) -> bytes:
    """Rows of tiles under their headings, kept ones framed, as JPEG of at most MAX_BYTES."""
    return _small_jpeg(_draw([part for row in gallery.rows for part in _parts(row)], gallery.framed))


def _parts(row: TileRow) -> list[TileRow]:
    """A row of more than COLUMNS tiles goes on in the next line. Names come from a corpus, and are made printable."""
    heading = printable(" · ".join(filter(None, [row.heading, row.note])))
    starts = range(0, max(len(row.tiles), 1), COLUMNS)
    return [TileRow("" if start else heading, row.tiles[start : start + COLUMNS]) for start in starts]


def _draw(rows: Sequence[TileRow], framed: str) -> Image.Image:
    legend = f"Framed: {framed}" if framed else ""
    n_columns = max((len(row.tiles) for row in rows), default=0)
    words = [_font(HEADING_PX, bold=True).getlength(row.heading) for row in rows]
    words.append(_font(CAPTION_PX).getlength(legend) + 2 * CAPTION_PX)
    width = GAP_PX + max(n_columns * (TILE_PX + GAP_PX), int(max(words)) + GAP_PX)
    top = GAP_PX + (CAPTION_PX + GAP_PX if legend else 0)
    picture = Image.new("RGB", (width, top + sum(_height(row) for row in rows) + 1), WHITE)
    pen = ImageDraw.Draw(picture)
    if legend:
        pen.rectangle((GAP_PX, GAP_PX, GAP_PX + CAPTION_PX, GAP_PX + CAPTION_PX), outline=KEPT, width=FRAME_PX)
        pen.text((2 * GAP_PX + CAPTION_PX, GAP_PX), legend, MUTED, _font(CAPTION_PX))
    for row in rows:
        _draw_row(picture, pen, row, top)
        top += _height(row)
    return picture


def _height(row: TileRow) -> int:
    captions = CAPTION_PX + 7 if any(tile.caption for tile in row.tiles) else 0
    return (HEADING_PX + 9 if row.heading else 0) + TILE_PX + captions + GAP_PX


def _draw_row(picture: Image.Image, pen: ImageDraw.ImageDraw, row: TileRow, top: int) -> None:
    if row.heading:
        pen.text((GAP_PX, top), row.heading, INK, _font(HEADING_PX, bold=True))
        top += HEADING_PX + 9
    for i, tile in enumerate(row.tiles):
        left = GAP_PX + i * (TILE_PX + GAP_PX)
        picture.paste(_resized(tile), (left, top))
        if tile.kept:
            box = (left - FRAME_PX, top - FRAME_PX, left + TILE_PX + FRAME_PX - 1, top + TILE_PX + FRAME_PX - 1)
            pen.rectangle(box, outline=KEPT, width=FRAME_PX)
        where = (left + TILE_PX / 2, top + TILE_PX + 4)
        pen.text(where, _fitted(printable(tile.caption)), MUTED, _font(CAPTION_PX), anchor="ma")


def _resized(tile: Tile) -> Image.Image:
    """The tile, its longer side TILE_PX, centred on pale grey: enlarged by whole pixels when tiny, else smoothly."""
    square = Image.new("RGB", (TILE_PX, TILE_PX), PALE)
    if tile.pixels is None:
        return square
    picture = Image.fromarray(np.ascontiguousarray(tile.pixels))
    scale = TILE_PX / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    method = Image.Resampling.NEAREST if max(picture.size) <= 16 else Image.Resampling.LANCZOS
    square.paste(picture.resize(size, method), ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2))
    return square


def _fitted(caption: str) -> str:
    """The caption, with an ellipsis in its middle when wider than a tile and its gap."""
    font = _font(CAPTION_PX)
    for n in range(len(caption), 1, -1):
        cut = caption if n == len(caption) else f"{caption[: n // 2]}…{caption[-(n - n // 2) :]}"
        if font.getlength(cut) <= TILE_PX + GAP_PX:
            return cut
    return ""


@lru_cache
def _font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size_px)


def _small_jpeg(picture: Image.Image) -> bytes:
    for quality in QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 80 else 2)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    if min(picture.size) <= MIN_EDGE_PX:
        return buffer.getvalue()
    smaller = (int(picture.width * 0.85), int(picture.height * 0.85))
    return _small_jpeg(picture.resize(smaller, Image.Resampling.LANCZOS))
