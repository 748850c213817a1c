"""The quota table: what each scene had, and what it was granted."""

from collections.abc import Sequence

from rsprune_dagster.report.markdown import table

HEADER = ("scene", "tiles", "survivors", "clusters", "kept", "kept of tiles")


def quota_table(
    scenes: Sequence[str],
    n_tiles: Sequence[int],
    n_survivors: Sequence[int],
    n_clusters: Sequence[int],
    n_kept: Sequence[int],
) -> str:
    """A Markdown table, largest scene first, ties by name, and a row of sums.

    All arguments: (S,), one entry per scene. Survivors are tiles that neither the entropy threshold nor the search
    for duplicates dropped.
    """
    rows = list(zip(scenes, n_tiles, n_survivors, n_clusters, n_kept, strict=True))
    rows.sort(key=lambda row: (-row[1], row[0]))
    total = ("all", *(sum(row[i] for row in rows) for i in range(1, 5)))
    return _right_aligned(table(HEADER, [(*map(_whole, row), _share(int(row[4]), int(row[1]))) for row in [*rows, total]]))


def _whole(value: object) -> object:
    return value if isinstance(value, str) else int(value)  # type: ignore[call-overload]


def _share(n_kept: int, n_tiles: int) -> str:
    return f"{n_kept / n_tiles:.1%}".replace("%", "\N{NO-BREAK SPACE}%") if n_tiles else ""


def _right_aligned(markdown: str) -> str:
    """The last column holds per cents as text; align it like the numbers it is."""
    header, rule, *rows = markdown.split("\n")
    return "\n".join([header, rule.removesuffix(":--- |") + "---: |", *rows])
