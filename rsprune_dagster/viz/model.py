"""A training: its length, its loss, what the model draws along the way."""

from pathlib import Path

import numpy as np
from PIL import Image

from rsprune_dagster.config.layout import LOSS, SAMPLES_OVER_TRAINING, SCENE_NAMES, TRAINING
from rsprune_dagster.viz.blocks import Facts, Figure, Gallery, Tile, TileRow
from rsprune_dagster.viz.counts import read_json
from rsprune_dagster.viz.formatting import count, name, quantity
from rsprune_dagster.viz.plot import Axis, Plot, line

MAX_MOMENTS = 8
MAX_SCENES = 12


def facts(folder: Path) -> Facts:
    """Length and outcome. folder: of diffusion_checkpoint."""
    figures = read_json(folder / TRAINING)
    return Facts(
        [
            ("Trained on", f"{count(figures['n_tiles'])} kept tiles of {count(figures['n_scenes'])} scenes"),
            (
                "Training length",
                f"{count(figures['n_images'])} images, {quantity(figures['n_epochs'])} times each tile",
            ),
            ("Weights of the denoiser", count(figures["n_weights"])),
            ("Loss", f"{quantity(figures['first_loss'])} at first, {quantity(figures['final_loss'])} at the end"),
        ]
    )


def loss(folder: Path) -> Figure:
    """The loss against the images seen."""
    seen, losses = np.loadtxt(folder / LOSS, delimiter=",", skiprows=1, ndmin=2).T
    x = Axis(float(seen.min()), float(seen.max()), log=True)
    y = Axis(float(losses.min()) / 1.1, float(losses.max()) * 1.1, log=True, vertical=True)
    plot = Plot(
        alt=f"Loss against images seen, from {losses[0]:.3g} down to {losses[-1]:.3g}",
        shapes=[line(x.places(seen), y.places(losses), "kept")],
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        x_label="Images seen",
        y_label="Mean squared error",
        aspect=2.6,
    )
    return Figure("The loss of the training", "Both axes are logarithmic.", [plot])


def samples(folder: Path) -> Gallery:
    """A row per moment, a tile per scene, always from the same noise; the first and the last moment among them."""
    names = [scene or "tiles" for scene in read_json(folder / SCENE_NAMES)]
    sheets = sorted((folder / SAMPLES_OVER_TRAINING).glob("*.png"))
    some = np.unique(np.linspace(0, len(sheets) - 1, min(len(sheets), MAX_MOMENTS)).round().astype(int))
    rows = []
    for path in [sheets[i] for i in some]:
        tiles = np.split(np.asarray(Image.open(path).convert("RGB")), len(names), axis=1)
        seen = f"{int(path.stem):,} images"
        drawn = [
            Tile(tile, f"Sample of {scene} after {seen}", name(scene))
            for tile, scene in list(zip(tiles, names, strict=True))[:MAX_SCENES]
        ]
        rows.append(TileRow(f"After {seen}", drawn))
    caption = "One sample of each scene, always from the same noise: what the model has learned by then."
    return Gallery("Samples over the training", caption, rows)
