"""Why the rest went, with examples of each reason."""

from rsprune_dagster.report.page import pick
from rsprune_dagster.report.page.album import Rows, read_tiles
from rsprune_dagster.report.page.blocks import Block, Code, Column, Gallery, Section, Table, Text, Tile, TileRow
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.tally import Tally, quarantine_rows
from rsprune_dagster.report.page.words import NBSP, count, counted, name, share, shortened

N_TILES = 12
N_PAIRS = 8
MAX_REASONS = 12


def reasons_section(folders: Folders, tally: Tally) -> Section:
    """A block for each reason that any tile went for."""
    makers = {
        "unselected": _unselected,
        "duplicate": _duplicates,
        "low_information": _low_information,
        "quarantined": _quarantined,
    }
    blocks = [make(folders, tally) for decision, make in makers.items() if tally.decisions[decision]]
    n_went = tally.n_seen - tally.n_kept
    lead = f"{counted(n_went, 'tile')} went. decisions.parquet has the reason of each in a sentence; here are examples."
    return Section("went", "Why the rest went", lead, blocks or [Text("Every tile was kept.")])


def _unselected(folders: Folders, tally: Tally) -> Block:
    inside, outside = pick.around_the_line(folders, tally.n_kept, N_TILES)
    pictures = read_tiles(folders.corpus, [row["tile_id"] for row in inside + outside])
    rows = [TileRow("The last that are kept", "", [_ranked(row, pictures, kept=True) for row in reversed(inside)])]
    if outside:
        rows.append(TileRow("The first that went", "", [_ranked(row, pictures, kept=False) for row in outside]))
    caption = (
        f"{counted(tally.decisions['unselected'], 'usable tile')} of ranks beyond {count(tally.n_kept)}: other tiles "
        "stand for them. Both sides of the line look alike, as they should: it is where the quota ends, not where "
        "quality does."
    )
    return Gallery(_title("Not selected", tally, "unselected"), caption, rows)


def _ranked(row: dict[str, object], pictures: dict[str, str], *, kept: bool) -> Tile:
    tile_id, rank = str(row["tile_id"]), f"rank {row['rank']:,}"
    return Tile(pictures[tile_id], f"{row['scene']}, {rank}: {tile_id}", rank, kept=kept)


def _duplicates(folders: Folders, tally: Tally) -> Block:
    rows = pick.copies(folders, N_PAIRS)
    caption = (
        f"{count(tally.n_exact_copies)} have the same bytes as another tile, {count(tally.n_near_copies)} show nearly "
        "the same picture, turned or flipped as it may be. "
    )
    pictures = read_tiles(folders.corpus, [tile_id for row in rows for tile_id in (row["tile_id"], row["twin"])])
    tiles = [tile for row in rows for tile in _pair(row, pictures)]
    caption += "In each pair the left one went, and the right one stands for both; framed where it is kept."
    return Gallery(_title("Duplicates", tally, "duplicate"), caption, [TileRow("", "", tiles)], paired=True)


def _pair(row: dict[str, object], pictures: dict[str, str]) -> tuple[Tile, Tile]:
    copy, twin = str(row["tile_id"]), str(row["twin"])
    kept = row["twin_decision"] == "kept"
    fate = "kept" if kept else name(str(row["twin_decision"]))
    return (
        Tile(pictures[copy], f"Duplicate that went: {copy}", "exact" if row["is_exact"] else "near"),
        Tile(pictures[twin], f"Its twin, {fate}: {twin}", fate, kept=kept),
    )


def _low_information(folders: Folders, tally: Tally) -> Block:
    typical = pick.of_decision(folders, "low_information", N_TILES)
    pictures = read_tiles(folders.corpus, [row["tile_id"] for row in typical])
    caption = (
        f"Below {tally.threshold['threshold_bits']:.2f}{NBSP}bits of grey-level entropy "
        f"({tally.threshold['threshold_origin']}). Blank, constant and nodata tiles teach a model nothing. "
        "Those nearest to the threshold are shown under Entropy."
    )
    tiles = [_bits(row, pictures) for row in typical]
    return Gallery(_title("Low information", tally, "low_information"), caption, [TileRow("", "", tiles)])


def _bits(row: dict[str, object], pictures: dict[str, str]) -> Tile:
    tile_id, bits = str(row["tile_id"]), f"{row['entropy_bits']:.2f}{NBSP}bits"
    return Tile(pictures[tile_id], f"Low information, {bits}: {tile_id}", bits)


def _quarantined(folders: Folders, tally: Tally) -> Block:
    reasons: Rows = quarantine_rows(folders, MAX_REASONS)
    rows = [(row["reason"], count(row["n"]), Code(shortened(row["tile_id"], 48))) for row in reasons]
    caption = "Such tiles were set aside, and the run went on. Reasons that differ only in their numbers are one row."
    columns = [Column("Reason"), Column("Tiles", numeric=True), Column("For example")]
    rest = tally.decisions["quarantined"] - sum(row["n"] for row in reasons)
    total = ("other reasons", count(rest), "") if rest else ()
    return Table(_title("Quarantined", tally, "quarantined"), caption, columns, rows, total)


def _title(words: str, tally: Tally, decision: str) -> str:
    n = tally.decisions[decision]
    return f"{words}: {counted(n, 'tile')}, {share(n, tally.n_seen)}"
