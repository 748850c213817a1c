"""A study in pictures: how fast the samples of each arm become like held-out tiles, a table, samples of one noise."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from rsprune_dagster.evaluation.study_arms import FULL, parse_arm
from rsprune_dagster.evaluation.study_results import SHOWN_COLUMNS, read_results
from rsprune_dagster.evaluation.study_summary import ArmSummary, Estimate, Summary, larger_is_better, summarize
from rsprune_dagster.report import markdown, style
from rsprune_dagster.report.montage import Row, gallery

HEADER = ("arm", "tiles", "seeds", "at the end", "against full, by seed", "against random, by seed", "images needed")
MAX_SHOWN = 12
"""Samples in the row of an arm."""


def study_pictures(folder: Path) -> dict[str, bytes | str]:
    """Curves, table, sentences and samples of the study in an asset folder."""
    results = read_results(folder)
    told = json.loads((folder / "summary.json").read_text())
    summary = summarize(results, score=told["score"], level=told["level"])
    pictures: dict[str, bytes | str] = {"convergence": convergence(summary), "arms": study_table(summary)}
    if verdicts := summary.verdicts():
        pictures["verdicts"] = "\n".join(f"* {sentence}" for sentence in verdicts)
    first = {result.arm: result.seed for result in reversed(results)}
    sheets = {arm: _cut(folder / arm / f"{first[arm]}.png") for arm in (one.arm for one in summary.arms)}
    return {**pictures, "samples of the same noise": samples_by_arm(sheets)}


def convergence(summary: Summary) -> bytes:
    """The score against the training images seen, with its interval over seeds. Returns PNG bytes.

    The dotted line is where the full corpus ends; an arm that meets it further left needs fewer images.
    """
    with style.look():
        drawing = style.figure(6.4, 3.8)
        axes = drawing.add_subplot()
        for number, arm in enumerate(summary.arms):
            _draw_curve(axes, arm, style.SERIES[number % len(style.SERIES)], len(summary.arms), number)
        full = next((arm for arm in summary.arms if arm.arm == FULL), None)
        if full is not None:
            axes.axhline(full.final.value, color=style.MUTED, linewidth=0.9, linestyle=":")
        ticks = [n_images for n_images, _ in summary.arms[0].curve]
        axes.set(xscale="log", xlabel="training images seen", ylabel=_said(summary.score))
        axes.set_xticks(ticks, [style.thousands(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_title("Higher is better" if larger_is_better(summary.score) else "Lower is better")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return style.png(drawing)


def _said(score: str) -> str:
    """`frechet_squeezenet1_0` as a person says it; a network keeps its name."""
    measure, _, network = score.partition("_")
    names = {"frechet": "Fréchet distance", "kernel": "kernel distance", "fid": "FID", "kid": "KID"}
    return f"{names.get(measure, measure)}{f', {network}' if network else ''}"


def study_table(summary: Summary) -> str:
    """A row for each arm, as Markdown."""
    rows = [
        (
            named(arm.arm),
            arm.n_tiles,
            len(arm.seeds),
            spread(arm.final),
            "" if arm.to_full is None else spread(arm.to_full, signed=True),
            "" if arm.to_random is None else spread(arm.to_random, signed=True),
            needed(arm, summary.n_images),
        )
        for arm in summary.arms
    ]
    return markdown.table(HEADER, rows)


def samples_by_arm(pictures: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """A row of samples (s, s, 3) for each arm; in a column the same noise. Returns JPEG bytes."""
    return gallery([Row(named(arm), list(samples)[:MAX_SHOWN]) for arm, samples in pictures.items()])


def named(arm: str) -> str:
    """`rsprune-0.15` as `rsprune 15 %`."""
    chosen = parse_arm(arm)
    if chosen.strategy == FULL:
        return "full corpus"
    return f"{chosen.strategy.replace('_', ' ')} {style.percent(chosen.keep_fraction)}"


def spread(estimate: Estimate, *, signed: bool = False) -> str:
    """`12.3 ± 0.4`; without the spread where one seed tells of none."""
    sign = "+" if signed else ""
    half = (estimate.high - estimate.low) / 2
    value = f"{estimate.value:{sign},.0f}" if abs(estimate.value) >= 1000 else f"{estimate.value:{sign}.3g}"
    if math.isnan(half):
        return value
    return f"{value} ± {half:,.0f}" if abs(estimate.value) >= 1000 else f"{value} ± {half:.2g}"


def needed(arm: ArmSummary, n_images: int) -> str:
    """How many images until the full corpus' final score; empty where there is no full corpus."""
    median = arm.median_images_needed
    if math.isnan(median):
        return ""
    return "not reached" if math.isinf(median) else f"{median:,.0f} of {n_images:,} ({median / n_images:.0%})"


def _cut(path: Path) -> list[np.ndarray]:
    """The samples of a grid of SHOWN_COLUMNS columns."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    edge = sheet.shape[1] // SHOWN_COLUMNS
    places = [(y, x) for y in range(0, sheet.shape[0], edge) for x in range(0, sheet.shape[1], edge)]
    return [sheet[y : y + edge, x : x + edge] for y, x in places]


def _draw_curve(axes: Axes, arm: ArmSummary, colour: str, n_arms: int, number: int) -> None:
    """Arms stand a little apart, so that their intervals can be told."""
    n_images = np.array([n for n, _ in arm.curve]) * 1.02 ** (number - (n_arms - 1) / 2)
    values = np.array([one.value for _, one in arm.curve])
    lows = np.array([one.low for _, one in arm.curve])
    highs = np.array([one.high for _, one in arm.curve])
    axes.plot(n_images, values, color=colour, linewidth=1.4, marker="o", markersize=3.2, label=named(arm.arm))
    axes.vlines(n_images, lows, highs, color=colour, linewidth=1.0, alpha=0.7)
