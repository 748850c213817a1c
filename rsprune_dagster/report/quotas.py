"""The quota table: what each scene had, and what it was granted."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.report.markdown import table

HEADER = ("scene", "tiles", "survivors", "clusters", "kept", "kept of tiles")


def quota_table(
    scenes: Sequence[str],
    n_tiles: Sequence[int],
    n_survivors: Sequence[int],
    n_clusters: Sequence[int],
    n_kept: Sequence[int],
) -> str:
    """A Markdown table, largest scene first, ties by name, and a row of sums (none of clusters: one may hold
    tiles of several scenes).

    All arguments: (S,), one entry per scene. Survivors are tiles that neither the entropy threshold nor the search
    for duplicates dropped.
    """
    counts = np.array([n_tiles, n_survivors, n_clusters, n_kept], np.int64).reshape(4, -1)
    order = sorted(range(len(scenes)), key=lambda index: (-counts[0, index], scenes[index]))
    rows = [_row(scenes[index], counts[:, index]) for index in order]
    scene, tiles, survivors, _, kept, share = _row("all", counts.sum(axis=1))
    return _right_aligned(table(HEADER, [*rows, (scene, tiles, survivors, None, kept, share)]))


def _row(scene: str, counts: NDArray[np.int64]) -> tuple[object, ...]:
    n_tiles, n_survivors, n_clusters, n_kept = counts.tolist()
    return scene, n_tiles, n_survivors, n_clusters, n_kept, _share(n_kept, n_tiles)


def _share(n_kept: int, n_tiles: int) -> str:
    return f"{n_kept / n_tiles:.1%}".replace("%", "\N{NO-BREAK SPACE}%") if n_tiles else ""


def _right_aligned(markdown: str) -> str:
    """The last column holds per cents as text; align it like the numbers it is."""
    header, rule, *rows = markdown.split("\n")
    return "\n".join([header, rule.removesuffix(":--- |") + "---: |", *rows])
