"""Why the rest went, with examples of each reason."""

from collections.abc import Callable, Mapping
from typing import Any

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.viz import queries
from rsprune_dagster.viz.blocks import Code, Column, Gallery, Table, Tile, TileRow
from rsprune_dagster.viz.counts import Counts, n_rows
from rsprune_dagster.viz.formatting import NBSP, count, counted, name, share, shortened
from rsprune_dagster.viz.thumbnails import read_tiles

N_TILES = 12
N_PAIRS = 8
MAX_REASONS = 20


def reasons_table(layout: Layout) -> Table:
    """A row per decision: its count and one tile as an example."""
    rows = queries.reasons(layout)
    cells = [(name(row["decision"]), count(row["n"]), Code(row["tile_id"]), row["reason"]) for row in rows]
    caption = "Any other tile: `rsprune explain TILE`, or the job `explain_tile`. decisions.parquet has all tiles."
    columns = [Column("Decision"), Column("Tiles", numeric=True), Column("For example", minor=True), Column("Why")]
    return Table("What was decided, and why", caption, columns, cells)


def unselected(layout: Layout, counts: Counts) -> Gallery:
    """Tiles on both sides of the line where the order is cut."""
    inside, outside = queries.around_rank_cutoff(layout, counts.n_kept, N_TILES)
    pixels = read_tiles(layout.folder("raw_corpus"), [row["tile_id"] for row in inside + outside])

    def tile(row: dict[str, Any], kept: bool) -> Tile:
        rank = f"rank {row['rank']:,}"
        return Tile(pixels[row["tile_id"]], f"{row['scene']}, {rank}: {row['tile_id']}", rank, kept=kept)

    rows = [TileRow("The last that are kept", [tile(row, True) for row in reversed(inside)])]
    if outside:
        rows.append(TileRow("The first that went", [tile(row, False) for row in outside]))
    caption = (
        f"{counted(counts.decisions['unselected'], 'usable tile')} of ranks beyond {count(counts.n_kept)}: other tiles "
        "stand for them. Both sides of the line look alike, as they should: it is where the quota ends, not where "
        "quality does."
    )
    return Gallery(_title("Not selected", counts, "unselected"), caption, rows, framed="kept")


def duplicates(layout: Layout, counts: Counts) -> Gallery:
    """Pairs: the tile that went, and the one that stands for both."""
    rows = queries.copies(layout, N_PAIRS)
    pixels = read_tiles(layout.folder("raw_corpus"), [row[key] for row in rows for key in ("tile_id", "twin")])
    tiles = []
    for row in rows:
        kept, fate = row["twin_decision"] == "kept", name(row["twin_decision"])
        kind = "exact" if row["is_exact"] else "near"
        tiles.append(Tile(pixels[row["tile_id"]], f"Duplicate that went: {row['tile_id']}", kind))
        tiles.append(Tile(pixels[row["twin"]], f"Its twin, {fate}: {row['twin']}", fate, kept=kept))
    caption = (
        f"{count(counts.n_exact_copies)} have the same bytes as another tile, {count(counts.n_near_copies)} show "
        "nearly the same picture, turned or flipped as it may be. In each pair the left one went, and the right one "
        "stands for both."
    )
    title = _title("Duplicates", counts, "duplicate")
    return Gallery(title, caption, [TileRow("", tiles)], paired=True, framed="kept")


def low_information(layout: Layout, counts: Counts) -> Gallery:
    """Tiles below the threshold of entropy."""
    rows = queries.of_decision(layout, "low_information", N_TILES)
    pixels = read_tiles(layout.folder("raw_corpus"), [row["tile_id"] for row in rows])
    caption = (
        f"Below {counts.threshold['threshold_bits']:.2f}{NBSP}bits of grey-level entropy "
        f"({counts.threshold['threshold_origin']}). Blank, constant and nodata tiles teach a model nothing. "
        "Those nearest to the threshold are shown under Entropy."
    )
    tiles = [
        Tile(
            pixels[row["tile_id"]],
            f"Low information, {row['entropy_bits']:.2f}{NBSP}bits: {row['tile_id']}",
            f"{row['entropy_bits']:.2f}{NBSP}bits",
        )
        for row in rows
    ]
    return Gallery(_title("Low information", counts, "low_information"), caption, [TileRow("", tiles)])


def quarantine(layout: Layout, n_seen: int) -> Table:
    """Why tiles could not be used."""
    reasons = queries.quarantine_reasons(layout, MAX_REASONS)
    rows = [(row["reason"], count(row["n"]), Code(shortened(row["tile_id"], 48))) for row in reasons]
    n = n_rows(layout.file("quarantine"))
    rest = n - sum(row["n"] for row in reasons)
    caption = "Such tiles were set aside, and the run went on. Reasons that differ only in their numbers are one row."
    columns = [Column("Reason"), Column("Tiles", numeric=True), Column("For example")]
    total = ("other reasons", count(rest), "") if rest else ()
    return Table(f"Quarantined: {counted(n, 'tile')}, {share(n, n_seen)}", caption, columns, rows, total)


GALLERIES: Mapping[str, Callable[[Layout, Counts], Gallery]] = {
    "unselected": unselected,
    "duplicate": duplicates,
    "low_information": low_information,
}
"""Examples of a decision, by its name."""


def galleries(layout: Layout, counts: Counts) -> dict[str, Gallery]:
    """Examples of each decision that any tile met."""
    return {decision: make(layout, counts) for decision, make in GALLERIES.items() if counts.decisions[decision]}


def _title(words: str, counts: Counts, decision: str) -> str:
    n = counts.decisions[decision]
    return f"{words}: {counted(n, 'tile')}, {share(n, counts.n_seen)}"
