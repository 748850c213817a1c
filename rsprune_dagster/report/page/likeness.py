"""How the encoder sees the tiles: the embedding from above, and what its clusters hold."""

from itertools import groupby
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rsprune_dagster.corpus.tables import rows_at
from rsprune_dagster.pruning.method import even_rows
from rsprune_dagster.pruning.vectors import open_vectors
from rsprune_dagster.report.map import principal_plane, spread_out
from rsprune_dagster.report.page import pick
from rsprune_dagster.report.page.album import Rows, read_tiles
from rsprune_dagster.report.page.blocks import Block, Column, Figure, Gallery, Section, Table, Text, Tile, TileRow
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.plot import Placed, Plot, Shape, dots, scaled
from rsprune_dagster.report.page.tally import Tally
from rsprune_dagster.report.page.words import count, counted, name, share

MAX_DOTS = 4_000
N_COLOURS = 8
N_TILES = 14
N_CLUSTERS = 12
N_CLUSTER_TILES = 6


def likeness_section(folders: Folders, tally: Tally) -> Section:
    """The map of the embedding, the clusters, and how many clusters were tried."""
    lead = "A frozen encoder turns each tile into a vector; tiles that look alike lie together."
    blocks: list[Block] = [embedding_map(folders, tally), _clusters(folders, tally), *_tried(tally)]
    return Section("likeness", "What looks alike", lead, blocks)


def embedding_map(folders: Folders, tally: Tally) -> Block:
    """Kept tiles among all candidates, by the first two principal axes."""
    rows = even_rows(pq.ParquetFile(folders.subset / "ranking.parquet").metadata.num_rows, MAX_DOTS)
    if not len(rows):
        return Text("No tile was embedded.", absent=True)
    ranking = rows_at(folders.subset / "ranking.parquet", ["tile_id", "scene", "rank"], rows)
    vectors = open_vectors(folders.embeddings / "vectors").read_rows(rows)
    points, explained = principal_plane(np.asarray(vectors, np.float64))
    x, y = _spread(points[:, 0]), 1 - _spread(points[:, 1])
    kept = np.array([rank is not None and rank <= tally.n_kept for rank in ranking["rank"].to_pylist()], bool)
    scenes = np.asarray(ranking["scene"].to_pylist(), dtype=object)
    shapes, legend = _by_scene(x, y, kept, scenes)
    n = ranking.num_rows
    total = tally.n_kept + tally.decisions["unselected"] + tally.n_near_copies
    shown = f"{count(n)} of {count(total)} candidates, evenly drawn" if n < total else counted(n, "candidate")
    plot = Plot(
        alt=f"Map of the embedding: {count(kept.sum())} kept among {count(n)} candidates, in colour",
        shapes=shapes,
        x_label=f"First principal axis ({share(float(explained[0]))} of the variance)",
        y_label=f"Second ({share(float(explained[1]))})",
        placed=_pictures(folders, x, y, ranking["tile_id"].to_pylist()),
        aspect=1.7,
    )
    by_scene = ", by scene" if tally.has_scenes else ""
    caption = (
        f"{shown}; near are those that look alike. Grey: went. In colour: kept{by_scene}. A good subset covers the "
        "whole cloud, and its thin parts more than their share."
    )
    return Figure("Kept tiles among all tiles", caption, [plot], legend)


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Onto 0.03 to 0.97; a few tiles far out do not press the others together: they stand at the edge."""
    low, high = np.quantile(values, [0.002, 0.998])
    return np.asarray(0.03 + 0.94 * np.clip(scaled(values, float(low), float(high)), 0, 1))


def _by_scene(
    x: NDArray[np.float64], y: NDArray[np.float64], kept: NDArray[np.bool_], scenes: NDArray[np.object_]
) -> tuple[list[Shape], list[tuple[str, str]]]:
    names, counts = np.unique(scenes[kept].astype(str), return_counts=True)
    if len(names) == 1:
        tones = [("dropped", ~kept, "went"), ("kept", kept, "kept")]
        shapes = [Shape(dots(x[some], y[some]), tone, "dots", int(some.sum())) for tone, some, _ in tones]
        return shapes, [(tone, f"{words} ({count(some.sum())})") for tone, some, words in tones]
    order = sorted(range(len(names)), key=lambda i: (-int(counts[i]), names[i]))[:N_COLOURS]
    shapes = [Shape(dots(x[~kept], y[~kept]), "dropped", "dots", int((~kept).sum()))]
    legend = [("dropped", f"went ({count((~kept).sum())})")]
    coloured = np.zeros(len(kept), bool)
    for place, i in enumerate(order):
        mine = kept & (scenes == names[i])
        coloured |= mine
        shapes.append(Shape(dots(x[mine], y[mine]), f"s{place}", "dots", int(mine.sum())))
        legend.append((f"s{place}", f"{name(names[i])} ({count(mine.sum())})"))
    rest = kept & ~coloured
    if rest.any():
        shapes.insert(1, Shape(dots(x[rest], y[rest]), "ink", "dots", int(rest.sum())))
        legend.append(("ink", f"{len(names) - len(order):,} other scenes ({count(rest.sum())})"))
    return shapes, legend


def _pictures(folders: Folders, x: NDArray[np.float64], y: NDArray[np.float64], tile_ids: list[str]) -> list[Placed]:
    chosen = spread_out(np.column_stack([1.7 * x, y]), N_TILES)
    pictures = read_tiles(folders.corpus, [tile_ids[i] for i in chosen])
    return [
        Placed(float(x[i]), float(y[i]), f"Tile {tile_ids[i]}", picture=pictures[tile_ids[i]])
        for i in chosen
        if pictures[tile_ids[i]]
    ]


def _clusters(folders: Folders, tally: Tally) -> Gallery:
    rows = pick.by_cluster(folders, N_CLUSTERS, N_CLUSTER_TILES)
    pictures = read_tiles(folders.corpus, [row["tile_id"] for row in rows])
    groups = [list(some) for _, some in groupby(rows, key=lambda row: row["cluster_id"])]
    tile_rows = [
        TileRow(f"Cluster {some[0]['cluster_id']}", _note(some[0], tally), _tiles(some, pictures)) for some in groups
    ]
    n_clusters = tally.quality["n_clusters_asked"]
    shown = f"The {len(groups)} largest of {count(n_clusters)}" if len(groups) < n_clusters else f"All {len(groups)}"
    caption = f"{shown}, each by the tiles nearest to its centroid. Framed: kept."
    return Gallery("What the clusters hold", caption, tile_rows)


def _note(row: dict[str, Any], tally: Tally) -> str:
    guessed = "nearest to " if tally.is_foreign else ""
    top = f", {share(row['n_top'], row['n_tiles'])} {guessed}{name(row['top_scene'])}" if tally.has_scenes else ""
    return f"{counted(row['n_tiles'], 'tile')}, {count(row['n_kept'])} kept{top}"


def _tiles(rows: Rows, pictures: dict[str, str]) -> list[Tile]:
    return [
        Tile(
            pictures[row["tile_id"]],
            f"Cluster {row['cluster_id']}, {name(row['decision'])}: {row['tile_id']}",
            kept=row["decision"] == "kept",
        )
        for row in rows
    ]


def _tried(tally: Tally) -> list[Block]:
    measured = tally.quality["quality"]
    if not measured:
        return []
    asked = tally.quality["n_clusters_asked"]
    rows = [
        (
            count(each["n_clusters"]),
            f"{each['nmi']:.3f}",
            f"{each['purity']:.3f}",
            "used" if each["n_clusters"] == asked else "",
        )
        for each in measured
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
    return [Table("How many clusters?", caption, columns, rows, narrow=True)]
