"""The training on the subset: its length, its loss, what the model draws along the way."""

from pathlib import Path

import numpy as np
from PIL import Image

from rsprune_dagster.report.page.album import tile_uri
from rsprune_dagster.report.page.blocks import (
    Block,
    Facts,
    Figure,
    Gallery,
    Tile,
    TileRow,
)
from rsprune_dagster.report.page.plot import Plot, Shape, Tick, line, log_ticks, on_log, scaled
from rsprune_dagster.report.page.tally import read_json
from rsprune_dagster.report.page.words import count, name, quantity

MAX_MOMENTS = 5
MAX_SCENES = 12


def training_blocks(folder: Path) -> list[Block]:
    """What the folder of diffusion_checkpoint tells."""
    figures = read_json(folder / "training.json")
    facts = [
        ("Trained on", f"{count(figures['n_tiles'])} kept tiles of {count(figures['n_scenes'])} scenes"),
        ("Training length", f"{count(figures['n_images'])} images, {quantity(figures['n_epochs'])} times each tile"),
        ("Weights of the denoiser", count(figures["n_weights"])),
        ("Loss", f"{quantity(figures['first_loss'])} at first, {quantity(figures['final_loss'])} at the end"),
    ]
    return [Facts(facts), _loss(folder), _samples(folder)]


def _loss(folder: Path) -> Figure:
    seen, losses = np.loadtxt(folder / "loss.csv", delimiter=",", skiprows=1, ndmin=2).T
    low_x, high_x = float(seen.min()), float(seen.max())
    low_y, high_y = float(losses.min()) / 1.1, float(losses.max()) * 1.1
    x = scaled(np.log(seen), np.log(low_x), np.log(high_x))
    y = 1 - scaled(np.log(losses), np.log(low_y), np.log(high_y))
    plot = Plot(
        alt=f"Loss against images seen, from {losses[0]:.3g} down to {losses[-1]:.3g}",
        shapes=[Shape(line(x, y), "kept", "line")],
        x_ticks=[Tick(on_log(at, low_x, high_x), count(at)) for at in log_ticks(low_x, high_x)],
        y_ticks=[Tick(1 - on_log(at, low_y, high_y), f"{at:g}") for at in log_ticks(low_y, high_y)],
        x_label="Images seen",
        y_label="Mean squared error",
        aspect=2.6,
    )
    return Figure("The loss of the training", "Both axes are logarithmic.", [plot])


def _samples(folder: Path) -> Gallery:
    names = [scene or "tiles" for scene in read_json(folder / "scenes.json")]
    sheets = sorted((folder / "samples").glob("*.png"))
    some = np.unique(np.linspace(0, len(sheets) - 1, min(len(sheets), MAX_MOMENTS)).round().astype(int))
    rows = []
    for path in [sheets[i] for i in some]:
        tiles = np.split(np.asarray(Image.open(path).convert("RGB")), len(names), axis=1)
        seen = f"{int(path.stem):,} images"
        drawn = [
            Tile(tile_uri(tile), f"Sample of {scene} after {seen}", name(scene))
            for tile, scene in list(zip(tiles, names, strict=True))[:MAX_SCENES]
        ]
        rows.append(TileRow(f"After {seen}", "", drawn))
    caption = "One sample of each scene, always from the same noise: what the model has learned by then."
    return Gallery("Samples over the training", caption, rows)
