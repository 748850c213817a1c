"""Semantic image synthesis: what segmenters make of drawn images, and examples."""

from pathlib import Path

from rsprune_dagster.config.layout import METRICS, SEGMENTATION, TRAINING
from rsprune_dagster.evaluation.checks import DISTANCES
from rsprune_dagster.utils.csv_files import read_sheet
from rsprune_dagster.viz import fine_tuning
from rsprune_dagster.viz.blocks import Block, Column, Facts, Gallery, Table
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.downstream_study import label
from rsprune_dagster.viz.fine_tuning import interval
from rsprune_dagster.viz.formatting import count, quantity

SHOWN = ("mask", "draw", "draw", "draw", "real")
"""The parts of an example, from left to right."""
MEASURES = {"miou": "mIoU ↑", "accuracy": "Overall accuracy ↑", "mean_accuracy": "Mean accuracy ↑"}


def blocks(folder: Path) -> list[Block]:
    """All that the folder of semantic_synthesis_checkpoint tells."""
    found: list[Block | None] = [facts(folder), table(folder), fine_tuning.not_measured(folder), examples(folder)]
    return [block for block in found if block]


def headline(folder: Path) -> str:
    """The mIoU of each kind of segmenters on each set of images, a line each."""
    lines = [
        f"{line['learned_from']:>14}  mIoU {interval(line)} on images: {line['measured_on']}"
        for line in read_sheet(folder / SEGMENTATION)
        if line["measure"] == "miou"
    ]
    return "\n".join(lines or [f"nothing was measured: {read_json(folder / TRAINING)['not_measured']}"])


def facts(folder: Path) -> Facts:
    """Task, length, segmenters and distances."""
    told, metrics = read_json(folder / TRAINING), read_json(folder / METRICS)
    n_segmenters = told.get("n_segmenters", 0)  # folders of earlier versions lack it
    segmenters = [("Segmenters", f"{count(n_segmenters)} of each kind")] if n_segmenters else []
    distances = [(label(name), quantity(value)) for name, value in metrics.items() if name.startswith(DISTANCES)]
    return Facts(
        [
            ("Semantic image synthesis", f"classes {', '.join(told['classes'])}"),
            ("Fine-tuned on", f"{count(told['n_images'])} crops of {count(told['n_pairs'])} pairs"),
            ("Measured on", f"{count(told['n_test_images'])} crops of other pairs"),
            *segmenters,
            ("Loss", f"{quantity(told['first_loss'])} at first, {quantity(told['final_loss'])} at the end"),
            *distances,
        ]
    )


def table(folder: Path) -> Table | None:
    """What each kind of segmenters finds in each set of images; None if nothing was measured."""
    lines = read_sheet(folder / SEGMENTATION)
    if not lines:
        return None
    cells = {(line["learned_from"], line["measured_on"], line["measure"]): line for line in lines}
    rows = dict.fromkeys((learned, measured) for learned, measured, _ in cells)
    return Table(
        "Masks that segmenters find",
        "Segmenters learned from real images, others from real and drawn images, on as many images in all. With the "
        "interval of 95 % over pairs and, where there are several, over segmenters. The gain is that of the others "
        "over the first, in mIoU. Same places: pairs that were held back. A segmenter knows how the same places look, "
        "and drawn images look like them.",
        [
            Column("Learned from"),
            Column("Measured on"),
            *(Column(title, numeric=True) for title in MEASURES.values()),
            Column("Gain", numeric=True),
        ],
        [
            [
                *row,
                *(interval(cells[*row, name]) for name in MEASURES),
                interval(cells[*row, "miou"], "gain", ("gain_low", "gain_high")),
            ]
            for row in rows
        ],
    )


def examples(folder: Path) -> Gallery | None:
    """The examples; None if nothing was measured."""
    caption = "Crops of test pairs, those with the most classes: the mask, three images drawn for it, the real image."
    return fine_tuning.examples(folder, SHOWN, "Examples of semantic image synthesis", caption)
