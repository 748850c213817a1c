"""Checks of the semantic synthesis checkpoint."""

import json
from pathlib import Path
from typing import Final

from rsprune_dagster.config.layout import METRICS, TRAINING
from rsprune_dagster.pruning.checks.verdict import Verdict

LEAST_RATIO: Final = 0.6
"""Of the mIoU on drawn images to that on real ones."""
MOST_NEARER: Final = 0.1
"""Drawn images may be nearer to the images learned from than to test images by this much ST-LPIPS, beyond chance,
before it counts as copying."""


def follows_masks(folder: Path) -> Verdict:
    """The mIoU on drawn images is LEAST_RATIO or more of that on real images."""
    metrics = json.loads((folder / METRICS).read_text())
    if not metrics:
        return _not_measured(folder)
    real, drawn, ratio = metrics["miou_real"], metrics["miou_drawn"], metrics["miou_ratio"]
    figures = {"miou_real": real, "miou_drawn": drawn, "miou_ratio": ratio}
    what = (
        f"a segmenter that learned from real images has an mIoU of {drawn:.3f} on drawn images, {real:.3f} on real ones"
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
    """Images drawn for masks that were learned from are not nearer to their images than drawn test images to theirs."""
    metrics = json.loads((folder / METRICS).read_text())
    if not metrics:
        return _not_measured(folder)
    learned, test = metrics["st_lpips_learned"], metrics["st_lpips_test"]
    figures = {"st_lpips_learned": learned, "st_lpips_test": test}
    what = (
        f"the ST-LPIPS of a drawn image to the real one of its mask is {learned:.3f} for masks that were learned from, "
        f"{test:.3f} for others"
    )
    if metrics["st_lpips_test_low"] - metrics["st_lpips_learned_high"] > MOST_NEARER:
        todo = "The model copies what it learned from: train on more pairs, or shorter (semantic_synthesis.n_images)."
        return Verdict(False, f"{what}. {todo}", figures)
    return Verdict(True, f"{what}.", figures)


def _not_measured(folder: Path) -> Verdict:
    return Verdict(True, f"not measured. {json.loads((folder / TRAINING).read_text())['not_measured']}")
