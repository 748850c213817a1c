"""Whether pruning pays downstream: equal fine-tuning from the foundations of several arms.

Read from summary.json of super_resolution_study or semantic_synthesis_study, which has a summary for each score.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsprune_dagster.config.layout import STUDY_SUMMARY
from rsprune_dagster.study.results import read_results
from rsprune_dagster.study.summary import larger_is_better
from rsprune_dagster.viz.blocks import Block, Column, Gallery, Table, Text, Tile, TileRow
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.evaluation import score_label
from rsprune_dagster.viz.formatting import count
from rsprune_dagster.viz.study import arm_label, spread

Summaries = Sequence[Mapping[str, Any]]
"""A `study.summary.Summary.as_json` for each score; all have the same arms."""

AGAINST = {"to_full": "full corpus", "to_random": "as many random tiles", "to_none": "random weights"}
SCORES = {
    "psnr_mean": "PSNR of the mean",
    "st_lpips_sample": "ST-LPIPS of samples",
    "miou_drawn_same_places": "mIoU on drawn images, same places",
    "miou_drawn": "mIoU on drawn images",
    "miou_gain_same_places": "Gain in mIoU, same places",
    "miou_gain": "Gain in mIoU",
}
IMAGES = {
    "_sample": "samples",
    "_drawn": "drawn images",
    "_drawn_same_places": "drawn images, same places",
}
"""The images that a distance is measured on, by the end of its name."""


def read_summaries(folder: Path) -> Summaries:
    """The summaries in the folder of a study; empty before its first run came to its end."""
    path = folder / STUDY_SUMMARY
    return read_json(path) if path.is_file() else []


def blocks(folder: Path) -> list[Block]:
    """The arms, their differences, and what their models made of the same inputs."""
    summaries = read_summaries(folder)
    if not summaries:
        return [Text(f"The study has no summary yet ({folder.name}).", absent=True)]
    shown = outputs(folder, summaries)
    return [arms_table(summaries), differences_table(summaries), *([shown] if shown else [])]


def arms_table(summaries: Summaries) -> Table:
    """A row for each arm, a column for each score."""
    rows = [
        (
            arm_label(arm["arm"]),
            count(arm["n_tiles"]),
            count(len(arm["seeds"])),
            *(spread(_arm(summary, arm["arm"])["curve"][-1][1]) for summary in summaries),
        )
        for arm in summaries[0]["arms"]
    ]
    columns = [Column("Arm"), Column("Tiles", numeric=True), Column("Seeds", numeric=True, minor=True)]
    caption = (
        f"Foundations trained on the tiles of each arm, then fine-tuned in the same way on "
        f"{count(summaries[0]['n_images'])} images. Means over seeds with their intervals."
    )
    return Table("Fine-tuned from the foundations of the arms", caption, [*columns, *_score_columns(summaries)], rows)


def differences_table(summaries: Summaries) -> Table:
    """A row for each arm and what it is compared with, a column for each score."""
    rows = [
        (arm_label(arm["arm"]), words, *(_difference(summary, arm["arm"], key) for summary in summaries))
        for arm in summaries[0]["arms"]
        for key, words in AGAINST.items()
        if arm.get(key)
    ]
    caption = (
        "Taken seed by seed. Intervals are over seeds, with the same test images, and not corrected for the number of "
        "comparisons."
    )
    columns = [Column("Arm"), Column("Minus"), *_score_columns(summaries)]
    return Table("Differences of the arms", caption, columns, rows)


def outputs(folder: Path, summaries: Summaries) -> Gallery | None:
    """A row for each arm: what its model made of the same test inputs; first the inputs, last the truth.

    Inputs and noise are those of a seed: shown are the arms that have the commonest seed.
    """
    by_seed = Counter(result.seed for result in read_results(folder))
    if not by_seed:
        return None
    seed = min(by_seed, key=lambda seed: (-by_seed[seed], seed))
    arms = [arm["arm"] for arm in summaries[0]["arms"] if seed in arm["seeds"]]
    parts = {arm: list(_parts(folder / arm / f"{seed}.png")) for arm in arms}
    shown = next(iter(parts.values()))
    rows = [_row("input", [example[0] for example in shown])]
    rows += [_row(arm_label(arm), [example[1] for example in parts[arm]]) for arm in arms]
    rows.append(_row("truth", [example[-1] for example in shown]))
    caption = f"A column has one test input, and what each model made of it with the same noise. Seed {seed}."
    return Gallery("Results for the same inputs", caption, rows)


def label(score: str) -> str:
    """A score with the direction in which it gets better."""
    return f"{SCORES.get(score) or _distance(score)} {'↑' if larger_is_better(score) else '↓'}"


def _distance(score: str) -> str:
    end, images = next((end, words) for end, words in IMAGES.items() if score.endswith(end))
    measure, comma, network = score_label(score.removesuffix(end)).partition(", ")
    return f"{measure} of {images}{comma}{network}"


def _score_columns(summaries: Summaries) -> list[Column]:
    return [Column(label(summary["score"]), numeric=True) for summary in summaries]


def _arm(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(arm for arm in summary["arms"] if arm["arm"] == name)
    return found


def _difference(summary: Mapping[str, Any], arm: str, key: str) -> str:
    return spread(_arm(summary, arm)[key], signed=True)


def _parts(path: Path) -> Iterator[list[np.ndarray]]:
    """The three square images of each example: input, output and truth."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    edge = sheet.shape[1] // 3
    for top in range(0, sheet.shape[0], edge):
        yield np.split(sheet[top : top + edge], 3, axis=1)


def _row(words: str, images: Sequence[np.ndarray]) -> TileRow:
    return TileRow(words, [Tile(image, words) for image in images])
