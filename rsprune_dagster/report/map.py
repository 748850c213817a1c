"""The embedding seen from above: where the kept tiles lie among all tiles."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray

from rsprune_dagster.report import style

MAX_POINTS = 5_000
MAX_SCENES = 10
"""Scenes with a colour of their own; the others share grey-blue."""
MARKERS = ("o", "s", "^", "D", "v")
"""Neighbouring colours also differ in shape, for print and for eyes that do not see colours."""


def embedding_map(
    embeddings: NDArray[np.floating],
    keep: NDArray[np.bool_],
    scenes: Sequence[str],
    *,
    thumbnails: NDArray[np.uint8] | None = None,
    n_thumbnails: int = 16,
) -> bytes:
    """A 2-d map: every tile grey, kept tiles coloured by scene, a few tiles shown where they lie. Returns PNG bytes.

    embeddings: (N, d) vectors. keep: (N,). scenes: (N,) names. thumbnails: (N, h, w) grey or (N, h, w, 3) colour, or
    None. Of more than MAX_POINTS rows, evenly spaced ones are drawn: rows come in content order, which is as good as
    random, and no seed is needed.
    """
    shown = np.unique(np.linspace(0, len(embeddings) - 1, min(len(embeddings), MAX_POINTS)).astype(np.int64))
    points, explained = principal_plane(np.asarray(embeddings[shown], np.float64))
    labels, kept = np.asarray(scenes, dtype=object)[shown], np.asarray(keep)[shown]
    with style.look():
        drawing = style.figure(7.0, 4.4)
        axes = drawing.subplots()
        _points(axes, points, kept, labels)
        if thumbnails is not None:
            _thumbnails(axes, points, thumbnails[shown], n_thumbnails)
        _words(axes, explained, len(shown), len(embeddings))
        return style.png(drawing)


def principal_plane(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates (n, 2) on the first two principal axes, and the share of the variance that each explains, (2,).

    Each axis is signed so that its coordinate of largest size is positive: the picture does not flip from run to run.
    """
    if len(vectors) == 0:
        return np.zeros((0, 2)), np.zeros(2)
    centred = vectors - vectors.mean(0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    axes = np.pad(axes, ((0, 0), (2, 0)))[:, :-3:-1]
    points = centred @ axes
    sign = np.sign(points[np.abs(points).argmax(0), [0, 1]])
    top = np.pad(values, (2, 0))[:-3:-1]
    return points * np.where(sign == 0, 1, sign), np.maximum(top, 0) / max(float(values.sum()), 1e-30)


def _points(axes: Axes, points: NDArray[np.float64], kept: NDArray[np.bool_], labels: NDArray[np.object_]) -> None:
    x, y = points.T
    axes.scatter(x[~kept], y[~kept], s=2.5, color=style.RULE, linewidths=0, label=f"dropped ({(~kept).sum():,})")
    names, counts = np.unique(labels[kept].astype(str), return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-int(counts[i]), names[i]))
    for rank, i in enumerate(order[:MAX_SCENES]):
        mine = kept & (labels == names[i])
        colour, marker = style.SERIES[rank], MARKERS[rank % len(MARKERS)]
        axes.scatter(
            x[mine], y[mine], s=11, color=colour, marker=marker, linewidths=0, label=f"{names[i]} ({counts[i]:,})"
        )
    rest = kept & ~np.isin(labels.astype(str), names[order[:MAX_SCENES]])
    if rest.any():
        text = f"{len(order) - MAX_SCENES:,} other scenes ({rest.sum():,})"
        axes.scatter(x[rest], y[rest], s=11, color=style.INK, marker="x", linewidths=0.7, label=text)


def _thumbnails(axes: Axes, points: NDArray[np.float64], thumbnails: NDArray[np.uint8], n: int) -> None:
    """Show tiles far apart from each other on the map."""
    for i in spread_out(points, n):
        picture = OffsetImage(
            thumbnails[i], cmap="gray", zoom=20 / max(thumbnails.shape[1:3]), interpolation="antialiased"
        )
        axes.add_artist(
            AnnotationBbox(picture, tuple(points[i]), pad=0.12, bboxprops={"edgecolor": style.MUTED, "linewidth": 0.6})
        )


def spread_out(points: NDArray[np.float64], n: int) -> list[int]:
    """Rows of up to `n` points chosen farthest first (Gonzalez 1985), from the point farthest from the middle; no two
    at one place."""
    if len(points) == 0:
        return []
    distance = np.linalg.norm(points - points.mean(0), axis=1)
    chosen: list[int] = []
    while len(chosen) < n and (not chosen or distance.max() > 0):
        chosen.append(int(distance.argmax()))
        reach = np.linalg.norm(points - points[chosen[-1]], axis=1)
        distance = reach if len(chosen) == 1 else np.minimum(distance, reach)
    return chosen


def _words(axes: Axes, explained: NDArray[np.float64], n_shown: int, n_all: int) -> None:
    axes.set_title("Kept tiles among all tiles, by embedding")
    sample = f"{n_shown:,} of {n_all:,} tiles shown" if n_shown < n_all else f"{n_all:,} tiles"
    axes.set_xlabel(f"First principal axis ({style.percent(explained[0])} of the variance); {sample}")
    axes.set_ylabel(f"Second principal axis ({style.percent(explained[1])})")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.06)
    legend = axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), markerscale=1.5, handletextpad=0.2, labelspacing=0.7
    )
    legend.set_title("Kept, by scene", prop=FontProperties(size=7.5, weight="bold"))
