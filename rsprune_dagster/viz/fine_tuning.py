"""What the pages of fine-tuned checkpoints have in common: cells with intervals, examples, what was not measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rsprune_dagster.config.layout import EXAMPLES, TRAINING
from rsprune_dagster.viz.blocks import Gallery, Text, Tile, TileRow
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.formatting import quantity

PER_ROW = 2
"""Examples beside each other."""


def interval(line: dict[str, str], value: str = "value", ends: tuple[str, str] = ("low", "high")) -> str:
    """A number of a sheet with its interval; empty if the sheet has none."""
    if not line[value]:
        return ""
    middle, low, high = (quantity(float(line[name])) for name in (value, *ends))
    return f"{middle} ({low} to {high})"


def not_measured(folder: Path) -> Text | None:
    """Why something was not measured."""
    reason = read_json(folder / TRAINING)["not_measured"]
    return Text(f"Not measured: {reason}", absent=True) if reason else None


def examples(folder: Path, parts: Sequence[str], title: str, caption: str) -> Gallery | None:
    """The examples, each with its parts from left to right; None if nothing was measured."""
    tiles: list[Tile] = []
    for number, path in enumerate(sorted((folder / EXAMPLES).glob("*.png"))):
        images = np.split(np.asarray(Image.open(path).convert("RGB")), len(parts), axis=1)
        named = zip(parts, images, strict=True)
        tiles += [Tile(image, f"Example {number + 1}: {name}", name) for name, image in named]
    if not tiles:
        return None
    n_tiles = len(parts) * PER_ROW
    rows = [TileRow("", tiles[start : start + n_tiles]) for start in range(0, len(tiles), n_tiles)]
    return Gallery(title, caption, rows)
