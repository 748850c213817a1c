"""What lies in the folder of evaluation_metrics, as pictures and tables."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from rsprune_dagster.corpus.sheets import unshielded
from rsprune_dagster.evaluation.seen import turn_of
from rsprune_dagster.evaluation.written import COPIES, METRICS, PROTOCOLS, RECOGNISED, SAMPLES, SCENES
from rsprune_dagster.report import evaluation
from rsprune_dagster.report.montage import Row, gallery
from rsprune_dagster.report.tiles import rows_of, tiles_of

PER_SCENE = 8
MAX_SCENES = 24
PAIRS_PER_ROW = 12


def evaluation_pictures(corpus: Path, folder: Path) -> dict[str, bytes | str]:
    """Samples beside held-out tiles, samples beside the training tiles they are nearest to, scores, curves.

    Args:
        corpus: of raw_corpus, where the training tiles lie.
        folder: of evaluation_metrics.
    """
    told = json.loads((folder / PROTOCOLS).read_text())
    pictures: dict[str, bytes | str] = {"scores": evaluation.score_table(told["scores"])}
    if told["left_out"]:
        pictures["not measured"] = evaluation.left_out_table(told["left_out"])
    if told["leaks"]:
        pictures["leaks"] = "\n\n".join(told["leaks"])
    kept = [row for row in pq.read_table(folder / SAMPLES).to_pylist() if row["image"]]
    pictures["samples"] = _samples(folder / "held_out", kept)
    return {**pictures, **_nearest(corpus, kept), **_charts(folder, told["scores"])}


def headline(folder: Path) -> str:
    """The few figures that a person wants first, a line each."""
    metrics = json.loads((folder / METRICS).read_text())
    told = json.loads((folder / PROTOCOLS).read_text())
    names = [name for name in told["scores"] if "/" not in name]
    lines = [
        f"{metrics[name]:>12.4g}  {name} ({metrics[f'{name}_low']:.4g} to {metrics[f'{name}_high']:.4g})"
        for name in names
    ]
    return "\n".join(lines or [f"nothing was measured: {next(iter(told['left_out'].values()), '')}"])


def _samples(held_out: Path, kept: Sequence[dict[str, Any]]) -> bytes:
    """A row per scene: samples, then held-out tiles of the scene, framed."""
    real = _held_out(held_out)
    scenes = list(dict.fromkeys(row["scene"] for row in kept))[:MAX_SCENES]
    rows = []
    for scene in scenes:
        made = [_image(row) for row in sorted(kept, key=lambda row: row["sample"]) if row["scene"] == scene][:PER_SCENE]
        true = real.get(scene, [])
        rows.append(Row(scene or "tiles", [*made, *true], [False] * len(made) + [True] * len(true)))
    return gallery(rows, tile_px=56, legend="held-out tiles of the scene; the others are samples" if real else "")


def _held_out(folder: Path) -> dict[str, list[np.ndarray]]:
    """The first held-out tiles of each scene, in content order; empty where there are none."""
    manifest = folder / "manifest.parquet"
    if not manifest.is_file():
        return {}
    sql = f"""
        SELECT * FROM (
            SELECT * EXCLUDE (thumbnail), row_number() OVER (PARTITION BY label ORDER BY content_md5, tile_id) AS place
            FROM manifest
        ) WHERE place <= {PER_SCENE} ORDER BY label, place
    """
    rows = rows_of(sql, {"manifest": manifest})
    tiles: dict[str, list[np.ndarray]] = {}
    for row, tile in zip(rows, tiles_of(folder, rows), strict=True):
        tiles.setdefault(str(row["label"]), []).append(tile)
    return tiles


def _nearest(corpus: Path, kept: Sequence[dict[str, Any]]) -> dict[str, bytes | str]:
    """The samples most singled out near one training tile, over that tile; how near stands under it."""
    near = sorted((row for row in kept if row["nearest_tile_id"]), key=lambda row: (row["relative"], row["distance"]))
    if not near:
        return {}
    tiles = _training_tiles(corpus, [row["nearest_tile_id"] for row in near[: 2 * PAIRS_PER_ROW]])
    rows = []
    for start in range(0, len(tiles), PAIRS_PER_ROW):
        some = slice(start, min(start + PAIRS_PER_ROW, len(tiles)))
        turned = [turn_of(_image(row)[None], row["turn"])[0] for row in near[some]]
        rows.append(Row("samples, the nearest first, turned as they lie nearest", turned))
        captions = [f"{row['relative']:.2f}" for row in near[some]]
        rows.append(
            Row("the training tile nearest to each (0: a copy, 1: no nearer than others)", tiles[some], (), captions)
        )
    return {"samples and their nearest training tiles": gallery(rows, tile_px=64)}


def _training_tiles(corpus: Path, tile_ids: Sequence[str]) -> list[np.ndarray]:
    named = ", ".join("'" + tile_id.replace("'", "''") + "'" for tile_id in sorted(set(tile_ids)))
    sql = f"SELECT * EXCLUDE (thumbnail) FROM manifest WHERE tile_id IN ({named})"
    rows = rows_of(sql, {"manifest": corpus / "manifest.parquet"})
    tiles = dict(zip([row["tile_id"] for row in rows], tiles_of(corpus, rows), strict=True))
    return [tiles[tile_id] for tile_id in tile_ids]


def _charts(folder: Path, scores: evaluation.Scores) -> dict[str, bytes | str]:
    pictures: dict[str, bytes | str] = {}
    scenes, seen, copies = (_sheet(folder / name) for name in (SCENES, RECOGNISED, COPIES))
    if len(scenes):
        distances = scenes[["kernel_distance", "low", "high"]].to_numpy(np.float64)
        network = next(iter(scores.values()))["protocol"]["network"]
        pictures["scenes"] = evaluation.scene_chart(
            scenes["scene"].astype(str).tolist(),
            distances,
            scenes["recognised"].to_numpy(np.float64),
            measure=f"kernel distance on {network}",
        )
    if len(seen):
        counts = seen.pivot(index="asked_for", columns="recognised", values="n_samples")
        pictures["recognised scenes"] = evaluation.confusion([str(name) for name in counts.index], counts.to_numpy())
    if len(copies):
        columns = (copies[name].to_numpy(np.float64) for name in ("share", "samples", "held_out"))
        pictures["copies"] = evaluation.copies_curve(*columns)
    return pictures


def _sheet(path: Path) -> pd.DataFrame:
    """A CSV file; its texts as they were before they were shielded."""
    frame = pd.read_csv(path)
    return frame.map(lambda cell: unshielded(cell) if isinstance(cell, str) else cell)


def _image(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
