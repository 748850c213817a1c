"""The one template: blocks as the HTML page, or each as a picture that stands alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from rsprune_dagster.utils.terminal import printable
from rsprune_dagster.viz.blocks import Bar, Cell, Chapter, Column, Figure, Gallery, Interval, Table, text_of
from rsprune_dagster.viz.formatting import shortened
from rsprune_dagster.viz.plot import Plot
from rsprune_dagster.viz.sheet import sheet
from rsprune_dagster.viz.thumbnails import tile_uri

WIDTH_PX = 760
"""Dagster's web UI shows a picture pixel by pixel, in a window of some 1,100 px: with a legend no figure is wider."""
LEGEND_PX = 250
STRIP_PX = 190
LETTER_PX, CAPTION_LETTER_PX = 6.9, 6.4
"""Width of a letter, generously: words are not measured where the picture is written."""


@dataclass(frozen=True)
class Area:
    """A place in a picture, in pixels."""

    x: float
    y: float
    width: float
    height: float = 0


@dataclass(frozen=True)
class Sketch:
    """Where the parts of a picture lie."""

    width: int
    height: int
    plots: Sequence[tuple[Plot, Area]] = ()
    legend_x: int = 0
    columns: Sequence[Area] = ()
    rows: Sequence[Sequence[str | Cell]] = ()
    head_y: int = 0
    strip_width: int = STRIP_PX


def page(opening: Any, chapters: Sequence[Chapter]) -> str:
    """The HTML page; every text is escaped, whatever a tile is called."""
    return _environment().get_template("page.html").render(opening=opening, chapters=chapters)


def picture(block: Figure | Table | Gallery) -> bytes:
    """A figure or a table as SVG, a gallery as JPEG."""
    if isinstance(block, Gallery):
        return sheet(block)
    sketch = _of_table(block) if isinstance(block, Table) else _of_figure(block)
    caption = wrap(block.caption.replace("`", ""), int((sketch.width - 24) / CAPTION_LETTER_PX))
    drawn = _environment().get_template("page.picture.svg").render(block=block, sketch=sketch, caption=caption)
    return "\n".join(printable(line) for line in drawn.split("\n") if line).encode()


def inline_html(text: str) -> Markup:
    """A sentence as HTML: escaped, and what stands between backquotes in the fixed-width face."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        inline_html=inline_html, tile_uri=tile_uri, words=lambda cell: shortened(text_of(cell), 60)
    )
    return environment


def _of_figure(block: Figure) -> Sketch:
    """Plots from left to right, the legend at the right."""
    margin, gap = 66, 70
    width = (WIDTH_PX - margin - gap * (len(block.plots) - 1)) / len(block.plots)
    height = max((width / plot.aspect for plot in block.plots), default=0)
    places = [Area(margin + i * (width + gap), 64, width, width / plot.aspect) for i, plot in enumerate(block.plots)]
    legend = LEGEND_PX if block.legend else 0
    below = max(round(height) + 130, 84 + 20 * len(block.legend))
    plots = list(zip(block.plots, places, strict=True))
    return Sketch(WIDTH_PX + 24 + legend, below, plots, legend_x=WIDTH_PX + 24)


def _of_table(block: Table) -> Sketch:
    """Columns as wide as their longest word, side by side; names that stand upright make the head higher."""
    rows = [*block.rows, *([block.total] if block.total else [])]
    columns, x = [], 12.0
    for i, column in enumerate(block.columns):
        width = _column_px(column, [row[i] for row in rows])
        columns.append(Area(x, 0, width))
        x += width + (4 if column.upright else 18)
    upright = max((len(column.name) for column in block.columns if column.upright), default=0)
    head_y = 54 + round(LETTER_PX * max(upright - 2, 0))
    return Sketch(max(round(x), 420), head_y + 24 * len(rows) + 22, columns=columns, rows=rows, head_y=head_y)


def _column_px(column: Column, cells: Sequence[str | Cell]) -> float:
    if any(isinstance(cell, Bar) for cell in cells):
        return STRIP_PX + 70
    if any(isinstance(cell, Interval) for cell in cells):
        return STRIP_PX
    longest = max((len(shortened(text_of(cell), 60)) for cell in cells), default=0)
    return LETTER_PX * max(longest + 1, 0 if column.upright else len(column.name))
