"""What pictures, tables and chapters are made of. The template draws them for the page, `picture.py` for the web UI."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rsprune_dagster.viz.plot import Plot


@dataclass(frozen=True)
class Text:
    """A paragraph; `absent` says that something is not there."""

    kind: ClassVar[str] = "text"
    text: str
    absent: bool = False


@dataclass(frozen=True)
class Facts:
    """Names with values, side by side."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]
    title: str = ""
    code: bool = False
    """Parameters: many, short, in the fixed-width face."""


@dataclass(frozen=True)
class Cell:
    """A table cell that is more than its text. `kind` is a macro of the template."""

    kind: ClassVar[str] = "text"
    text: str


def text_of(cell: str | Cell) -> str:
    """What a cell says, without what it draws."""
    return cell if isinstance(cell, str) else cell.text


@dataclass(frozen=True)
class Code(Cell):
    """An id, a hash, a parameter: in the fixed-width face."""

    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Bar(Cell):
    """A bar of length `share`, 0 to 1, before a paler one of length `whole`."""

    kind: ClassVar[str] = "bar"
    share: float = 0.0
    whole: float = 0.0


@dataclass(frozen=True)
class Heat(Cell):
    """A cell tinted by `share`, 0 to 1."""

    kind: ClassVar[str] = "heat"
    share: float = 0.0


@dataclass(frozen=True)
class Interval(Cell):
    """A range with its middle on an axis from 0 to 1; `box` is a narrower range, `line` a threshold."""

    kind: ClassVar[str] = "interval"
    low: float = 0.0
    middle: float = 0.0
    high: float = 0.0
    box: tuple[float, float] | None = None
    line: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand right."""

    name: str
    numeric: bool = False
    minor: bool = False
    """Left out on a phone."""
    upright: bool = False
    """The name is written from bottom to top: a narrow column."""


@dataclass(frozen=True)
class Table:
    """Rows under a caption. `total`: a last row of sums."""

    kind: ClassVar[str] = "table"
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Cell]]
    total: Sequence[str | Cell] = ()
    narrow: bool = False
    """A table of few short columns: not drawn across the page."""


@dataclass(frozen=True)
class Tile:
    """A tile (H, W, 3) uint8, or None where it cannot be read any more; `alt` says in words what it stands for."""

    pixels: np.ndarray | None = field(compare=False)
    alt: str
    caption: str = ""
    kept: bool = False
    """Framed."""


@dataclass(frozen=True)
class TileRow:
    """Tiles under a heading."""

    heading: str
    tiles: Sequence[Tile]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Rows of tiles. `paired`: every two tiles belong together. `framed`: what a frame means."""

    kind: ClassVar[str] = "gallery"
    title: str
    caption: str
    rows: Sequence[TileRow]
    paired: bool = False
    framed: str = ""


@dataclass(frozen=True)
class Figure:
    """Plots side by side under one title. `legend`: tone and meaning."""

    kind: ClassVar[str] = "figure"
    title: str
    caption: str
    plots: Sequence[Plot]
    legend: Sequence[tuple[str, str]] = ()


Block = Text | Facts | Table | Gallery | Figure


@dataclass(frozen=True)
class Chapter:
    """A part of the page under its own heading."""

    slug: str
    title: str
    lead: str
    """One or two sentences beside the heading."""
    blocks: Sequence[Block]
