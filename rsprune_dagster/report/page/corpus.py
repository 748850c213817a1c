"""What went in: the corpus, and the reference that told what scenes there are."""

from collections.abc import Mapping
from typing import Any

from rsprune_dagster.report.page import pick
from rsprune_dagster.report.page.album import Rows, read_tiles
from rsprune_dagster.report.page.blocks import Block, Facts, Gallery, Section, Text, Tile, TileRow
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.place import place_figures
from rsprune_dagster.report.page.tally import Tally, corpus_rows, read_json, reference_counts
from rsprune_dagster.report.page.words import NBSP, count, counted, listed, quantity, shortened, size

N_SAMPLE = 24
MAX_REFERENCE_SCENES = 12
TIMES = "\N{MULTIPLICATION SIGN}"

KINDS = {
    "file": ("image file", "image files"),
    "tar": ("tar", "tars"),
    "parquet": ("Parquet file", "Parquet files"),
    "window": ("scene file cut into windows", "scene files cut into windows"),
}


def corpus_section(folders: Folders, tally: Tally) -> Section:
    """Facts, a sample, the map where tiles have coordinates."""
    rows = corpus_rows(folders)
    blocks: list[Block] = [Facts(_facts(tally, rows, folders)), _sample(folders)]
    n_placed = rows["sums"][0]["n_placed"]
    if n_placed:
        blocks += place_figures(folders, n_placed)
    else:
        blocks.append(Text("No tile of this corpus says where on Earth it lies, so there is no map.", absent=True))
    lead = "Every tile of the corpus is read and decoded once where it lies; nothing is copied."
    return Section("corpus", "What went in", lead, blocks)


def _facts(tally: Tally, rows: Mapping[str, Rows], folders: Folders) -> list[tuple[str, str]]:
    sums = rows["sums"][0]
    facts = [
        ("Tiles seen", f"{count(tally.n_seen)}, of which {count(tally.n_readable)} readable"),
        ("Read from", listed([_kind(row) for row in rows["kinds"]])),
        ("Tile size", _common(rows["sizes"], lambda row: f"{row['width_px']} {TIMES} {row['height_px']}{NBSP}px")),
        ("Bands", _common(rows["samples"], lambda row: f"{row['n_bands']} {TIMES} {row['dtype']}")),
    ]
    if sums["n_sized"]:
        facts.append(("Encoded size", f"{size(sums['n_bytes'])} in {counted(sums['n_sized'], 'tile')}"))
    if sums["n_gsd"]:
        facts.append(("Ground sample distance", _range(sums["gsd_low_m"], sums["gsd_high_m"], "m")))
    if sums["n_crs"]:
        facts.append(
            ("Reference systems", f"{counted(sums['n_crs_kinds'], 'CRS', 'CRS')} in {counted(sums['n_crs'], 'tile')}")
        )
    ignored = read_json(folders.corpus / "corpus.json")["ignored_files"]
    if ignored:
        kinds = [f"{count(n)} {suffix or 'without suffix'}" for suffix, n in list(ignored.items())[:4]]
        facts.append(("Files that are no tiles", listed(kinds)))
    return [*facts, ("Reference", _reference(folders))]


def _kind(row: Mapping[str, Any]) -> str:
    one, many = KINDS[row["kind"]]
    tiles = "" if row["kind"] == "file" else f" ({counted(row['n'], 'tile')})"
    return f"{counted(row['n_uris'], one, many)}{tiles}"


def _common(rows: Rows, words: Any) -> str:
    """The most common values with their numbers of tiles, unless there is but one."""
    if len(rows) == 1:
        return str(words(rows[0]))
    told = [f"{words(row)} ({count(row['n'])})" for row in rows[:3]]
    return f"{', '.join(told)}{' and others' if len(rows) > 3 else ''}"


def _range(low: float, high: float, unit: str) -> str:
    ends = dict.fromkeys(quantity(value) for value in (low, high))
    return f"{' to '.join(ends)}{NBSP}{unit}"


def _reference(folders: Folders) -> str:
    scenes = reference_counts(folders)
    if not scenes:
        return "none was given"
    names = sorted(shortened(str(row["label"]), 24) for row in scenes)
    more = f" and {len(names) - MAX_REFERENCE_SCENES} more" if len(names) > MAX_REFERENCE_SCENES else ""
    n_tiles = sum(row["n"] for row in scenes)
    return (
        f"{counted(n_tiles, 'labelled tile')} of {counted(len(scenes), 'scene')}: "
        f"{', '.join(names[:MAX_REFERENCE_SCENES])}{more}"
    )


def _sample(folders: Folders) -> Gallery:
    rows = pick.sample(folders, N_SAMPLE)
    pictures = read_tiles(folders.corpus, [row["tile_id"] for row in rows])
    tiles = [
        Tile(pictures[row["tile_id"]], f"Tile {row['tile_id']}, {row['decision'].replace('_', ' ')}") for row in rows
    ]
    caption = "Readable tiles in the order of their content hashes, as good as a random draw: blanks, copies and all."
    return Gallery("A look into the corpus", caption, [TileRow("", "", tiles)])
