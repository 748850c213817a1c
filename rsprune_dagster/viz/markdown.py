"""Pictures and tables as the Markdown that Dagster's web UI renders."""

import base64
from collections.abc import Sequence
from numbers import Integral, Real

from rsprune_dagster.viz.blocks import Heat, Table, text_of

SHADES = " ░▒▓█"


def image(picture: bytes, alt: str) -> str:
    """An SVG or JPEG as a Markdown image with its bytes inside, so that it needs no file beside it."""
    kind = "jpeg" if picture.startswith(b"\xff\xd8\xff") else "svg+xml"
    return f"![{plain(alt)}](data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table. Columns that hold only numbers (or nothing) are aligned right; whole numbers get thousands
    separators.

    Raises ValueError when a row is not as long as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells came for {len(header)} columns: {row!r}")
    return _lines(header, rows, [all(_is_number(row[i]) or row[i] is None for row in rows) for i in range(len(header))])


def markdown_table(block: Table) -> str:
    """A table of the page; a tint is shaded, what other cells draw is in their words. The caption stands below."""
    rows = [[_words(cell) for cell in row] for row in (*block.rows, *([block.total] if block.total else []))]
    header = [column.name for column in block.columns]
    return f"{_lines(header, rows, [column.numeric for column in block.columns])}\n\n{block.caption}".rstrip()


def _words(cell: object) -> object:
    if isinstance(cell, Heat) and cell.share:
        return f"{SHADES[-(-4 * cell.share // 1).__trunc__()]} {cell.text}"
    return text_of(cell)  # type: ignore[arg-type]


def _lines(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[bool]) -> str:
    rule = ["---:" if numeric else ":---" for numeric in right]
    lines = [[_cell(name) for name in header], rule, *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return f"{float(value):,.3g}" if abs(float(value)) < 1000 else f"{float(value):,.0f}"
    return plain(str(value)).replace("|", "\\|")


def plain(text: str) -> str:
    """Text on one line, with the characters that would end an image's caption escaped."""
    return " ".join(text.split()).replace("[", "\\[").replace("]", "\\]")
