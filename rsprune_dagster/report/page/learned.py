"""What a model made of the subset: the training, its evaluation, the comparison with other subsets; where there are."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsprune_dagster.report.page.album import tile_uri
from rsprune_dagster.report.page.blocks import (
    Block,
    Code,
    Column,
    Facts,
    Figure,
    Gallery,
    Section,
    Table,
    Text,
    Tile,
    TileRow,
)
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.plot import Plot, Shape, Tick, line, log_ticks, scaled
from rsprune_dagster.report.page.tally import read_json
from rsprune_dagster.report.page.words import count, name, quantity, shortened

MAX_MOMENTS = 5
MAX_SCENES = 12
MAX_SCORES = 40
MAX_FIGURES = 60
ABSENT = {
    "diffusion_checkpoint": "No model has been trained on this subset yet (diffusion_checkpoint).",
    "evaluation_metrics": "Its samples have not been evaluated yet (evaluation_metrics).",
    "pruning_study": "It has not been compared with other subsets at equal training compute yet (pruning_study).",
}


def learned_section(folders: Folders) -> Section:
    """A part for each of the later assets, or the sentence that it is not there."""
    makers = {"diffusion_checkpoint": _training, "evaluation_metrics": _evaluation, "pruning_study": _study}
    blocks: list[Block] = []
    for asset, make in makers.items():
        folder = folders.later(asset)
        blocks += make(folder) if folder else [Text(ABSENT[asset], absent=True)]
    lead = "A subset is as good as what is learned from it."
    return Section("learned", "What a model learns from it", lead, blocks)


def _training(folder: Path) -> list[Block]:
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
        x_ticks=[Tick(_on_log(at, low_x, high_x), count(at)) for at in log_ticks(low_x, high_x)],
        y_ticks=[Tick(1 - _on_log(at, low_y, high_y), f"{at:g}") for at in log_ticks(low_y, high_y)],
        x_label="Images seen",
        y_label="Mean squared error of v",
        aspect=2.6,
    )
    return Figure("The loss of the training", "Both axes are logarithmic.", [plot])


def _on_log(value: float, low: float, high: float) -> float:
    return float(scaled([np.log(value)], np.log(low), np.log(high))[0])


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


def _evaluation(folder: Path) -> list[Block]:
    path = folder / "metrics.json"
    if not path.is_file():
        return [Text("evaluation_metrics holds no metrics.json.", absent=True)]
    content = read_json(path)
    protocols = content.get("protocols")
    scores = protocols if isinstance(protocols, Mapping) else {}
    told = [(title, score) for title, score in scores.items() if isinstance(score, Mapping) and "value" in score]
    blocks: list[Block] = [_scores(told[:MAX_SCORES])] if told else [_figures("Evaluation", content)]
    left_out = content.get("left_out")
    if isinstance(left_out, Mapping) and left_out:
        rows = [(name(str(title)), str(reason)) for title, reason in list(left_out.items())[:MAX_SCORES]]
        caption = "Nothing was put in their place."
        blocks.append(Table("Not measured", caption, [Column("Score"), Column("Why not")], rows))
    leaks = content.get("leaks")
    return blocks + [Text(str(sentence)) for sentence in (leaks if isinstance(leaks, list | tuple) else [])]


def _scores(scores: list[tuple[str, Mapping[str, Any]]]) -> Table:
    rows = [
        (
            name(title),
            _number(score["value"]),
            f"{_number(score.get('low'))} to {_number(score.get('high'))}",
            _better(score.get("larger_is_better")),
            _protocol(score.get("protocol")),
        )
        for title, score in scores
    ]
    columns = [
        Column("Score"),
        Column("Value", numeric=True),
        Column("Interval", numeric=True),
        Column("Better", minor=True),
        Column("Measured with", minor=True),
    ]
    caption = "Numbers of unequal protocols (network, resizing, counts) must not be compared, so each carries its own."
    return Table("Evaluation of the samples", caption, columns, rows)


def _better(larger: object) -> str:
    return {"True": "higher", "False": "lower"}.get(str(larger), "")


def _protocol(protocol: object) -> str:
    if not isinstance(protocol, Mapping):
        return ""
    counts = [f"{protocol[key]:,} {words}" for key, words in _COUNTS.items() if isinstance(protocol.get(key), int)]
    return ", ".join([str(protocol.get("network", "")), *counts])


_COUNTS = {"n_generated": "samples", "n_reference": "real"}


def _study(folder: Path) -> list[Block]:
    """The study's JSON files as they are: each number under its own name."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        return [Text("pruning_study holds no JSON file.", absent=True)]
    return [_figures(f"Study: {name(path.stem)}", read_json(path)) for path in paths]


def _figures(title: str, content: object) -> Table:
    found = list(numbers_in(content))
    rows = [(Code(shortened(key, 60)), _number(value)) for key, value in found[:MAX_FIGURES]]
    shown = (
        f"The first {MAX_FIGURES} of {count(len(found))} numbers."
        if len(found) > MAX_FIGURES
        else "All numbers in the file."
    )
    return Table(title, shown, [Column("Figure"), Column("Value", numeric=True)], rows)


def numbers_in(content: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number of a JSON document with its place in it, `curves.0.fid`."""
    if isinstance(content, Mapping):
        for part, value in content.items():
            yield from numbers_in(value, f"{key}.{part}" if key else str(part))
    elif isinstance(content, list | tuple):
        for i, value in enumerate(content):
            yield from numbers_in(value, f"{key}.{i}" if key else str(i))
    elif isinstance(content, int | float) and not isinstance(content, bool) and np.isfinite(content):
        yield key, content


def _number(value: object) -> str:
    return quantity(value) if isinstance(value, int | float) and np.isfinite(value) else str(json.dumps(value))
