"""Stage 1: how many bits of entropy the tiles have, and where the threshold cuts."""

import numpy as np

from rsprune_dagster.report.page import pick
from rsprune_dagster.report.page.album import fetch, read_tiles
from rsprune_dagster.report.page.blocks import Block, Box, Column, Figure, Gallery, Section, Table, Tile, TileRow
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.plot import Placed, Plot, Shape, Tick, linear_ticks, rectangles, upright
from rsprune_dagster.report.page.tally import Tally, reference_counts
from rsprune_dagster.report.page.words import NBSP, count, name, share

MAX_BITS = 8.0
BINS_PER_BIT = 10
MAX_SCENES = 30
N_TILES = 8


def bits_section(folders: Folders, tally: Tally) -> Section:
    """The histogram, the tiles on both sides of the threshold, and the reference's scenes."""
    blocks: list[Block] = [_histogram(folders, tally)]
    if tally.decisions["low_information"]:
        blocks.append(_sides(folders))
    blocks += _scenes(folders, tally.threshold["threshold_bits"])
    lead = (
        "Shannon entropy of a tile's grey levels, 0 to 8 bits. A bare threshold would erase calm water and closed "
        "forest, so it is calibrated on the reference where there is one."
    )
    return Section("entropy", "Entropy", lead, blocks)


def _histogram(folders: Folders, tally: Tally) -> Figure:
    sql = f"""SELECT least(floor(entropy_bits * {BINS_PER_BIT}), {MAX_BITS * BINS_PER_BIT - 1})::INTEGER AS bin,
                     informative, count(*) AS n FROM scores GROUP BY ALL ORDER BY ALL"""
    heights = np.zeros((2, int(MAX_BITS * BINS_PER_BIT)))
    for row in fetch(sql, {"scores": folders.scores / "scores.parquet"}):
        heights[int(row["informative"]), row["bin"]] = row["n"]
    top = float(heights.sum(axis=0).max(initial=1)) * 1.06
    threshold = float(tally.threshold["threshold_bits"])
    share_below = share(tally.decisions["low_information"], tally.n_readable)
    plot = Plot(
        alt=f"Histogram of entropy: {share_below or 'none'} of the readable tiles lie below {threshold:.2f} bits",
        shapes=_bars(heights, top, threshold),
        x_ticks=[Tick(bits / MAX_BITS, f"{bits:.0f}") for bits in range(9)],
        y_ticks=[Tick(1 - n / top, count(n)) for n in linear_ticks(0, top, n=4) if n == int(n)],
        x_label="Grey-level entropy (bits)",
        y_label="Tiles",
        placed=[Placed(threshold / MAX_BITS, 0.05, f"threshold {threshold:.2f}{NBSP}bits", side="right")],
        aspect=2.6,
    )
    caption = (
        f"Tiles in each tenth of a bit. {count(tally.decisions['low_information'])} of {count(tally.n_readable)} "
        f"({share_below}) lie below the threshold and went."
    )
    legend = [("low_information", "below the threshold"), ("kept", "told enough to go on")]
    return Figure("How much the tiles tell", caption, [plot], legend)


def _bars(heights: np.ndarray, top: float, threshold: float) -> list[Shape]:
    """The dropped part from the ground, the rest upon it: a bin that the threshold cuts has both."""
    n_bins = heights.shape[1]
    left, right = np.arange(n_bins) / n_bins, (np.arange(n_bins) + 0.9) / n_bins
    ground = np.ones(n_bins)
    middle, roof = 1 - heights[0] / top, 1 - heights.sum(axis=0) / top
    return [
        Shape(rectangles(left, right, roof, middle), "kept"),
        Shape(rectangles(left, right, middle, ground), "low_information"),
        Shape(upright(threshold / MAX_BITS), "low_information", "line"),
    ]


def _sides(folders: Folders) -> Gallery:
    below, above = pick.around_threshold(folders, N_TILES)
    pictures = read_tiles(folders.corpus, [row["tile_id"] for row in below + above])

    def tiles(rows: list[dict[str, object]], side: str) -> list[Tile]:
        return [
            Tile(
                pictures[str(row["tile_id"])],
                f"{side} the threshold: {row['tile_id']}",
                f"{row['entropy_bits']:.2f}{NBSP}bits",
            )
            for row in rows
        ]

    rows = [
        TileRow("Just below", "these went", tiles(below[::-1], "Just below")),
        TileRow("Just above", "these went on", tiles(above, "Just above")),
    ]
    return Gallery("Is the threshold well placed?", "The tiles nearest to it on both sides.", rows)


def _scenes(folders: Folders, threshold: float) -> list[Block]:
    rows = reference_counts(folders)
    if not rows:
        return []
    cells = [
        (
            name(str(row["label"])),
            _box(row, threshold),
            f"{row['median']:.2f}",
            count(row["n"]),
        )
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
    return [Table("Entropy of the reference's scenes", caption, columns, cells)]


def _box(row: dict[str, float], threshold: float) -> Box:
    low, first, median, third, high = (row[key] / MAX_BITS for key in ("low", "first", "median", "third", "high"))
    words = f"median {row['median']:.2f} bits, quartiles {row['first']:.2f} and {row['third']:.2f}"
    return Box(low, first, median, third, high, line=threshold / MAX_BITS, alt=words)
