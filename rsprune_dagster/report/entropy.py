"""Stage 1 as a picture: how many bits the tiles have, and where the threshold cuts."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rsprune_dagster.report import style

MAX_BITS = 8.0
BIN_BITS = 0.1
MAX_SCENES = 40
"""More reference scenes than this are cut to those of least entropy, which are the ones a threshold endangers."""


def entropy_histogram(
    entropy_bits: NDArray[np.floating],
    threshold_bits: float,
    reference: Mapping[str, NDArray[np.floating]] | None = None,
) -> bytes:
    """Histogram of the pool's entropy with the dropped part shaded, over a strip of boxes, one per reference scene.

    entropy_bits: (N,) bits, 0 to 8. threshold_bits: tiles below it are dropped. reference: scene to (n,) bits.
    Returns PNG bytes.
    """
    scenes = _poorest(reference or {})
    strip_in = 0.18 * len(scenes) + 0.55 if scenes else 0.0
    with style.look():
        drawing = style.figure(6.4, 2.7 + strip_in)
        heights = [2.7, strip_in] if scenes else [1.0]
        panels = np.atleast_1d(drawing.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        _histogram(panels[0], np.asarray(entropy_bits, np.float64), threshold_bits)
        if scenes:
            _boxes(panels[1], scenes, threshold_bits)
        panels[-1].set_xlabel("Grey-level entropy (bits)")
        panels[-1].set_xlim(0, MAX_BITS)
        return style.png(drawing)


def _poorest(reference: Mapping[str, NDArray[np.floating]]) -> dict[str, NDArray[np.float64]]:
    """The scenes by rising median entropy, the lowest MAX_SCENES of them; scenes without tiles are left out."""
    known = {name: np.asarray(bits, np.float64) for name, bits in reference.items() if len(bits)}
    order = sorted(known, key=lambda name: (float(np.median(known[name])), name))
    return {name: known[name] for name in order[:MAX_SCENES]}


def _histogram(axes: Axes, bits: NDArray[np.float64], threshold_bits: float) -> None:
    """The bars, split at the threshold itself, so that no bar is half kept."""
    edges = np.unique(np.append(np.arange(0, MAX_BITS + BIN_BITS / 2, BIN_BITS), np.clip(threshold_bits, 0, MAX_BITS)))
    n_tiles, _ = np.histogram(bits, edges)
    dropped = edges[:-1] < threshold_bits
    axes.bar(
        edges[:-1], n_tiles, np.diff(edges), align="edge", color=np.where(dropped, style.ALERT, style.KEPT), linewidth=0
    )
    axes.axvspan(0, threshold_bits, color=style.ALERT, alpha=0.08, linewidth=0)
    axes.axvline(threshold_bits, color=style.ALERT, linewidth=1.2)
    axes.grid(axis="y")
    axes.set_ylabel("Tiles")
    axes.set_title(_sentence(bits, threshold_bits))
    style.counts_on(axes, "y")
    _name_threshold(axes, threshold_bits)


def _sentence(bits: NDArray[np.float64], threshold_bits: float) -> str:
    n_dropped = int((bits < threshold_bits).sum())
    share = n_dropped / max(len(bits), 1)
    return f"{n_dropped:,} of {len(bits):,} tiles ({share:.1%}) lie below the threshold".replace(
        "%", "\N{NO-BREAK SPACE}%"
    )


def _name_threshold(axes: Axes, threshold_bits: float) -> None:
    """Write the threshold's value beside its line, on the side where there is room."""
    right = threshold_bits < MAX_BITS / 2
    axes.annotate(
        f"threshold {threshold_bits:.2f} bits",
        (threshold_bits, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4 if right else -4, -2),
        textcoords="offset points",
        ha="left" if right else "right",
        va="top",
        color=style.ALERT,
    )


def _boxes(axes: Axes, scenes: Mapping[str, NDArray[np.float64]], threshold_bits: float) -> None:
    """One box per scene: 2nd to 98th percentile, quartiles, median."""
    for row, bits in enumerate(scenes.values()):
        low, first, median, third, high = np.percentile(bits, [2, 25, 50, 75, 98])
        axes.plot([low, high], [row, row], color=style.MUTED, linewidth=0.9, solid_capstyle="butt")
        axes.barh(row, third - first, left=first, height=0.56, color=style.PALE, edgecolor=style.MUTED, linewidth=0.7)
        axes.plot([median, median], [row - 0.28, row + 0.28], color=style.INK, linewidth=1.4, solid_capstyle="butt")
    axes.axvline(threshold_bits, color=style.ALERT, linewidth=1.2)
    axes.set_yticks(range(len(scenes)), list(scenes))
    axes.set_ylim(len(scenes) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_title(
        "Reference scenes: median, quartiles, 2nd to 98th percentile", fontsize=8, fontweight="normal", pad=5
    )
