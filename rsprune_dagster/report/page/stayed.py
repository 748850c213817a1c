"""What stayed: the quota of each scene, and its tiles beside those that went."""

from itertools import groupby

from rsprune_dagster.report.page import pick
from rsprune_dagster.report.page.album import Rows, read_tiles
from rsprune_dagster.report.page.blocks import Bar, Block, Column, Gallery, Section, Table, Tile, TileRow
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.tally import SceneTally, Tally, cluster_counts
from rsprune_dagster.report.page.words import count, counted, name, share

MAX_SCENES = 40
"""Rows of a table; smaller scenes are added up in one."""
N_SHOWN_SCENES = 12
N_TILES = 6


def stayed_section(folders: Folders, tally: Tally) -> Section:
    """Quotas as a table, and the largest scenes as tiles."""
    over_clusters = tally.quality["balance_over"] == "clusters"
    blocks: list[Block] = []
    if tally.has_scenes:
        blocks.append(quota_table(tally))
    elif over_clusters:
        blocks.append(cluster_table(folders, tally))
    blocks.append(_gallery(folders, tally))
    balanced = "clusters" if over_clusters else "scenes"
    lead = (
        f"The quota is shared out over {balanced}; inside each, a tile is taken next when it brings what is kept "
        "closer to the whole."
        if tally.summary["strategy"] == "rsprune"
        else f"Chosen by the baseline {name(tally.summary['strategy'])}."
    )
    return Section("kept", "What stayed", lead, blocks)


def quota_table(tally: Tally) -> Table:
    """A row per scene, the largest first; bars are drawn to the largest."""
    scenes = merged(tally.scenes)
    most = max((scene.n_tiles for scene in scenes), default=1)
    columns = [
        Column("Scene"),
        Column("Kept of its tiles"),
        Column("Kept", numeric=True),
        Column("Candidates", numeric=True, minor=True),
        Column("Duplicates", numeric=True, minor=True),
        Column("Tiles", numeric=True),
        Column("Share before", numeric=True, minor=True),
        Column("Share after", numeric=True, minor=True),
    ]
    n_tiles = sum(scene.n_tiles for scene in tally.scenes)
    rows = [
        (
            name(scene.scene),
            Bar(scene.n_kept / most, share(scene.n_kept, scene.n_tiles), of=scene.n_tiles / most),
            count(scene.n_kept),
            count(scene.n_candidates),
            count(scene.n_duplicate),
            count(scene.n_tiles),
            share(scene.n_tiles, n_tiles),
            share(scene.n_kept, tally.n_kept),
        )
        for scene in scenes
    ]
    totals = [sum(getattr(scene, part) for scene in tally.scenes) for part in ("n_kept", "n_candidates", "n_duplicate")]
    total = ("all", share(tally.n_kept, n_tiles), *(count(n) for n in totals), count(n_tiles), "", "")
    caption = (
        "Pale: the tiles of the scene that tell enough; solid: those that are kept. Shares are of all tiles with a "
        "scene, before and after."
    )
    return Table("Quotas by scene", caption, columns, rows, total)


def cluster_table(folders: Folders, tally: Tally) -> Table:
    """A row per cluster, the largest first: without a reference the quotas are theirs."""
    clusters = cluster_counts(folders, MAX_SCENES)
    most = max((row["n_tiles"] for row in clusters), default=1)
    rows = [
        (
            f"cluster {row['cluster_id']}",
            Bar(row["n_kept"] / most, share(row["n_kept"], row["n_tiles"]), of=row["n_tiles"] / most),
            count(row["n_kept"]),
            count(row["n_tiles"]),
        )
        for row in clusters
    ]
    n_shown = sum(row["n_tiles"] for row in clusters)
    n_tiles = sum(scene.n_tiles for scene in tally.scenes)
    shown = f" The {MAX_SCENES} largest, with {share(n_shown, n_tiles)} of the tiles." if n_shown < n_tiles else ""
    caption = f"Pale: the tiles of the cluster; solid: those that are kept.{shown}"
    columns = [
        Column("Cluster"),
        Column("Kept of its tiles"),
        Column("Kept", numeric=True),
        Column("Tiles", numeric=True),
    ]
    return Table("Quotas by cluster", caption, columns, rows)


def merged(scenes: tuple[SceneTally, ...]) -> list[SceneTally]:
    """The largest MAX_SCENES, the smaller ones added up as the last."""
    if len(scenes) <= MAX_SCENES:
        return list(scenes)
    head, tail = list(scenes[: MAX_SCENES - 1]), scenes[MAX_SCENES - 1 :]
    parts = ("n_tiles", "n_kept", "n_unselected", "n_duplicate", "n_clusters")
    sums = {part: sum(getattr(scene, part) for scene in tail) for part in parts}
    return [*head, SceneTally(f"{len(tail):,} smaller scenes", **sums)]


def _gallery(folders: Folders, tally: Tally) -> Gallery:
    rows = pick.by_scene(folders, N_SHOWN_SCENES, N_TILES)
    pictures = read_tiles(folders.corpus, [row["tile_id"] for row in rows])
    counts = {scene.scene: scene for scene in tally.scenes}
    tile_rows = [
        TileRow(name(scene), _note(counts[scene]), _tiles(list(some), pictures))
        for scene, some in groupby(rows, key=lambda row: row["scene"])
    ]
    shown = (
        f"The {len(tile_rows)} largest of {count(len(tally.scenes))} scenes. "
        if len(tally.scenes) > len(tile_rows)
        else ""
    )
    caption = f"{shown}Framed: the first that are kept. Without a frame: tiles of the scene that were not selected."
    order = {scene.scene: place for place, scene in enumerate(tally.scenes)}
    tile_rows.sort(key=lambda row: next(order[scene] for scene in order if name(scene) == row.heading))
    title = "Scene by scene: kept, and not needed" if tally.has_scenes else "Kept, and not needed"
    return Gallery(title, caption, tile_rows)


def _note(scene: SceneTally) -> str:
    return f"{count(scene.n_kept)} of {counted(scene.n_candidates, 'candidate')} kept"


def _tiles(rows: Rows, pictures: dict[str, str]) -> list[Tile]:
    tiles = []
    for row in rows:
        kept = row["decision"] == "kept"
        words = f"kept, rank {row['rank']}" if kept else "not selected"
        tiles.append(Tile(pictures[row["tile_id"]], f"{row['scene']}, {words}: {row['tile_id']}", kept=kept))
    return tiles
