"""An evaluation told: scores with their intervals and protocols, curves of copying, what each scene came to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rsprune_dagster.report import style
from rsprune_dagster.report.markdown import table

MEANINGS = {
    "fid": "FID",
    "kid": "KID",
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision: samples that look like held-out tiles",
    "recall": "recall: held-out tiles that samples look like",
    "density": "density: how many held-out tiles a sample is like",
    "coverage": "coverage: held-out tiles with a sample near",
    "recognised": "samples recognised as the scene that was asked for",
    "closer": "samples nearer to a training tile than hardly any held-out tile is",
    "singled_out": "samples near one training tile alone: copies",
}
"""By the start of a score's name; the rest of it is the network."""
MAX_SCENES = 40

Scores = Mapping[str, Mapping[str, Any]]
"""By name, as `Score.as_json` gives them."""


def score_table(scores: Scores) -> str:
    """A Markdown table of the scores over all scenes, and under it their protocols in words."""
    shown = {name: score for name, score in scores.items() if "/" not in name or name.endswith("/mean_of_scenes")}
    rows = [
        (
            _meaning(name),
            score["protocol"]["network"],
            _number(score["value"]),
            f"{_number(score['low'])} to {_number(score['high'])}",
            "more" if score["larger_is_better"] else "less",
        )
        for name, score in shown.items()
    ]
    level = next(iter(shown.values()))["level"] if shown else 0.95
    header = ("score", "on", "value", f"{level:.0%} interval", "better")
    return "\n\n".join([table(header, rows), *_protocols(shown)]) if rows else "Nothing could be measured."


def left_out_table(left_out: Mapping[str, str]) -> str:
    """What was not measured, a row per reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return table(("not measured", "why"), [(", ".join(names), reason) for reason, names in by_reason.items()])


def scene_chart(
    scenes: Sequence[str], distances: NDArray[np.float64], recognised: NDArray[np.float64], *, measure: str
) -> bytes:
    """Two panels, worst scene first: the distance of each scene with its interval, and how many are recognised.

    distances: (S, 3): value, low, high. recognised: (S,), 0 to 1; NaN where unknown. measure: what the distance is.
    Returns PNG bytes.
    """
    order = np.argsort(-distances[:, 0], kind="stable")[:MAX_SCENES]
    rows = np.arange(len(order))
    with style.look():
        drawing = style.figure(7.2, 1.1 + 0.26 * len(order))
        left, right = drawing.subplots(1, 2, sharey=True, width_ratios=[1.4, 1])
        value, low, high = distances[order].T
        left.hlines(rows, low, high, color=style.DROPPED, linewidth=1.8)
        left.plot(value, rows, "o", color=style.KEPT, markersize=4)
        left.axvline(0, color=style.RULE, linewidth=0.8)
        left.set_yticks(rows, [scenes[index] for index in order])
        left.tick_params(axis="y", labelcolor=style.INK)
        left.set_ylim(len(order) - 0.4, -0.6)
        left.set(xlabel=f"{measure}; 0: as a held-out tile")
        left.set_title("How far samples are from their scene")
        right.barh(rows, np.nan_to_num(recognised[order]), height=0.6, color=style.KEPT)
        right.set(xlim=(0, 1), xlabel="Share of its samples")
        right.tick_params(axis="y", labelleft=False)
        right.set_title("Recognised as it")
        style.shares_on(right, "x")
        for axes in (left, right):
            axes.grid(axis="x")
        return style.png(drawing)


def confusion(scenes: Sequence[str], counts: NDArray[np.int64]) -> bytes:
    """Which scene was seen in samples of which: counts (S, S), asked-for in rows. Returns PNG bytes."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    edge_in = 1.6 + 0.34 * len(scenes)
    with style.look():
        drawing = style.figure(edge_in, edge_in)
        axes = drawing.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(scenes)), scenes, rotation=90)
        axes.set_yticks(range(len(scenes)), scenes)
        axes.set(xlabel="recognised as", ylabel="asked for")
        axes.spines[:].set_visible(False)
        for row, column in np.argwhere(counts):
            ink = "white" if shares[row, column] > 0.55 else style.INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=ink, fontsize=6.5)
        axes.set_title("What the samples show")
        return style.png(drawing)


def copies_curve(shares: NDArray[np.float64], samples: NDArray[np.float64], held_out: NDArray[np.float64]) -> bytes:
    """How near to one training tile: samples against held-out tiles, each as quantiles (n,). Returns PNG bytes."""
    with style.look():
        drawing = style.figure(6.4, 3.2)
        axes: Axes = drawing.subplots()
        axes.plot(held_out, shares, color=style.MUTED, linewidth=1.4, label="held-out tiles: what is normal")
        axes.plot(samples, shares, color=style.KEPT, linewidth=1.6, label="samples")
        axes.set(
            xlim=(0, None),
            ylim=(0, 1),
            xlabel="distance to the nearest training tile, relative to the next nearest (0: a copy)",
            ylabel="share that is so near, or nearer",
        )
        axes.grid(axis="both")
        axes.legend(loc="upper left")
        axes.set_title("Samples are copies where their curve leaves the grey one on the left")
        style.shares_on(axes, "y")
        return style.png(drawing)


def _meaning(name: str) -> str:
    start = next((start for start in MEANINGS if name == start or name.startswith(f"{start}_")), "")
    mean = ", mean of the scenes" if name.endswith("/mean_of_scenes") else ""
    return MEANINGS.get(start, name) + mean


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _protocols(scores: Scores) -> list[str]:
    """A sentence for each protocol, and each caution once."""
    sentences = [_protocol(score["protocol"]) for score in scores.values()]
    cautions = [score["caution"] for score in scores.values() if score["caution"]]
    return list(dict.fromkeys([*sentences, *cautions]))


def _protocol(protocol: Mapping[str, Any]) -> str:
    drawn = protocol["parameters"].get("samples", "")
    weights = f", weights sha256 {protocol['sha256'][:12]}" if protocol["sha256"] else ""
    against = "training tiles" if "held_out" in protocol["parameters"] else "held-out tiles"
    return (
        f"On {protocol['network']}: {protocol['resize']}{weights}; {protocol['n_generated']:,} samples ({drawn}) "
        f"against {protocol['n_reference']:,} {against} (content {protocol['reference'][:12]})."
    )
