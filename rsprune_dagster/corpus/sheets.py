"""CSV files that a person may open in a spreadsheet, which takes a cell for a formula by its first character.

Such a text is written with an apostrophe before it, which a spreadsheet hides and `read_sheet` takes off again.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

_TAKEN_FOR_MORE = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""How a formula begins; and the apostrophe, so that the text before it was put there can be told."""


def shielded(text: str) -> str:
    """A text as a cell that no spreadsheet evaluates."""
    return f"'{text}" if text.startswith(_TAKEN_FOR_MORE) else text


def unshielded(cell: str) -> str:
    """The text that `shielded` made the cell of."""
    return cell.removeprefix("'")


def write_sheet(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows; a number is a number, and what else begins like a formula is shielded."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(_line(header))
        file.writelines(_line([_cell(value) for value in row]) for row in rows)


def read_sheet(path: Path) -> list[dict[str, str]]:
    """The rows by the names of the columns, as they were before they were shielded."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: unshielded(cell) for name, cell in line.items()} for line in csv.DictReader(file)]


def _line(cells: Sequence[object]) -> str:
    """A line that ends in a line feed. csv quotes a carriage return only where its own lines end in one."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        return shielded(value)
    return value
