"""Checks of the semantic synthesis checkpoint."""

import json
from pathlib import Path
from typing import Final

from rsprune_dagster.config.layout import METRICS, TRAINING
from rsprune_dagster.pruning.checks.verdict import Verdict

LEAST_RATIO: Final = 0.6
"""Of the mIoU on drawn images to that on real ones."""
MOST_NEARER: Final = 0.1
"""Images drawn for masks that were learned from may be nearer to the real ones than others by this much ST-LPIPS,
beyond chance, before it counts as copying."""


def follows_masks(folder: Path) -> Verdict:
    """The mIoU on drawn images is LEAST_RATIO or more of that on real images of the same masks.

    In the same places if pairs of them were held back: a segmenter knows how these look, in drawn and in real images.
    """
    metrics = json.loads((folder / METRICS).read_text())
    if not metrics:
        return _not_measured(folder)
    end = "_same_places" if "miou_ratio_same_places" in metrics else ""
    figures = {name: metrics[f"{name}{end}"] for name in ("miou_real", "miou_drawn", "miou_ratio")}
    ratio = figures["miou_ratio"]
    what = (
        f"a segmenter that learned from real images has an mIoU of {figures['miou_drawn']:.3f} on drawn images, "
        f"{figures['miou_real']:.3f} on real ones"
    )
    if ratio < LEAST_RATIO:
        return Verdict(
            False,
            f"{what}: {ratio:.0%}, expected {LEAST_RATIO:.0%} or more. Train longer (semantic_synthesis.n_images), or "
            "raise semantic_synthesis.guidance.",
            figures,
        )
    return Verdict(True, f"{what}: {ratio:.0%}.", figures)


def draws_no_copies(folder: Path) -> Verdict:
    """Images drawn for masks that were learned from are not much nearer to the real ones than others are to theirs."""
    metrics = json.loads((folder / METRICS).read_text())
    if not metrics:
        return _not_measured(folder)
    learned, control = metrics["st_lpips_learned"], metrics["st_lpips_control"]
    figures = {"st_lpips_learned": learned, "st_lpips_control": control}
    what = (
        f"the ST-LPIPS of a drawn image to the real one of its mask is {learned:.3f} for masks that were learned from, "
        f"{control:.3f} for others"
    )
    if metrics["st_lpips_control_low"] - metrics["st_lpips_learned_high"] > MOST_NEARER:
        todo = "The model copies what it learned from: train on more pairs, or shorter (semantic_synthesis.n_images)."
        return Verdict(False, f"{what}. {todo}", figures)
    return Verdict(True, f"{what}.", figures)


def _not_measured(folder: Path) -> Verdict:
    return Verdict(True, f"not measured. {json.loads((folder / TRAINING).read_text())['not_measured']}")
