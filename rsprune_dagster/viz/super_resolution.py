"""Super-resolution: its figures against bicubic enlargement, and examples."""

from pathlib import Path

import numpy as np
from PIL import Image

from rsprune_dagster.config.layout import EXAMPLES, RESTORATION, TRAINING
from rsprune_dagster.utils.csv_files import read_sheet
from rsprune_dagster.viz.blocks import Block, Column, Facts, Gallery, Table, Text, Tile, TileRow
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.formatting import count, quantity

SHOWN = ("input", "bicubic", "mean", "sample", "truth")
"""The parts of an example, from left to right."""
PER_ROW = 2
"""Examples beside each other."""
MEASURES = {
    "psnr": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "st_lpips": "ST-LPIPS ↓",
    "input_error": "Input error, grey levels ↓",
}
"""Measures by their column's name; the others are Fréchet distances."""


def blocks(folder: Path) -> list[Block]:
    """All that the folder of super_resolution_checkpoint tells."""
    found: list[Block | None] = [facts(folder), table(folder), not_measured(folder), examples(folder)]
    return [block for block in found if block]


def headline(folder: Path) -> str:
    """Each output's PSNR and ST-LPIPS, a line each."""
    cells = {(line["output"], line["measure"]): line for line in read_sheet(folder / RESTORATION)}
    lines = [
        f"{output:>12}  PSNR {_cell(line)} dB, ST-LPIPS {_cell(cells[output, 'st_lpips'])}"
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
    cells = {(line["output"], line["measure"]): _cell(line) for line in lines}
    outputs = list(dict.fromkeys(line["output"] for line in lines))
    return Table(
        "Super-resolution against bicubic enlargement",
        "Over the test images, with the interval of 95 %. All of RGB from 0 to 1. The mean of all possible images "
        "is nearest to the truth; a sample looks most like it. Input error: the result, reduced, against the input.",
        [Column("Output"), *(Column(MEASURES.get(name, f"{name} ↓"), numeric=True) for name in measures)],
        [[output, *(cells[output, name] for name in measures)] for output in outputs],
    )


def not_measured(folder: Path) -> Text | None:
    """Why something was not measured."""
    said = read_json(folder / TRAINING)["not_measured"]
    return Text(f"Not measured: {said}", absent=True) if said else None


def examples(folder: Path) -> Gallery | None:
    """The examples; None if nothing was measured."""
    tiles: list[Tile] = []
    for number, path in enumerate(sorted((folder / EXAMPLES).glob("*.png"))):
        parts = np.split(np.asarray(Image.open(path).convert("RGB")), len(SHOWN), axis=1)
        named = zip(SHOWN, parts, strict=True)
        tiles += [Tile(part, f"Example {number + 1}: {name}", name) for name, part in named]
    if not tiles:
        return None
    n_tiles = len(SHOWN) * PER_ROW
    rows = [TileRow("", tiles[start : start + n_tiles]) for start in range(0, len(tiles), n_tiles)]
    caption = "Crops of test images: input, bicubic enlargement, the model's mean, a sample of it, the truth."
    return Gallery("Examples of super-resolution", caption, rows)


def _cell(line: dict[str, str]) -> str:
    value, low, high = (quantity(float(line[name])) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
