"""CSV files that are safe to open in a spreadsheet, which treats a cell as a formula by its first character.

Such a text gets a leading apostrophe, which a spreadsheet hides and `read_sheet` removes.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

_FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""First characters of a formula; and the apostrophe, so that the original text can be restored."""


def formula_escaped(text: str) -> str:
    """Escape a text so that no spreadsheet evaluates it."""
    return f"'{text}" if text.startswith(_FORMULA_PREFIXES) else text


def formula_unescaped(cell: str) -> str:
    """The inverse of `formula_escaped`."""
    return cell.removeprefix("'")


def write_sheet(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows; text that begins like a formula is escaped unless it is a number."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(_line(header))
        file.writelines(_line([_cell(value) for value in row]) for row in rows)


def read_sheet(path: Path) -> list[dict[str, str]]:
    """The unescaped rows, as dictionaries by column name."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: formula_unescaped(cell) for name, cell in line.items()} for line in csv.DictReader(file)]


def _line(cells: Sequence[object]) -> str:
    """One CSV line ending in a line feed. csv quotes a carriage return only with the line terminator CRLF."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        return formula_escaped(value)
    return value
