"""Tiles side by side: what low entropy looks like, what was kept, what a cluster holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rsprune_dagster.report import style
from rsprune_dagster.terminal import printable

GAP_PX = 10
MARGIN_PX = 10
FRAME_PX = 3
CAPTION_PX = 12
HEADING_PX = 14

Tile = NDArray[np.uint8]
"""(H, W, 3) colour, (H, W, 1) or (H, W) grey."""


@dataclass(frozen=True)
class Row:
    """One row of a gallery: its heading, its tiles, which are framed as kept, and a caption for each (or none)."""

    heading: str
    tiles: Sequence[Tile]
    kept: Sequence[bool] = ()
    captions: Sequence[str] = ()


def montage(tiles: Sequence[Tile], *, columns: int, captions: Sequence[str] = (), tile_px: int = 96) -> bytes:
    """A grid of tiles, row by row, each over its caption. Returns JPEG bytes.

    tiles: of any sizes. columns: tiles in a row, 1 or more. captions: one per tile, or none. tile_px: edge a tile is
    drawn with. Raises ValueError when captions came but not one per tile.
    """
    if captions and len(captions) != len(tiles):
        raise ValueError(f"{len(captions)} captions came for {len(tiles)} tiles: give one each, or none")
    starts = range(0, max(len(tiles), 1), columns)
    rows = [Row("", tiles[i : i + columns], (), captions[i : i + columns]) for i in starts]
    return gallery(rows, tile_px=tile_px)


def gallery(rows: Sequence[Row], *, tile_px: int = 72, legend: str = "") -> bytes:
    """Rows of tiles under their headings, kept ones framed; `legend` explains the frame in a line on top. Returns
    JPEG bytes."""
    return style.small_jpeg(_draw([_written(row) for row in rows], tile_px, legend))


def _written(row: Row) -> Row:
    """The row with names that a font can write: they come from a corpus, and may hold control characters."""
    return replace(row, heading=printable(row.heading), captions=[printable(each) for each in row.captions])


def _draw(rows: Sequence[Row], tile_px: int, legend: str) -> Image.Image:
    """The picture in full colour."""
    columns = max((len(row.tiles) for row in rows), default=0)
    width = max(2 * MARGIN_PX + columns * (tile_px + GAP_PX) - GAP_PX, _text_width(rows, legend) + 2 * MARGIN_PX)
    top = MARGIN_PX + (CAPTION_PX + 10 if legend else 0)
    height = top + sum(_row_height(row, tile_px) for row in rows) + MARGIN_PX - GAP_PX
    sheet = Image.new("RGB", (width, max(height, 1)), "white")
    pen = ImageDraw.Draw(sheet)
    if legend:
        _draw_legend(pen, legend)
    for row in rows:
        _draw_row(sheet, pen, row, top, tile_px)
        top += _row_height(row, tile_px)
    return sheet


def _text_width(rows: Sequence[Row], legend: str) -> int:
    """Pixels that the longest heading or the legend needs."""
    headings = [style.font(HEADING_PX, bold=True).getlength(row.heading) for row in rows]
    return (
        int(max([*headings, style.font(CAPTION_PX).getlength(legend) + 2 * CAPTION_PX if legend else 0], default=0)) + 1
    )


def _row_height(row: Row, tile_px: int) -> int:
    heading = HEADING_PX + 9 if row.heading else 0
    return heading + tile_px + (CAPTION_PX + 7 if row.captions else 0) + GAP_PX


def _draw_legend(pen: ImageDraw.ImageDraw, legend: str) -> None:
    box = CAPTION_PX
    top = MARGIN_PX
    pen.rectangle((MARGIN_PX, top, MARGIN_PX + box, top + box), outline=style.ALERT, width=FRAME_PX)
    pen.text((MARGIN_PX + box + 6, top + box / 2), legend, style.MUTED, style.font(CAPTION_PX), anchor="lm")


def _draw_row(sheet: Image.Image, pen: ImageDraw.ImageDraw, row: Row, top: int, tile_px: int) -> None:
    if row.heading:
        pen.text((MARGIN_PX, top + 1), row.heading, style.INK, style.font(HEADING_PX, bold=True))
        top += HEADING_PX + 9
    for i, tile in enumerate(row.tiles):
        left = MARGIN_PX + i * (tile_px + GAP_PX)
        sheet.paste(_resized(tile, tile_px), (left, top))
        if i < len(row.kept) and row.kept[i]:
            box = (left - FRAME_PX, top - FRAME_PX, left + tile_px + FRAME_PX - 1, top + tile_px + FRAME_PX - 1)
            pen.rectangle(box, outline=style.ALERT, width=FRAME_PX)
        if i < len(row.captions):
            where = (left + tile_px / 2, top + tile_px + 4)
            pen.text(where, _fitted(row.captions[i], tile_px), style.MUTED, style.font(CAPTION_PX), anchor="ma")


def _resized(tile: Tile, tile_px: int) -> Image.Image:
    """The tile, its longer side `tile_px`, centred on pale grey: blown up by whole pixels when tiny, else smoothly."""
    grey = tile.ndim == 2 or tile.shape[2] == 1
    picture = Image.fromarray(tile.reshape(tile.shape[:2]) if grey else np.ascontiguousarray(tile[..., :3])).convert(
        "RGB"
    )
    scale = tile_px / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    method = Image.Resampling.NEAREST if max(picture.size) <= 16 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (tile_px, tile_px), style.PALE)
    square.paste(picture.resize(size, method), ((tile_px - size[0]) // 2, (tile_px - size[1]) // 2))
    return square


def _fitted(caption: str, width_px: int) -> str:
    """The caption, with an ellipsis in its middle when wider than a tile: both ends of a path tell something."""
    font = style.font(CAPTION_PX)
    if font.getlength(caption) <= width_px:
        return caption
    for n in range(len(caption) - 1, 1, -1):
        cut = f"{caption[: n // 2]}…{caption[-(n - n // 2) :]}"
        if font.getlength(cut) <= width_px:
            return cut
    return ""
