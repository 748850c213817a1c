"""The result of a check: passed or not, a sentence with the remedy, and figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsprune_dagster.corpus.tables import query

N_EXAMPLES = 3
"""Number of tiles named in a sentence; the figures count all."""


@dataclass(frozen=True)
class Verdict:
    """`figures` are numbers and texts; `table` starts with its header and may be empty."""

    passed: bool
    sentence: str
    figures: Mapping[str, int | float | str] = field(default_factory=dict)
    table: tuple[tuple[object, ...], ...] = ()


def rows(sql: str, tables: Mapping[str, Path | Sequence[Path]]) -> Iterator[dict[str, Any]]:
    """The rows of a query over Parquet files, one batch in memory at a time."""
    with query(sql, tables) as batches:
        for batch in batches:
            yield from batch.to_pylist()


def row(sql: str, tables: Mapping[str, Path | Sequence[Path]]) -> dict[str, Any]:
    """The single row of a query."""
    return next(rows(sql, tables))


def named(examples: Sequence[str] | None, n: int) -> str:
    """`: a, b, c, ...`: the first few of `n` examples."""
    shown = sorted(examples or [])[:N_EXAMPLES]
    return f": {', '.join(shown)}{', ...' if n > len(shown) else ''}" if shown else ""


def within_bounds(found: Mapping[str, int], total: int, *, what: str, todo: str) -> Verdict:
    """Passes if every count in `found` is 0. `found`: counts by fault in words, such as `below 0`."""
    faults = {name: n for name, n in found.items() if n}
    figures = {"n_checked": total, "n_faults": sum(faults.values())}
    if not faults:
        return Verdict(True, f"{total:,} {what} are as they must be.", figures)
    listed = ", ".join(f"{n:,} {name}" for name, n in faults.items())
    return Verdict(False, f"of {total:,} {what}, {listed}; {todo}.", figures)
