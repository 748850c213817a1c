"""How good the samples of the model are: scores with their intervals and protocols, and what could not be measured."""

import io
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsprune_dagster.report.page.album import fetch, tile_uri
from rsprune_dagster.report.page.blocks import Block, Cell, Code, Column, Gallery, Table, Text, Tile, TileRow
from rsprune_dagster.report.page.tally import read_json
from rsprune_dagster.report.page.words import count, name, number

MAX_SCORES = 40
MAX_LEFT_OUT = 20
MAX_SCENES = 12
N_SAMPLES = 6


def evaluation_blocks(folder: Path) -> list[Block]:
    """What the folder of evaluation_metrics tells: protocols.json with all about each score, else metrics.json."""
    told = read_json(folder / "protocols.json") if (folder / "protocols.json").is_file() else {}
    scores = told.get("scores", {})
    blocks: list[Block] = [score_table(scores) if scores else _plain(folder)]
    if (folder / "samples.parquet").is_file():
        blocks += _samples(folder / "samples.parquet")
    blocks += [Text(sentence) for sentence in told.get("leaks", [])]
    return blocks + _left_out(told.get("left_out", {}))


def score_table(scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each score of protocols.json; those of single scenes (`kernel_x/city`) come last."""
    ordered = sorted(scores.items(), key=lambda item: "/" in item[0])
    rows = [_score(title, score) for title, score in ordered[:MAX_SCORES]]
    columns = [
        Column("Score"),
        Column("Value", numeric=True),
        Column("Interval", numeric=True),
        Column("Better", minor=True),
        Column("Measured with", minor=True),
    ]
    shown = f" The first {MAX_SCORES} of {count(len(ordered))}." if len(ordered) > MAX_SCORES else ""
    caption = (
        "Samples of the model against images that neither pruning nor training saw. Numbers of unequal protocols "
        f"(network, resizing, counts) must not be compared.{shown}"
    )
    return Table("Evaluation of the samples", caption, columns, rows)


def _score(title: str, score: Mapping[str, Any]) -> tuple[Cell, ...]:
    protocol = score.get("protocol", {})
    counts = [f"{protocol[key]:,} {words}" for key, words in _COUNTS.items() if key in protocol]
    return (
        name(title),
        number(score["value"]),
        f"{number(score.get('low'))} to {number(score.get('high'))}",
        "higher" if score.get("larger_is_better") else "lower",
        ", ".join([protocol.get("network", ""), *counts]),
    )


_COUNTS = {"n_generated": "samples", "n_reference": "real"}


def _plain(folder: Path) -> Block:
    """The numbers of metrics.json."""
    path = folder / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    rows = [(Code(str(key)), number(value)) for key, value in metrics.items() if isinstance(value, int | float)]
    if not rows:
        return Text("The evaluation left no numbers.", absent=True)
    columns = [Column("Score"), Column("Value", numeric=True)]
    return Table("Evaluation of the samples", "As in metrics.json.", columns, rows[:MAX_SCORES], narrow=True)


def _samples(path: Path) -> list[Block]:
    """The first samples of each scene whose pixels were kept."""
    sql = f"""SELECT sample, scene, image FROM samples WHERE image IS NOT NULL
              QUALIFY row_number() OVER (PARTITION BY scene ORDER BY sample) <= {N_SAMPLES} ORDER BY scene, sample"""
    rows = fetch(sql, {"samples": path})
    groups = [(scene, list(some)) for scene, some in groupby(rows, key=lambda row: str(row["scene"]))][:MAX_SCENES]
    tile_rows = [
        TileRow(name(scene) or "samples", "", [_tile(row["image"], f"Sample {row['sample']}: {scene}") for row in some])
        for scene, some in groups
    ]
    if not tile_rows:
        return []
    return [Gallery("What the model draws", "Samples by the scene that was asked for, not picked.", tile_rows)]


def _tile(png: bytes, words: str) -> Tile:
    return Tile(tile_uri(np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))), words)


def _left_out(reasons: Mapping[str, str]) -> list[Block]:
    if not reasons:
        return []
    rows = [(name(title), reason) for title, reason in list(reasons.items())[:MAX_LEFT_OUT]]
    shown = f" The first {MAX_LEFT_OUT} of {count(len(reasons))}." if len(reasons) > MAX_LEFT_OUT else ""
    return [Table("Not measured", f"Nothing takes their place.{shown}", [Column("Score"), Column("Why not")], rows)]
