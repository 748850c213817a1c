"""Lines of a terminal: values that wrap under their label, tables whose columns line up."""

import textwrap
from collections.abc import Sequence

WIDTH = 100
_INDENT = 12
_GLUE = "\u00a0"


def labelled(label: str, text: str) -> str:
    """`  label     text`, wrapped under itself at WIDTH columns, but not within what `together` joined."""
    filled = textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"  {label:<{_INDENT - 2}}",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_GLUE, " ")


def together(*words: str) -> str:
    """Words on one line: a name and its value."""
    return _GLUE.join(words)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; numbers to the right, with thousands separators."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(header))]
    numeric = [bool(rows) and all(isinstance(row[index], int) for row in rows) for index in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def shown(value: object) -> str:
    """A parameter as params.yaml could say it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(each) for each in value) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value) or '""'


def figure(value: float) -> str:
    """A figure to be read, with thousands separators."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
