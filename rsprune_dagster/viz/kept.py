"""What stayed: the quota of each scene, and its tiles beside those that went."""

from itertools import groupby
from typing import Any

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.viz import queries
from rsprune_dagster.viz.blocks import Bar, Column, Gallery, Table, Tile, TileRow
from rsprune_dagster.viz.counts import Counts, SceneCounts
from rsprune_dagster.viz.formatting import count, counted, name, share
from rsprune_dagster.viz.thumbnails import read_tiles

MAX_SCENES = 40
"""Rows of a table; smaller scenes are added up in one."""
N_SHOWN_SCENES = 12
N_TILES = 6


def quota_table(counts: Counts) -> Table:
    """A row per scene, the largest first; bars are drawn to the largest."""
    scenes = _merged(counts.scenes)
    most = max((scene.n_tiles for scene in scenes), default=1)
    columns = [
        Column("Scene"),
        Column("Kept of its tiles"),
        Column("Kept", numeric=True),
        Column("Candidates", numeric=True, minor=True),
        Column("Duplicates", numeric=True, minor=True),
        Column("Tiles", numeric=True),
        Column("Clusters", numeric=True, minor=True),
        Column("Share before", numeric=True, minor=True),
        Column("Share after", numeric=True, minor=True),
    ]
    n_tiles = sum(scene.n_tiles for scene in counts.scenes)
    rows = [
        (
            name(scene.scene),
            Bar(share(scene.n_kept, scene.n_tiles), scene.n_kept / most, scene.n_tiles / most),
            count(scene.n_kept),
            count(scene.n_candidates),
            count(scene.n_duplicate),
            count(scene.n_tiles),
            count(scene.n_clusters) if scene.n_clusters else "",
            share(scene.n_tiles, n_tiles),
            share(scene.n_kept, counts.n_kept),
        )
        for scene in scenes
    ]
    parts = ("n_kept", "n_candidates", "n_duplicate")
    sums = [sum(getattr(scene, part) for scene in counts.scenes) for part in parts]
    total = ("all", share(counts.n_kept, n_tiles), *(count(n) for n in sums), count(n_tiles), "", "", "")
    caption = (
        "Pale: the tiles of the scene that tell enough; solid: those that are kept. Shares are of all tiles with a "
        "scene, before and after. One cluster may hold tiles of several scenes."
    )
    return Table("Quotas by scene", caption, columns, rows, total)


def cluster_table(layout: Layout) -> Table:
    """A row per cluster, the largest first: without a reference the quotas are theirs."""
    clusters = queries.kept_by_cluster(layout)
    shown = clusters[:MAX_SCENES]
    most = max((row["n_tiles"] for row in shown), default=1)
    rows = [
        (
            f"cluster {row['cluster_id']}",
            Bar(share(row["n_kept"], row["n_tiles"]), row["n_kept"] / most, row["n_tiles"] / most),
            count(row["n_kept"]),
            count(row["n_tiles"]),
        )
        for row in shown
    ]
    n_shown, n_all = (sum(row["n_tiles"] for row in some) for some in (shown, clusters))
    part = f" The {MAX_SCENES} largest, with {share(n_shown, n_all)} of the tiles." if n_shown < n_all else ""
    caption = f"Pale: the tiles of the cluster; solid: those that are kept.{part}"
    columns = [
        Column("Cluster"),
        Column("Kept of its tiles"),
        Column("Kept", numeric=True),
        Column("Tiles", numeric=True),
    ]
    return Table("Quotas by cluster", caption, columns, rows)


def kept_and_unselected(layout: Layout, counts: Counts) -> Gallery:
    """For the largest scenes the best kept tiles, framed, then some that were not selected."""
    rows = queries.by_scene(layout, N_SHOWN_SCENES, N_TILES)
    pixels = read_tiles(layout.folder("raw_corpus"), [row["tile_id"] for row in rows])
    scenes = {scene.scene: scene for scene in counts.scenes}

    def tile(row: dict[str, Any]) -> Tile:
        kept = row["decision"] == "kept"
        words = f"kept, rank {row['rank']}" if kept else "not selected"
        return Tile(pixels[row["tile_id"]], f"{row['scene']}, {words}: {row['tile_id']}", kept=kept)

    tile_rows = [
        TileRow(name(scene), [tile(row) for row in some], _note(scenes[scene]))
        for scene, some in groupby(rows, key=lambda row: str(row["scene"]))
    ]
    shown = f"The {len(tile_rows)} largest of {count(len(scenes))} scenes. " if len(scenes) > len(tile_rows) else ""
    caption = f"{shown}Without a frame: tiles of the scene that were not selected."
    title = "Scene by scene: kept, and not needed" if counts.has_scenes else "Kept, and not needed"
    return Gallery(title, caption, tile_rows, framed="kept, the first of the order")


def _merged(scenes: tuple[SceneCounts, ...]) -> list[SceneCounts]:
    """At most MAX_SCENES rows; the last sums the smaller scenes, without their clusters, which they may share."""
    if len(scenes) <= MAX_SCENES:
        return list(scenes)
    head, tail = list(scenes[: MAX_SCENES - 1]), scenes[MAX_SCENES - 1 :]
    parts = ("n_tiles", "n_kept", "n_unselected", "n_duplicate")
    sums = {part: sum(getattr(scene, part) for scene in tail) for part in parts}
    return [*head, SceneCounts(f"{len(tail):,} smaller scenes", n_clusters=0, **sums)]


def _note(scene: SceneCounts) -> str:
    return f"{count(scene.n_kept)} of {counted(scene.n_candidates, 'candidate')} kept"
