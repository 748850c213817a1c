"""What went in: the corpus, and the reference that told what scenes there are."""

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.corpus.options import ignored_files
from rsprune_dagster.viz import queries
from rsprune_dagster.viz.blocks import Gallery, Tile, TileRow
from rsprune_dagster.viz.counts import n_rows
from rsprune_dagster.viz.formatting import NBSP, count, counted, listed, name, quantity, shortened, size
from rsprune_dagster.viz.thumbnails import Rows, read_tiles

N_SAMPLE = 32
N_SCENES = 40
N_PER_SCENE = 8
MAX_REFERENCE_SCENES = 12
TIMES = "\N{MULTIPLICATION SIGN}"

KINDS = {
    "file": ("image file", "image files"),
    "tar": ("tar", "tars"),
    "parquet": ("Parquet file", "Parquet files"),
    "window": ("scene file cut into windows", "scene files cut into windows"),
}


def facts(layout: Layout) -> list[tuple[str, str]]:
    """What the corpus consists of."""
    rows = queries.corpus_facts(layout)
    sums = rows["sums"][0]
    n_readable = n_rows(layout.file("manifest"))
    n_seen = n_readable + n_rows(layout.file("quarantine"))
    found = [
        ("Tiles seen", f"{count(n_seen)}, of which {count(n_readable)} readable"),
        ("Read from", listed([_kind(row) for row in rows["kinds"]])),
        ("Tile size", _common(rows["sizes"], lambda row: f"{row['width_px']} {TIMES} {row['height_px']}{NBSP}px")),
        ("Bands", _common(rows["samples"], lambda row: f"{row['n_bands']} {TIMES} {row['dtype']}")),
    ]
    if sums["n_sized"]:
        found.append(("Encoded size", f"{size(sums['n_bytes'])} in {counted(sums['n_sized'], 'tile')}"))
    if sums["n_gsd"]:
        ends = dict.fromkeys(quantity(sums[key]) for key in ("gsd_low_m", "gsd_high_m"))
        found.append(("Ground sample distance", f"{' to '.join(ends)}{NBSP}m"))
    if sums["n_crs"]:
        words = f"{counted(sums['n_crs_kinds'], 'CRS', 'CRS')} in {counted(sums['n_crs'], 'tile')}"
        found.append(("Reference systems", words))
    ignored = ignored_files(layout.folder("raw_corpus"))
    if ignored:
        kinds = [f"{count(n)} {suffix or 'without suffix'}" for suffix, n in ignored.items()]
        more = [f"{count(len(kinds) - 11)} other kinds"] if len(kinds) > 12 else []
        found.append(("Files that are no tiles", listed([*kinds[: 11 if more else 12], *more])))
    return found


def reference_fact(layout: Layout) -> tuple[str, str]:
    """What the reference consists of."""
    scenes = queries.reference_entropy(layout)
    if not scenes:
        return "Reference", "none was given"
    names = sorted(shortened(str(row["label"]), 24) for row in scenes)
    more = f" and {len(names) - MAX_REFERENCE_SCENES} more" if len(names) > MAX_REFERENCE_SCENES else ""
    n_tiles = sum(row["n"] for row in scenes)
    return "Reference", (
        f"{counted(n_tiles, 'labelled tile')} of {counted(len(scenes), 'scene')}: "
        f"{', '.join(names[:MAX_REFERENCE_SCENES])}{more}"
    )


def sample(layout: Layout, *, has_ledger: bool) -> Gallery:
    """Tiles as good as drawn at random. has_ledger: whether a ledger has a decision for each of them."""
    tile_ids = [row["tile_id"] for row in queries.sample(layout, N_SAMPLE)]
    pixels = read_tiles(layout.folder("raw_corpus"), tile_ids)
    met = queries.decisions_of(layout, tile_ids) if has_ledger else {}
    tiles = [Tile(pixels[one], f"Tile {one}{', ' if has_ledger else ''}{name(met.get(one, ''))}") for one in tile_ids]
    caption = "Readable tiles in the order of their content hashes, as good as a random draw: blanks, copies and all."
    return Gallery("A look into the corpus", caption, [TileRow("", tiles)])


def reference_tiles(layout: Layout) -> Gallery:
    """A row of tiles for each scene of the reference."""
    rows = queries.by_label(layout, N_SCENES, N_PER_SCENE)
    pixels = read_tiles(layout.folder("reference_scenes"), [row["tile_id"] for row in rows])
    tile_rows = [
        TileRow(name(label), [Tile(pixels[row["tile_id"]], f"{label}: {row['tile_id']}") for row in some])
        for label, some in groupby(rows, key=lambda row: str(row["label"]))
    ]
    return Gallery("Scenes of the reference", "In the order of the content hashes.", tile_rows)


def _kind(row: Mapping[str, Any]) -> str:
    one, many = KINDS[row["kind"]]
    tiles = "" if row["kind"] == "file" else f" ({counted(row['n'], 'tile')})"
    return f"{counted(row['n_uris'], one, many)}{tiles}"


def _common(rows: Rows, words: Callable[[Mapping[str, Any]], str]) -> str:
    """The most common values with their numbers of tiles, unless there is but one."""
    if len(rows) == 1:
        return words(rows[0])
    told = [f"{words(row)} ({count(row['n'])})" for row in rows[:3]]
    return f"{', '.join(told)}{' and others' if len(rows) > 3 else ''}"
