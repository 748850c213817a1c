"""Stage 1: how many bits of entropy the tiles have, and where the threshold cuts."""

from functools import partial

import numpy as np

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.viz import queries
from rsprune_dagster.viz.blocks import Column, Figure, Gallery, Interval, Table, Tile, TileRow
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.formatting import NBSP, count, name, share
from rsprune_dagster.viz.plot import Axis, Placed, Plot, line, rectangles
from rsprune_dagster.viz.thumbnails import Rows, fetch, read_tiles

MAX_BITS = 8.0
BINS_PER_BIT = 10
MAX_SCENES = 40
N_TILES = 12
N_END_TILES = 24


def histogram(layout: Layout) -> Figure:
    """Tiles by their entropy, the dropped part in its own tone."""
    sql = f"""SELECT least(floor(entropy_bits * {BINS_PER_BIT}), {MAX_BITS * BINS_PER_BIT - 1})::INTEGER AS bin,
                     informative, count(*) AS n FROM scores GROUP BY ALL ORDER BY ALL"""
    heights = np.zeros((2, int(MAX_BITS * BINS_PER_BIT)))
    for row in fetch(sql, layout.tables("scores")):
        heights[int(row["informative"]), row["bin"]] = row["n"]
    threshold = threshold_bits(layout)
    n_below, n_all = int(heights[0].sum()), int(heights.sum())
    below = share(n_below, n_all)
    x = Axis(0, MAX_BITS)
    y = Axis(0, float(heights.sum(axis=0).max(initial=1)) * 1.06, vertical=True)
    left = np.arange(heights.shape[1]) / heights.shape[1]
    bars = partial(rectangles, left, left + 0.9 / heights.shape[1])
    middle, top = y.places(heights[0]), y.places(heights.sum(axis=0))
    shapes = [
        bars(top, middle, "kept"),  # a bin that the threshold cuts has both parts
        bars(middle, np.ones(len(left)), "low_information"),
        line(np.full(2, x.at(threshold)), np.array([0.0, 1.0]), "low_information"),
    ]
    plot = Plot(
        alt=f"Histogram of entropy: {below or 'none'} of the readable tiles lie below {threshold:.2f} bits",
        shapes=shapes,
        x_ticks=x.ticks(8),
        y_ticks=[tick for tick in y.ticks(4) if "." not in tick.text],
        x_label="Grey-level entropy (bits)",
        y_label="Tiles",
        placed=[
            Placed(
                x.at(threshold),
                0.05,
                f"threshold {threshold:.2f}{NBSP}bits",
                side="start" if threshold < MAX_BITS / 2 else "end",
            )
        ],
        aspect=2.6,
    )
    caption = f"Tiles in each tenth of a bit. {count(n_below)} of {count(n_all)} ({below}) lie below the threshold."
    legend = [("low_information", "below the threshold: these went"), ("kept", "enough to go on")]
    return Figure("Entropy of the tiles", caption, [plot], legend)


def threshold_bits(layout: Layout) -> float:
    """Tiles of less entropy were dropped."""
    return float(read_json(layout.file("threshold"))["threshold_bits"])


def around_threshold(layout: Layout) -> Gallery:
    """The tiles on both sides of the threshold: whether it is well placed shows here."""
    below, above = queries.around_threshold(layout, N_TILES)
    parts = [
        ("Just below", "these went", below[::-1], "Just below the threshold"),
        ("Just above", "these went on", above, "Just above the threshold"),
    ]
    return _rows(layout, "Is the threshold well placed?", "The tiles nearest to it on both sides.", parts)


def ends(layout: Layout) -> Gallery:
    """The tiles of least and of most entropy."""
    low, high = queries.entropy_ends(layout, N_END_TILES)
    parts = [("Lowest entropy", "", low, "Low entropy"), ("Highest entropy", "", high, "High entropy")]
    return _rows(layout, "Both ends of the entropy", "The tiles with the fewest bits, and with the most.", parts)


def reference_scenes(layout: Layout) -> Table | None:
    """Entropy of each scene of the reference against the threshold; None without a reference."""
    rows = queries.reference_entropy(layout)
    if not rows:
        return None
    threshold = threshold_bits(layout)
    cells = [
        (name(str(row["label"])), _interval(row, threshold), f"{row['median']:.2f}", count(row["n"]))
        for row in rows[:MAX_SCENES]
    ]
    shown = f"The {MAX_SCENES} of least entropy of {count(len(rows))} scenes. " if len(rows) > MAX_SCENES else ""
    caption = (
        f"{shown}From 0 to 8 bits: median, quartiles, 2nd to 98th percentile; the vertical line is the threshold, "
        "which may cut off no more than a small part of any of them."
    )
    columns = [
        Column("Scene"),
        Column("0 to 8 bits"),
        Column("Median, bits", numeric=True),
        Column("Tiles", numeric=True),
    ]
    return Table("Entropy of the reference's scenes", caption, columns, cells)


def _rows(layout: Layout, title: str, caption: str, parts: list[tuple[str, str, Rows, str]]) -> Gallery:
    pixels = read_tiles(layout.folder("raw_corpus"), [row["tile_id"] for _, _, rows, _ in parts for row in rows])
    tile_rows = [
        TileRow(
            heading,
            [
                Tile(pixels[row["tile_id"]], f"{words}: {row['tile_id']}", f"{row['entropy_bits']:.2f}{NBSP}bits")
                for row in rows
            ],
            note,
        )
        for heading, note, rows, words in parts
        if rows
    ]
    return Gallery(title, caption, tile_rows)


def _interval(row: dict[str, float], threshold: float) -> Interval:
    low, first, median, third, high = (row[key] / MAX_BITS for key in ("low", "first", "median", "third", "high"))
    words = (
        f"median {row['median']:.2f} bits, quartiles {row['first']:.2f} and {row['third']:.2f}, "
        f"2nd to 98th percentile {row['low']:.2f} to {row['high']:.2f}"
    )
    return Interval(words, low, median, high, box=(first, third), line=threshold / MAX_BITS)
