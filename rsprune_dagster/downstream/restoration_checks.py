"""The checks of a super-resolution checkpoint."""

import json
from pathlib import Path
from typing import Final

from rsprune_dagster.config.layout import METRICS, RESTORATION, TRAINING
from rsprune_dagster.pruning.checks.verdict import Verdict
from rsprune_dagster.utils.csv_files import read_sheet

MOST_EXTRA_DB: Final = 0.5
"""The gain on training images may exceed that on test images by this much before it counts as memorization."""


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


def _not_measured(folder: Path) -> Verdict:
    return Verdict(True, f"not measured. {json.loads((folder / TRAINING).read_text())['not_measured']}")
