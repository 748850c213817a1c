"""Small pairs of images and masks for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from rsprune_dagster.downstream.masks import Palette

CLASSES = ("#0000ff water", "#00ff00 field", "#ff0000 city")
PALETTE = Palette.of(CLASSES)


def drawn_mask(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A mask (h, w) uint8 of squares of 4 px."""
    return np.random.default_rng(seed).integers(0, 3, (height // 4, width // 4), np.uint8).repeat(4, 0).repeat(4, 1)


def write_place(folder: Path, n: int, first_seed: int, edge: int = 40) -> None:
    """Pairs whose images are their masks, darker and with some noise."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(n):
        mask = drawn_mask(edge, edge, first_seed + number)
        noise = np.random.default_rng(first_seed + number).integers(0, 40, (edge, edge, 3))
        image = (PALETTE.picture(mask) // 2 + noise).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(PALETTE.picture(mask)).save(folder / "masks" / f"{number}.png")
