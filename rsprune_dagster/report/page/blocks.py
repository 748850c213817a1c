"""What a section of the page is made of. `page.html` has a macro for each kind; nothing here knows HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rsprune_dagster.report.page.plot import Plot

Tone = Literal["kept", "unselected", "duplicate", "low_information", "quarantined", "plain"]


@dataclass(frozen=True)
class Text:
    """A paragraph; `absent` says quietly that something is not there."""

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
class Segment:
    """A part of a whole: its length is `share`, 0 to 1."""

    name: str
    n: int
    share: float
    tone: Tone
    sentence: str = ""


@dataclass(frozen=True)
class Split:
    """A whole and its parts as one bar, explained below."""

    kind: ClassVar[str] = "split"
    segments: Sequence[Segment]
    alt: str


@dataclass(frozen=True)
class Bar:
    """A table cell with a bar of `share`, 0 to 1, under its text; `of` is a paler bar behind it."""

    kind: ClassVar[str] = "bar"
    share: float
    text: str
    of: float = 0.0


@dataclass(frozen=True)
class Heat:
    """A table cell tinted by `share`, 0 to 1."""

    kind: ClassVar[str] = "heat"
    share: float
    text: str


@dataclass(frozen=True)
class Box:
    """A table cell with a box plot: the five places are 0 to 1, `line` marks a threshold."""

    kind: ClassVar[str] = "box"
    low: float
    first: float
    median: float
    third: float
    high: float
    line: float
    alt: str


@dataclass(frozen=True)
class Code:
    """A table cell in the fixed-width face: an id, a hash, a parameter."""

    kind: ClassVar[str] = "code"
    text: str


Cell = str | Bar | Heat | Box | Code


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand right."""

    name: str
    numeric: bool = False
    minor: bool = False
    """Left out on a phone."""


@dataclass(frozen=True)
class Table:
    """Rows under a caption that says what one sees. `total`: a last row of sums."""

    kind: ClassVar[str] = "table"
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    total: Sequence[Cell] = ()
    narrow: bool = False
    """Of few short columns: not drawn across the page."""


@dataclass(frozen=True)
class Tile:
    """A picture of a tile: `picture` is a data URI, `alt` says in words what it stands for."""

    picture: str
    alt: str
    caption: str = ""
    kept: bool = False
    """Framed."""


@dataclass(frozen=True)
class TileRow:
    """Tiles under a heading."""

    heading: str
    note: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Gallery:
    """Rows of tiles. `paired`: every two tiles belong together. `large`: drawn larger."""

    kind: ClassVar[str] = "gallery"
    title: str
    caption: str
    rows: Sequence[TileRow]
    paired: bool = False
    large: bool = False


@dataclass(frozen=True)
class Figure:
    """Plots side by side under one title."""

    kind: ClassVar[str] = "figure"
    title: str
    caption: str
    plots: Sequence[Plot]
    legend: Sequence[tuple[str, str]] = ()
    """Tone and meaning."""


Block = Text | Facts | Split | Table | Gallery | Figure


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading."""

    slug: str
    title: str
    lead: str
    """One or two sentences beside the heading."""
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Headline:
    """What the page opens with."""

    eyebrow: str
    title: str
    sentence: str
    split: Split
    figures: Sequence[tuple[str, str, str]]
    """Value, name, remark."""
    tiles: Sequence[Tile]
    findings: Sequence[str]
    """What to know, a sentence each."""
