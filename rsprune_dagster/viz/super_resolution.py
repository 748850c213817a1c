"""Super-resolution: its figures against bicubic enlargement, and examples."""

from pathlib import Path

from rsprune_dagster.config.layout import RESTORATION, TRAINING
from rsprune_dagster.utils.csv_files import read_sheet
from rsprune_dagster.viz import fine_tuning
from rsprune_dagster.viz.blocks import Block, Column, Facts, Gallery, Table
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.fine_tuning import interval
from rsprune_dagster.viz.formatting import count, quantity

SHOWN = ("input", "bicubic", "mean", "sample", "truth")
"""The parts of an example, from left to right."""
MEASURES = {
    "psnr": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "st_lpips": "ST-LPIPS ↓",
    "input_error": "Input error, grey levels ↓",
}
"""Measures by their column's name; the others are Fréchet distances."""


def blocks(folder: Path) -> list[Block]:
    """All that the folder of super_resolution_checkpoint tells."""
    found: list[Block | None] = [facts(folder), table(folder), fine_tuning.not_measured(folder), examples(folder)]
    return [block for block in found if block]


def headline(folder: Path) -> str:
    """Each output's PSNR and ST-LPIPS, a line each."""
    cells = {(line["output"], line["measure"]): line for line in read_sheet(folder / RESTORATION)}
    lines = [
        f"{output:>12}  PSNR {interval(line)} dB, ST-LPIPS {interval(cells[output, 'st_lpips'])}"
        for (output, measure), line in cells.items()
        if measure == "psnr"
    ]
    return "\n".join(lines or [f"nothing was measured: {read_json(folder / TRAINING)['not_measured']}"])


def facts(folder: Path) -> Facts:
    """Task and length."""
    told = read_json(folder / TRAINING)
    return Facts(
        [
            ("Super-resolution", f"x{told['scale']}, {told['degradation']} degradation"),
            ("Fine-tuned on", f"{count(told['n_images'])} crops of {count(told['n_tiles'])} images"),
            ("Measured on", f"{count(told['n_test_images'])} other images"),
            ("Loss", f"{quantity(told['first_loss'])} at first, {quantity(told['final_loss'])} at the end"),
        ]
    )


def table(folder: Path) -> Table | None:
    """Every measure of every output; None if nothing was measured."""
    lines = read_sheet(folder / RESTORATION)
    if not lines:
        return None
    measures = list(dict.fromkeys(line["measure"] for line in lines))
    cells = {(line["output"], line["measure"]): interval(line) for line in lines}
    outputs = list(dict.fromkeys(line["output"] for line in lines))
    return Table(
        "Super-resolution against bicubic enlargement",
        "Over the test images, with the interval of 95 %. All of RGB from 0 to 1. The mean of all possible images "
        "is nearest to the truth; a sample looks most like it. Input error: the result, reduced, against the input.",
        [Column("Output"), *(Column(MEASURES.get(name, f"{name} ↓"), numeric=True) for name in measures)],
        [[output, *(cells[output, name] for name in measures)] for output in outputs],
    )


def examples(folder: Path) -> Gallery | None:
    """The examples; None if nothing was measured."""
    caption = "Crops of test images: input, bicubic enlargement, the model's mean, a sample of it, the truth."
    return fine_tuning.examples(folder, SHOWN, "Examples of super-resolution", caption)
