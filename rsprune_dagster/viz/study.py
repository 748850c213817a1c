"""Whether pruning pays: the same training on the full corpus, on random tiles and on pruned ones.

Read from summary.json of pruning_study as it is: pictures show what was measured and compute nothing anew.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from rsprune_dagster.config.layout import STUDY_SUMMARY
from rsprune_dagster.study.arms import FULL, SHARES, parse_arm
from rsprune_dagster.study.results import SHOWN_COLUMNS, read_results
from rsprune_dagster.study.summary import larger_is_better
from rsprune_dagster.viz.blocks import Block, Column, Figure, Gallery, Table, Text, Tile, TileRow
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.evaluation import score_label
from rsprune_dagster.viz.formatting import NBSP, count, counted, quantity
from rsprune_dagster.viz.plot import Axis, Plot, Shape, band, line

MAX_ARMS = 8
"""As many as there are colours; further arms are in the table alone."""
MAX_ROWS = 24
MAX_SAMPLES = 12

Summary = Mapping[str, Any]
"""As `study.summary.Summary.as_json` gives it."""


def read_summary(folder: Path) -> Summary | None:
    """The summary in the folder of pruning_study; None before its first run came to its end."""
    path = folder / STUDY_SUMMARY
    return read_json(path) if path.is_file() else None


def blocks(folder: Path) -> list[Block]:
    """Sentences, curves, a row for each arm, samples."""
    summary = read_summary(folder)
    if summary is None:
        return [Text("The study has no summary yet (pruning_study).", absent=True)]
    shown = samples(folder, summary)
    sentences = [Text(sentence) for sentence in summary.get("verdicts", [])]
    return [*sentences, convergence(summary), arms_table(summary), *([shown] if shown.rows else [])]


def convergence(summary: Summary) -> Figure:
    """The score against the training images seen, a line for each arm, in a band where seeds tell of a spread.

    The grey line is where the full corpus ends; an arm that meets it further left needs fewer images.
    """
    arms = summary["arms"][:MAX_ARMS]
    points = [point for arm in arms for point in arm["curve"]]
    ends = [value[key] for _, value in points for key in ("value", "low", "high") if value[key] is not None]
    x = Axis(min(n for n, _ in points), max(n for n, _ in points), log=True)
    y = Axis(min(*ends, 0.0), max(ends) * 1.05, vertical=True)
    shapes = [shape for i, arm in enumerate(arms) for shape in _curve(arm, f"s{i}", x, y)]
    full = [arm["curve"][-1][1]["value"] for arm in arms if arm["arm"] == FULL]
    shapes += [line(np.array([0.0, 1.0]), np.full(2, y.at(value)), "dropped") for value in full]
    score = score_label(summary["score"])
    plot = Plot(
        alt=f"{score} against training images for {len(arms)} arms",
        shapes=shapes,
        x_ticks=x.ticks(),
        y_ticks=y.ticks(4),
        x_label="Training images seen",
        y_label=f"{score}; {'higher' if larger_is_better(summary['score']) else 'lower'} is better",
    )
    legend = [(f"s{i}", f"{arm_label(arm['arm'])} ({counted(arm['n_tiles'], 'tile')})") for i, arm in enumerate(arms)]
    caption = (
        f"The same network, the same {count(summary['n_images'])} training images, other tiles. Bands are "
        f"{100 * summary['level']:g} % intervals over seeds; where there is none, one seed tells of no spread. The "
        "grey line is where the full corpus ends."
    )
    return Figure("Does pruning pay?", caption, [plot], legend)


def arms_table(summary: Summary) -> Table:
    """A row for each arm."""
    rows = [
        (
            arm_label(arm["arm"]),
            count(arm["n_tiles"]),
            count(len(arm["seeds"])),
            spread(arm["curve"][-1][1]),
            spread(arm["to_full"], signed=True) if arm.get("to_full") else "",
            spread(arm["to_random"], signed=True) if arm.get("to_random") else "",
            _needed(arm.get("images_needed") or (), summary["n_images"]),
        )
        for arm in summary["arms"][:MAX_ROWS]
    ]
    columns = [
        Column("Arm"),
        Column("Tiles", numeric=True),
        Column("Seeds", numeric=True, minor=True),
        Column(f"{score_label(summary['score'])} at the end", numeric=True),
        Column("Less full corpus", numeric=True),
        Column("Less random tiles", numeric=True, minor=True),
        Column("Images needed", numeric=True, minor=True),
    ]
    caption = (
        "Means over seeds with their intervals; differences are taken seed by seed. Images needed: until the full "
        "corpus' final score, median."
    )
    return Table("The arms of the study", caption, columns, rows)


def samples(folder: Path, summary: Summary) -> Gallery:
    """A row of samples for each arm; in a column the same noise."""
    first = {result.arm: result.seed for result in reversed(read_results(folder))}
    rows = []
    for arm in [arm["arm"] for arm in summary["arms"] if arm["arm"] in first]:
        sheet = np.asarray(Image.open(folder / arm / f"{first[arm]}.png").convert("RGB"))
        edge = sheet.shape[1] // SHOWN_COLUMNS
        places = [(y, x) for y in range(0, sheet.shape[0], edge) for x in range(0, sheet.shape[1], edge)]
        words = f"Sample of {arm_label(arm)}"
        tiles = [Tile(sheet[y : y + edge, x : x + edge], words) for y, x in places[:MAX_SAMPLES]]
        rows.append(TileRow(arm_label(arm), tiles))
    return Gallery("Samples of the same noise", "In a column all models begin with the same noise.", rows)


def arm_label(arm: str) -> str:
    """`rsprune-0.15` as `rsprune 15 %`."""
    chosen = parse_arm(arm)
    if chosen.strategy in SHARES:
        return "full corpus" if chosen.strategy == FULL else "none, random weights"
    return f"{chosen.strategy.replace('_', ' ')} {100 * chosen.keep_fraction:.0f}{NBSP}%"


def spread(estimate: Mapping[str, Any], *, signed: bool = False) -> str:
    """`12.3 ± 0.4`; without the spread where one seed tells of none."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    text = f"{'+' if signed and value > 0 else ''}{quantity(value)}"
    if low is None or high is None or math.isnan(high - low):
        return text
    half = (high - low) / 2
    return f"{text} ± {half:,.0f}" if abs(value) >= 1000 else f"{text} ± {half:.2g}"


def _curve(arm: Mapping[str, Any], tone: str, x: Axis, y: Axis) -> list[Shape]:
    at = x.places([n_images for n_images, _ in arm["curve"]])
    middle, bottom, top = (
        y.places([value[key] if value[key] is not None else value["value"] for _, value in arm["curve"]])
        for key in ("value", "low", "high")
    )
    return [band(at, top, bottom, tone), line(at, middle, tone)]


def _needed(images: tuple[float | None, ...], n_images: int) -> str:
    """The median over seeds; a seed that does not reach the score (None) counts as endless."""
    if not images:
        return ""
    middle = median(math.inf if n is None else n for n in images)
    return "not reached" if math.isinf(middle) else f"{middle:,.0f} of {n_images:,} ({middle / n_images:.0%})"
