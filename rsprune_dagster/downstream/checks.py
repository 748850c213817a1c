"""Checks of the checkpoints of super-resolution and of semantic synthesis."""

import json
from pathlib import Path
from typing import Final

from rsprune_dagster.config.layout import METRICS, RESTORATION, TRAINING
from rsprune_dagster.pruning.checks.verdict import Verdict
from rsprune_dagster.utils.csv_files import read_sheet

MOST_EXTRA_DB: Final = 0.5
"""The gain on training images may exceed that on test images by this much before it counts as memorization."""

LEAST_RATIO: Final = 0.6
"""The smallest ratio of the mIoU on drawn images to the mIoU on real images."""
MOST_NEARER: Final = 0.1
"""Images drawn for masks that were learned from may be nearer to the real ones than others by this much ST-LPIPS,
beyond chance, before it counts as copying."""


def better_than_bicubic(folder: Path) -> Verdict:
    """PSNR of the mean and ST-LPIPS of the sample are better than those of bicubic enlargement, beyond chance."""
    gains = {(line["output"], line["measure"]): line for line in read_sheet(folder / RESTORATION)}
    if not gains:
        return _not_measured(folder)
    psnr, lpips = gains["mean", "psnr"], gains["sample", "st_lpips"]
    figures = {"psnr_gain_db": float(psnr["gain"]), "st_lpips_gain": float(lpips["gain"])}
    worse = []
    if float(psnr["gain_low"]) <= 0:
        worse.append(f"the mean has {float(psnr['gain']):+.2f} dB of PSNR")
    if float(lpips["gain_high"]) >= 0:
        worse.append(f"the sample has {float(lpips['gain']):+.3f} of ST-LPIPS, where less is better")
    if worse:
        return Verdict(
            False,
            f"against bicubic enlargement, {' and '.join(worse)}: not better beyond chance. Train longer "
            "(super_resolution.n_images), or measure on more images (super_resolution.n_test_images).",
            figures,
        )
    return Verdict(
        True,
        f"against bicubic enlargement, the mean has {float(psnr['gain']):+.2f} dB of PSNR and the sample "
        f"{float(lpips['gain']):+.3f} of ST-LPIPS.",
        figures,
    )


def generalizes(folder: Path) -> Verdict:
    """The PSNR gain on training images exceeds that on test images by no more than MOST_EXTRA_DB, beyond chance."""
    metrics = json.loads((folder / METRICS).read_text())
    if not metrics:
        return _not_measured(folder)
    test, training = metrics["psnr_gain"], metrics["psnr_gain_training"]
    figures = {"psnr_gain_db": test, "psnr_gain_on_training_images_db": training}
    what = f"the gain over bicubic enlargement is {training:+.2f} dB on training images, {test:+.2f} dB on test images"
    if metrics["psnr_gain_training_low"] - metrics["psnr_gain_high"] > MOST_EXTRA_DB:
        todo = "The model memorized its training images: train on more of them, or shorter (super_resolution.n_images)."
        return Verdict(False, f"{what}. {todo}", figures)
    return Verdict(True, f"{what}.", figures)


def follows_masks(folder: Path) -> Verdict:
    """The mIoU on drawn images is LEAST_RATIO or more of that on real images of the same masks.

    In the same places if pairs of them were held back: segmenters know how these look, in drawn and in real images.
    """
    metrics = json.loads((folder / METRICS).read_text())
    if not metrics:
        return _not_measured(folder)
    end = "_same_places" if "miou_ratio_same_places" in metrics else ""
    figures = {name: metrics[f"{name}{end}"] for name in ("miou_real", "miou_drawn", "miou_ratio")}
    ratio = figures["miou_ratio"]
    what = (
        f"segmenters that learned from real images have an mIoU of {figures['miou_drawn']:.3f} on drawn images, "
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
