"""Kept against dropped, scene by scene."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rsprune_dagster.report import style

MAX_ROWS = 40
"""Scenes drawn; the smallest beyond them are added up into one row."""


def kept_by_scene(scenes: Sequence[str], n_tiles: Sequence[int], n_kept: Sequence[int]) -> bytes:
    """Two panels, largest scene first: tiles kept of tiles seen (bars), and each scene's share before and after
    (dumbbells).

    scenes, n_tiles, n_kept: (S,), a scene each with its tiles in the pool and in the subset. Returns PNG bytes.
    """
    names, seen, kept = _rows(scenes, np.asarray(n_tiles, np.int64), np.asarray(n_kept, np.int64))
    with style.look():
        drawing = style.figure(7.6, 1.15 + 0.24 * len(names))
        left, right = drawing.subplots(1, 2, sharey=True, width_ratios=[1.35, 1])
        _bars(left, seen, kept)
        _dumbbells(right, seen, kept)
        left.set_yticks(range(len(names)), names)
        left.tick_params(axis="y", labelcolor=style.INK)
        left.set_ylim(len(names) - 0.4, -0.6)
        return style.png(drawing)


def _rows(
    scenes: Sequence[str], seen: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Largest first, ties by name; what is beyond MAX_ROWS becomes one last row."""
    order = sorted(range(len(scenes)), key=lambda i: (-int(seen[i]), scenes[i]))
    if len(order) <= MAX_ROWS:
        return [scenes[i] for i in order], seen[order], kept[order]
    head, tail = order[: MAX_ROWS - 1], order[MAX_ROWS - 1 :]
    names = [*(scenes[i] for i in head), f"{len(tail):,} smaller scenes"]
    return names, np.append(seen[head], seen[tail].sum()), np.append(kept[head], kept[tail].sum())


def _bars(axes: Axes, seen: NDArray[np.int64], kept: NDArray[np.int64]) -> None:
    rows = np.arange(len(seen))
    axes.barh(rows, seen, height=0.66, color=style.PALE, label="pool")
    axes.barh(rows, kept, height=0.66, color=style.KEPT, label="kept")
    for row, (n, k) in enumerate(zip(seen, kept, strict=True)):
        text = f"{k:,} of {n:,}"
        axes.annotate(text, (n, row), (4, 0), textcoords="offset points", va="center", color=style.MUTED, fontsize=7)
    axes.set_xlim(0, 1.28 * max(int(seen.max(initial=0)), 1))
    axes.set_xlabel("Tiles")
    axes.grid(axis="x")
    axes.set_title("Kept of each scene")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    style.counts_on(axes, "x")
    _legend(axes)


def _dumbbells(axes: Axes, seen: NDArray[np.int64], kept: NDArray[np.int64]) -> None:
    before, after = seen / max(seen.sum(), 1), kept / max(kept.sum(), 1)
    rows = np.arange(len(seen))
    axes.hlines(rows, before, after, color=style.DROPPED, linewidth=1.6)
    axes.plot(before, rows, "o", markerfacecolor="white", markeredgecolor=style.MUTED, markersize=5, label="pool")
    axes.plot(after, rows, "o", color=style.KEPT, markersize=4, label="subset")
    axes.set_xlim(0, 1.12 * max(float(before.max(initial=0)), float(after.max(initial=0)), 0.01))
    axes.set_xlabel("Share of the tiles")
    axes.grid(axis="x")
    axes.tick_params(axis="y", labelleft=False)
    axes.set_title("Scene balance")
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    style.shares_on(axes, "x")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """On the title's line, at its right: over the data there is no place that is always free."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.02, 1.0),
        ncols=2,
        handlelength=1.0,
        handleheight=0.9,
        columnspacing=1.0,
        borderaxespad=0.4,
    )
