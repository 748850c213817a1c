"""Write an evaluation to its folder: metrics, protocols, curves, samples and their nearest training tiles."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rsprune_dagster.config.layout import COPIES, METRICS, PROTOCOLS, RECOGNISED, SAMPLES, SCENE_SCORES
from rsprune_dagster.evaluation.evaluate import Evaluation
from rsprune_dagster.evaluation.features import FeatureNetwork, Images
from rsprune_dagster.evaluation.image_set import PIXELS
from rsprune_dagster.evaluation.memorization import Memorization, Pair
from rsprune_dagster.utils.csv_files import write_sheet

KEPT_PER_SCENE = 12
KEPT_PAIRS = 24
"""Number of samples stored with pixels: the first of each scene, and those closest to a training tile."""
N_QUANTILES = 101

SAMPLES_SCHEMA = pa.schema(
    [
        pa.field(
            "sample", pa.int32(), nullable=False, metadata={"doc": "its number: its noise comes from seed and number"}
        ),
        pa.field("scene", pa.string(), nullable=False, metadata={"doc": "that was asked for; empty: any"}),
        pa.field("nearest_tile_id", pa.string(), metadata={"doc": "the training tile nearest in small pictures"}),
        pa.field("turn", pa.int8(), metadata={"doc": "of the eight turns of the sample the nearest; see turn_of"}),
        pa.field("distance", pa.float64(), metadata={"doc": "to it, in grey levels of all small pixels"}),
        pa.field("relative", pa.float64(), metadata={"doc": "to the mean of the next nearest; 0: a copy"}),
        pa.field("image", pa.binary(), metadata={"doc": "PNG; null where it is not kept"}),
    ]
)


@dataclass(frozen=True)
class SampleSet:
    """Samples and their nearest training tiles."""

    images: Images
    scenes: tuple[str, ...]
    """Requested scene of each sample, (n,)."""
    tile_ids: tuple[str, ...]
    """Ids of the training tiles."""
    pairs: tuple[Pair, ...]
    """Smallest relative distance first; may be empty."""


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    sampled: SampleSet,
    counts: Mapping[str, int],
    *,
    network: FeatureNetwork,
) -> dict[str, float]:
    """Write all files into `folder`; returns the content of metrics.json.

    Args:
        network: the network whose distances and recognition are in the tables per scene.
    """
    metrics = {**counts, **evaluation.metrics()}
    _write_json(folder / METRICS, metrics)
    told = {"scores": evaluation.protocols(), "left_out": evaluation.left_out, "leaks": evaluation.leak_sentences}
    _write_json(folder / PROTOCOLS, told)
    pq.write_table(pa.Table.from_pylist(_rows(sampled), schema=SAMPLES_SCHEMA), folder / SAMPLES)
    write_sheet(
        folder / SCENE_SCORES, ("scene", "kernel_distance", "low", "high", "recognised"), _scenes(evaluation, network)
    )
    write_sheet(folder / RECOGNISED, ("asked_for", "recognised", "n_samples"), _recognised(evaluation, network))
    write_sheet(folder / COPIES, ("share", "samples", "held_out"), _copies(evaluation.memorizations.get(PIXELS)))
    return metrics


def _rows(sampled: SampleSet) -> list[dict[str, Any]]:
    near = {pair.sample: pair for pair in sampled.pairs}
    shown = {pair.sample for pair in sampled.pairs[:KEPT_PAIRS]} | set(_first_of_each(sampled.scenes))
    return [
        {
            "sample": number,
            "scene": scene,
            **(_nearest(near[number], sampled.tile_ids) if number in near else {}),
            "image": _png(sampled.images[number]) if number in shown else None,
        }
        for number, scene in enumerate(sampled.scenes)
    ]


def _nearest(pair: Pair, tile_ids: Sequence[str]) -> dict[str, Any]:
    return {
        "nearest_tile_id": tile_ids[pair.training],
        "turn": pair.turn,
        "distance": pair.distance,
        "relative": pair.relative,
    }


def _first_of_each(scenes: Sequence[str]) -> list[int]:
    places = {scene: [number for number, each in enumerate(scenes) if each == scene] for scene in dict.fromkeys(scenes)}
    return [number for numbers in places.values() for number in numbers[:KEPT_PER_SCENE]]


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _scenes(evaluation: Evaluation, network: FeatureNetwork) -> Iterable[Sequence[object]]:
    """Kernel distance and recognition rate per scene, where measured."""
    start = f"{network.measure('kernel')}/"
    scores = {score.name: score for score in evaluation.scores}
    recognition = evaluation.recognitions.get(network.name)
    for scene in recognition.scenes if recognition else ():
        distance, seen = scores.get(start + scene), scores.get(f"recognised_{network.name}/{scene}")
        if distance is not None:
            row = distance.value, distance.low, distance.high
            yield scene, *(f"{value:.6g}" for value in row), f"{seen.value:.6g}" if seen else ""


def _recognised(evaluation: Evaluation, network: FeatureNetwork) -> Iterable[Sequence[object]]:
    recognition = evaluation.recognitions.get(network.name)
    if recognition is None:
        return
    for asked_for, counts in zip(recognition.scenes, recognition.confusion.tolist(), strict=True):
        yield from ((asked_for, seen, n) for seen, n in zip(recognition.scenes, counts, strict=True))


def _copies(found: Memorization | None) -> Iterable[Sequence[object]]:
    """The quantiles of the relative distances of samples and held-out tiles."""
    if found is None:
        return
    shares = np.linspace(0, 1, N_QUANTILES)
    both = (np.quantile(values.relative, shares) for values in (found.samples, found.held_out))
    yield from ((f"{share:.2f}", f"{one:.6g}", f"{other:.6g}") for share, one, other in zip(shares, *both, strict=True))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
