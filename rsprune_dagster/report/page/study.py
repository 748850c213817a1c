"""Whether pruning pays: the same training on the full corpus, on random tiles and on pruned ones, from pruning_study.

Read from its summary.json as it is: this page shows what was measured and computes nothing anew.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsprune_dagster.report.page.blocks import Block, Column, Figure, Table, Text
from rsprune_dagster.report.page.plot import Plot, Shape, Tick, band, line, linear_ticks, log_ticks, on_log, scaled
from rsprune_dagster.report.page.tally import read_json
from rsprune_dagster.report.page.words import count, counted, name, number

MAX_ARMS = 8
"""As many as there are colours; further arms are in the table alone."""
MAX_ROWS = 24


def study_blocks(folder: Path) -> list[Block]:
    """Sentences, curves, and a row for each arm."""
    path = folder / "summary.json"
    if not path.is_file():
        return [Text("The study has no summary yet (pruning_study).", absent=True)]
    summary = read_json(path)
    arms = summary["arms"]
    sentences = [Text(sentence) for sentence in summary.get("verdicts", [])]
    return [*sentences, _curves(summary, arms[:MAX_ARMS]), _table(summary, arms[:MAX_ROWS])]


def _curves(summary: Mapping[str, Any], arms: list[dict[str, Any]]) -> Figure:
    """The score against the images seen, a line for each arm, in a band where several seeds tell of a spread."""
    points = [point for arm in arms for point in arm["curve"]]
    seen = np.array([n_images for n_images, _ in points], float)
    ends = [value[key] for _, value in points for key in ("value", "low", "high") if value[key] is not None]
    low, high = min(*ends, 0.0), max(ends) * 1.05
    low_x, high_x = float(seen.min()), float(seen.max())
    shapes = [shape for i, arm in enumerate(arms) for shape in _curve(arm, f"s{i}", (low_x, high_x), (low, high))]
    score = name(summary["score"])
    plot = Plot(
        alt=f"{score} against training images for {len(arms)} arms",
        shapes=shapes,
        x_ticks=[Tick(on_log(at, low_x, high_x), count(at)) for at in log_ticks(low_x, high_x)],
        y_ticks=[Tick(float(1 - scaled([at], low, high)[0]), f"{at:g}") for at in linear_ticks(low, high, n=4)],
        x_label="Training images seen",
        y_label=score,
        aspect=2.2,
    )
    legend = [(f"s{i}", f"{name(arm['arm'])} ({counted(arm['n_tiles'], 'tile')})") for i, arm in enumerate(arms)]
    caption = (
        f"The same network, the same {count(summary['n_images'])} training images, other tiles. Bands are "
        f"{100 * summary['level']:g} % intervals over seeds; where there is none, one seed tells of no spread."
    )
    return Figure("Does pruning pay?", caption, [plot], legend)


def _curve(
    arm: Mapping[str, Any], tone: str, x_range: tuple[float, float], y_range: tuple[float, float]
) -> list[Shape]:
    x = np.array([on_log(n_images, *x_range) for n_images, _ in arm["curve"]])
    middle, bottom, top = (
        1 - scaled([value[key] if value[key] is not None else value["value"] for _, value in arm["curve"]], *y_range)
        for key in ("value", "low", "high")
    )
    return [Shape(band(x, top, bottom), tone, opacity=0.16), Shape(line(x, middle), tone, "line")]


def _table(summary: Mapping[str, Any], arms: list[dict[str, Any]]) -> Table:
    rows = [
        (
            name(arm["arm"]),
            count(arm["n_tiles"]),
            count(len(arm["seeds"])),
            _estimate(arm["curve"][-1][1]),
            _estimate(arm.get("to_full")),
            _estimate(arm.get("to_random")),
        )
        for arm in arms
    ]
    columns = [
        Column("Arm"),
        Column("Tiles", numeric=True),
        Column("Seeds", numeric=True, minor=True),
        Column(f"{name(summary['score'])} at the end", numeric=True),
        Column("Less full corpus", numeric=True),
        Column("Less random tiles", numeric=True, minor=True),
    ]
    caption = "Means over seeds with their intervals; differences are taken seed by seed."
    return Table("The arms of the study", caption, columns, rows)


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    """12.3 (11.8 to 12.9)."""
    if estimate is None:
        return ""
    if estimate["low"] is None or estimate["high"] is None:
        return number(estimate["value"])
    return f"{number(estimate['value'])} ({number(estimate['low'])} to {number(estimate['high'])})"
