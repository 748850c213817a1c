"""How the encoder sees the tiles: the embedding on its principal plane, and what its clusters hold."""

from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.corpus.tables import rows_at
from rsprune_dagster.pruning.encoders.vectors import open_vectors
from rsprune_dagster.pruning.pipeline import strided_sample
from rsprune_dagster.pruning.scenes import is_foreign
from rsprune_dagster.viz import queries
from rsprune_dagster.viz.blocks import Block, Column, Figure, Gallery, Table, Text, Tile, TileRow
from rsprune_dagster.viz.counts import n_rows, read_json
from rsprune_dagster.viz.formatting import count, counted, name, share
from rsprune_dagster.viz.plot import Axis, Placed, Plot, Shape, dots
from rsprune_dagster.viz.thumbnails import read_tiles

MAX_DOTS = 4_000
N_COLOURS = 8
N_TILES = 14
ASPECT = 1.7


def embedding_map(layout: Layout) -> Block:
    """Kept tiles among all candidates, by the first two principal axes."""
    n_all = n_rows(layout.file("ranking"))
    rows = strided_sample(n_all, MAX_DOTS)
    if not len(rows):
        return Text("No tile was embedded.", absent=True)
    ranking = rows_at(layout.file("ranking"), ["tile_id", "scene", "rank"], rows)
    vectors = open_vectors(layout.file("vectors")).read_rows(rows)
    points, explained = principal_plane(np.asarray(vectors, np.float64))
    x, y = _inside(points[:, 0]), 1 - _inside(points[:, 1])
    n_kept = n_rows(layout.file("subset"))
    kept = np.array([rank is not None and rank <= n_kept for rank in ranking["rank"].to_pylist()], bool)
    shapes, legend = _by_scene(x, y, kept, np.asarray(ranking["scene"].to_pylist(), dtype=object))
    n = len(rows)
    shown = f"{count(n)} of {count(n_all)} candidates, evenly drawn" if n < n_all else counted(n, "candidate")
    plot = Plot(
        alt=f"Map of the embedding: {count(kept.sum())} kept among {count(n)} candidates, in colour",
        shapes=shapes,
        x_label=f"First principal axis ({share(float(explained[0]))} of the variance)",
        y_label=f"Second ({share(float(explained[1]))})",
        placed=_tiles_on_map(layout, x, y, ranking["tile_id"].to_pylist()),
        aspect=ASPECT,
    )
    by_scene = ", by scene" if len(legend) > 2 else ""
    caption = (
        f"{shown}; near are those that look alike. Grey: went. In colour: kept{by_scene}. A good subset covers the "
        "whole cloud, and its thin parts more than their share."
    )
    return Figure("Kept tiles among all tiles", caption, [plot], legend)


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


def clusters(layout: Layout, first: int, last: int, *, n_tiles: int, has_ledger: bool) -> Gallery:
    """The tiles nearest to the centroids of clusters, by size: from place `first` (0 is the largest) to before `last`.

    Args:
        has_ledger: whether the ledger is of these clusters: kept tiles are framed and counted.
    """
    rows = [list(some) for _, some in groupby(queries.by_cluster(layout, last, n_tiles), key=_cluster)][first:]
    tile_ids = [row["tile_id"] for some in rows for row in some]
    pixels = read_tiles(layout.folder("raw_corpus"), tile_ids)
    decisions = queries.decisions_of(layout, tile_ids) if has_ledger else {}
    n_kept = {row["cluster_id"]: row["n_kept"] for row in queries.kept_by_cluster(layout)} if has_ledger else {}
    quality = _quality(layout)
    guessed = "nearest to " if is_foreign(quality["scene_names"], quality["balance_over"]) else ""

    def note(row: dict[str, Any]) -> str:
        kept = f", {count(n_kept.get(row['cluster_id'], 0))} kept" if has_ledger else ""
        top = f", {share(row['n_top'], row['n_tiles'])} {guessed}{name(row['top_scene'])}"
        return f"{counted(row['n_tiles'], 'tile')}{kept}{top if len(quality['scene_names']) > 1 else ''}"

    def tile(row: dict[str, Any]) -> Tile:
        met = decisions.get(row["tile_id"], "")
        words = f"Cluster {row['cluster_id']}{', ' if met else ''}{name(met)}: {row['tile_id']}"
        return Tile(pixels[row["tile_id"]], words, kept=met == "kept")

    tile_rows = [
        TileRow(f"Cluster {some[0]['cluster_id']}", [tile(row) for row in some], note(some[0])) for some in rows
    ]
    which = _which(first, len(rows), quality["n_clusters_asked"])
    caption = f"{which}, each by the tiles nearest to its centroid."
    return Gallery("What the clusters hold", caption, tile_rows, framed="kept" if has_ledger else "")


def clusterings_tried(layout: Layout) -> Table | None:
    """How well each number of clusters that was tried recovers the scenes of the reference; None without one."""
    quality = _quality(layout)
    rows = [
        (
            count(each["n_clusters"]),
            f"{each['nmi']:.3f}",
            f"{each['purity']:.3f}",
            "used" if each["n_clusters"] == quality["n_clusters_asked"] else "",
        )
        for each in quality["quality"]
    ]
    columns = [
        Column("Clusters", numeric=True),
        Column("NMI", numeric=True),
        Column("Purity", numeric=True),
        Column(""),
    ]
    caption = (
        "How well clusters recover the reference's own scenes, 0 to 1: normalised mutual information, and the share of "
        "tiles whose cluster is mostly of their scene."
    )
    return Table("How many clusters?", caption, columns, rows, narrow=True) if rows else None


def _quality(layout: Layout) -> Any:
    return read_json(layout.file("quality"))


def _cluster(row: dict[str, Any]) -> int:
    return int(row["cluster_id"])


def _which(first: int, n: int, n_clusters: int) -> str:
    if first:
        return f"Clusters {count(first + 1)} to {count(first + n)} of {count(n_clusters)} by size"
    return f"The {n} largest of {count(n_clusters)}" if n < n_clusters else f"All {n}"


def _inside(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale values (n,) to 0.03 to 0.97; outliers are clipped to the edge."""
    low, high = np.quantile(values, [0.002, 0.998])
    return np.asarray(0.03 + 0.94 * np.clip(Axis(float(low), float(high)).places(values), 0, 1))


def _by_scene(
    x: NDArray[np.float64], y: NDArray[np.float64], kept: NDArray[np.bool_], scenes: NDArray[np.object_]
) -> tuple[list[Shape], list[tuple[str, str]]]:
    """Dots and their legend: what went in grey, then a colour for each of the scenes with the most kept tiles."""
    names, counts = np.unique(scenes[kept].astype(str), return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-int(counts[i]), names[i]))[:N_COLOURS]
    parts = [("dropped", "went", ~kept)]
    if len(names) == 1:
        parts.append(("kept", "kept", kept))
    else:
        parts += [(f"s{place}", name(names[i]), kept & (scenes == names[i])) for place, i in enumerate(order)]
    rest = ~np.any([some for _, _, some in parts], axis=0)
    if rest.any():
        parts.append(("ink", f"{len(names) - len(order):,} other scenes", rest))
    shapes = [dots(x[some], y[some], tone) for tone, _, some in parts]
    return shapes, [(tone, f"{words} ({count(some.sum())})") for tone, words, some in parts]


def _tiles_on_map(layout: Layout, x: NDArray[np.float64], y: NDArray[np.float64], tile_ids: list[str]) -> list[Placed]:
    """Tiles far apart from each other, where they lie."""
    chosen = spread_out(np.column_stack([ASPECT * x, y]), N_TILES)
    pixels = read_tiles(layout.folder("raw_corpus"), [tile_ids[i] for i in chosen])
    placed = [Placed(float(x[i]), float(y[i]), f"Tile {tile_ids[i]}", pixels[tile_ids[i]]) for i in chosen]
    return [one for one in placed if one.pixels is not None]
