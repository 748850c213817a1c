"""super_resolution_checkpoint: fine-tune the foundation model and measure it on other images. Without Dagster."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rsprune_dagster.config.layout import EXAMPLES, MANIFEST_FILE, METRICS, RESTORATION, TRAINING, Layout
from rsprune_dagster.config.params import SuperResolutionParams, TrainingParams
from rsprune_dagster.corpus.options import read_options
from rsprune_dagster.diffusion.checkpoint import SamplingOptions, load_checkpoint, model_digest
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import to_images, to_tensor
from rsprune_dagster.downstream.crops import CropSet, crop_set, spread
from rsprune_dagster.downstream.degradation import enlarged
from rsprune_dagster.downstream.fine_tuning import fine_tuned
from rsprune_dagster.downstream.restoration import (
    Images,
    Mean,
    RestorationScore,
    distances,
    measure,
    scores,
    sheet_cells,
)
from rsprune_dagster.downstream.super_resolution import (
    MEAN_SHARE,
    SuperResolution,
    Task,
    card,
    write_super_resolution,
)
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.leakage import N_EXAMPLES, shared_contents
from rsprune_dagster.stages.diffusion_checkpoint import sampling_options
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.utils.csv_files import write_sheet
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.progress import Progress, silent

BICUBIC, AVERAGE, SAMPLE = "bicubic", "mean", "sample"
"""What is measured: the bicubic enlargement, which is the baseline, and the two outputs of the model."""
N_SHOWN = 8
LEAST_IMAGES = 2
"""Of one image there is no interval."""
NOT_MEASURED = "There are no test images: name some in super_resolution.test_sources or evaluation.sources."


@dataclass(frozen=True)
class SuperResolutionReport:
    """Figures for the web UI; `metrics` is the content of metrics.json."""

    scale: int
    degradation: str
    n_images: int
    n_tiles: int
    n_too_small: int
    """Tiles smaller than a crop, which were left out."""
    n_test_images: int
    n_weights: int
    first_loss: float
    final_loss: float
    n_threads: int
    not_measured: str
    metrics: dict[str, float]

    def figures(self) -> dict[str, float | int | str]:
        """All of it, flat; without what was not measured, which stands among the pictures."""
        own = {name: value for name, value in asdict(self).items() if name not in ("metrics", "not_measured")}
        return {**own, **self.metrics}


@dataclass(frozen=True)
class ImageSources:
    """Where images lie. No training sources: the kept tiles. No test sources: nothing is measured."""

    training: Sequence[str]
    test: Sequence[str]


@dataclass(frozen=True)
class TaskImages:
    """The images of a fine-tuning."""

    training: CropSet
    test: CropSet | None
    """None: nothing is measured."""
    n_too_small: int
    """Training images smaller than a crop, which were left out."""
    are_kept_tiles: bool
    """The training images are the kept tiles."""

    def fingerprint(self) -> str:
        """A hash of all of them."""
        test = self.test.fingerprint() if self.test else ""
        return hashlib.sha256(f"{self.training.fingerprint()} {test}".encode()).hexdigest()


@dataclass(frozen=True)
class Results:
    """Crops of test images, what became of them, and how good that is."""

    truth: Images
    low: Images
    outputs: dict[str, Images]
    scores: list[RestorationScore]
    metrics: dict[str, float]
    not_measured: str


def train_super_resolution(
    layout: Layout,
    params: SuperResolutionParams,
    training: TrainingParams,
    sources: ImageSources,
    scanner: Scanner,
    networks: Sequence[FeatureNetwork],
    *,
    seed: int,
    device: str,
    progress: Progress = silent,
) -> SuperResolutionReport:
    """Read the images (`read_images`), fine-tune and measure (`fine_tune`).

    Raises:
        UsageError, RunError: as these two, or the foundation cannot be loaded.
    """
    foundation, _ = load_checkpoint(layout.folder("diffusion_checkpoint"))
    folder, edge_px = layout.folder("super_resolution_checkpoint"), foundation.space.image_size_px
    known = layout.has("pruned_subset") or not sources.training
    tiles = pq.read_table(layout.file("subset")) if known else None
    images = read_images(layout, folder, params, training, sources, scanner, edge_px=edge_px, tiles=tiles)
    return fine_tune(
        layout, foundation, params, training, images, networks, seed=seed, device=device, progress=progress
    )


def read_images(
    layout: Layout,
    folder: Path,
    params: SuperResolutionParams,
    training: TrainingParams,
    sources: ImageSources,
    scanner: Scanner,
    *,
    edge_px: int,
    tiles: pa.Table | None,
) -> TaskImages:
    """Scan the images into `training` and `test` below `folder`.

    Args:
        training: its `on_changed_tile`.
        edge_px: of the foundation's images.
        tiles: rows of raw_corpus that the foundation may have seen. They are learned from where no sources are named.

    Raises:
        UsageError: no images, images too small, or a scale that does not divide `edge_px`.
        RunError: a test image is also a training image or among `tiles`.
    """
    make = partial(_crops, params=params, training=training, edge_px=edge_px)
    table, read_from = tiles, layout.folder("raw_corpus") if not sources.training else folder / "training"
    if sources.training:
        table = _scanned(sources.training, read_from, scanner, "images for super-resolution")
    assert table is not None, "without sources there are tiles"
    crops, test = make(table, read_from, parameter="sources"), None
    if sources.test:
        found = _scanned(sources.test, folder / "test", scanner, "test images")
        _check_apart(found, [table, *([tiles] if tiles is not None else [])])
        test = make(found, folder / "test", parameter="test_sources")
    return TaskImages(crops, test, table.num_rows - len(crops), are_kept_tiles=not sources.training)


def fine_tune(
    layout: Layout,
    foundation: Model,
    params: SuperResolutionParams,
    training: TrainingParams,
    images: TaskImages,
    networks: Sequence[FeatureNetwork],
    *,
    seed: int,
    device: str,
    progress: Progress = silent,
) -> SuperResolutionReport:
    """Fine-tune on crops of the training images, measure on a crop of each test image, and write the checkpoint.

    The training states lie in the cache: an interrupted training resumes.

    Args:
        foundation: the model of diffusion_checkpoint.
        training: batches, precision and sampler.
        networks: for the Fréchet distances.

    Raises:
        UsageError, RunError: as `training.train`.
    """
    folder, tiles, test = layout.folder("super_resolution_checkpoint"), images.training, images.test
    on = str(resolve_device(device))
    trained, options = fine_tuned(
        tiles,
        foundation,
        params,
        training,
        parent=model_digest(layout.folder("diffusion_checkpoint")),
        n_channels=foundation.space.channels,
        states=layout.cache / "super_resolution",
        seed=seed,
        device=on,
        progress=progress,
        mean_share=MEAN_SHARE,
        condition=f"image of 1/{params.scale} the size, {params.degradation}",
    )
    model = SuperResolution(trained.model.to(on), Task(params.scale, params.degradation, MEAN_SHARE))
    sampling = sampling_options(training, seed)
    results = _results(model, tiles, test, params.n_test_images, sampling, networks) if test else None
    report = SuperResolutionReport(
        scale=params.scale,
        degradation=params.degradation,
        n_images=trained.n_images,
        n_tiles=len(tiles),
        n_too_small=images.n_too_small,
        n_test_images=len(results.truth) if results else 0,
        n_weights=trained.model.n_weights,
        first_loss=trained.losses[0],
        final_loss=trained.final_loss,
        n_threads=trained.n_threads,
        not_measured=results.not_measured if results else NOT_MEASURED,
        metrics=results.metrics if results else {},
    )
    trained, licence = trained.moved("cpu"), training.data_licence if images.are_kept_tiles else ""
    write_super_resolution(folder, trained, model.task, card(trained, model.task, options, licence))
    _write(folder, report, results)
    return report


def _check_apart(test: pa.Table, seen: Sequence[pa.Table]) -> None:
    """RunError: test images are among those that were seen, here or by the foundation."""
    if shared := sorted({name for each in seen for name in shared_contents(test, each)}):
        raise RunError(
            f"{len(shared):,} test images were trained on, such as {', '.join(shared[:N_EXAMPLES])}: take them out of "
            "super_resolution.test_sources; best, test on other places than those trained on"
        )


def _scanned(sources: Sequence[str], folder: Path, scanner: Scanner, label: str) -> pa.Table:
    folder.mkdir()
    scan(sources, folder, scanner, labelled=False, label=label)
    return pq.read_table(folder / MANIFEST_FILE)


def _crops(
    table: pa.Table,
    read_from: Path,
    *,
    parameter: str,
    params: SuperResolutionParams,
    training: TrainingParams,
    edge_px: int,
) -> CropSet:
    """The images that are large enough. UsageError: fewer than LEAST_IMAGES are."""
    crops = crop_set(
        table,
        read_options(read_from),
        edge_px=edge_px,
        scale=params.scale,
        degradation=params.degradation,
        on_changed=training.on_changed_tile,
    )
    if len(crops) < LEAST_IMAGES:
        raise UsageError(
            f"{len(crops)} of {table.num_rows:,} images of super_resolution.{parameter} have the {edge_px} x {edge_px} "
            f"px of the foundation model's images, expected {LEAST_IMAGES} or more: give larger ones"
        )
    return crops


def _results(
    model: SuperResolution,
    tiles: CropSet,
    test: CropSet,
    n_images: int,
    options: SamplingOptions,
    networks: Sequence[FeatureNetwork],
) -> Results:
    """Measure on a crop of up to n test images, and the gain of the mean on as many training images too.

    A model that memorized its training images gains much more on them.
    """
    scale = model.task.scale
    truth, low = test.pairs(min(n_images, len(test)), options.seed)
    mean, sample = model.means(low, options.batch_size), model.samples(low, options)
    outputs = {BICUBIC: _bicubic(low, scale), AVERAGE: mean, SAMPLE: sample}
    on_images = scores(outputs, truth, low, scale)
    of_sets, not_measured = distances(outputs, truth, networks)
    found = [*on_images, *of_sets]
    [gain] = [score.gain for score in on_images if (score.output, score.measure) == (AVERAGE, "psnr") and score.gain]
    known_truth, known_low = tiles.pairs(min(n_images, len(tiles)), options.seed)
    known = {BICUBIC: _bicubic(known_low, scale), AVERAGE: model.means(known_low, options.batch_size)}
    before, after = (measure(images, known_truth, known_low, scale)["psnr"] for images in known.values())
    metrics = {f"{score.measure}_{score.output}": score.mean.value for score in found}
    metrics |= _named("psnr_gain", gain) | _named("psnr_gain_training", Mean.of(after - before))
    return Results(truth, low, outputs, found, metrics, not_measured)


def _named(name: str, mean: Mean) -> dict[str, float]:
    return {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}


def _bicubic(low: Images, scale: int) -> Images:
    return to_images(enlarged(to_tensor(low), scale))


def _write(folder: Path, report: SuperResolutionReport, results: Results | None) -> None:
    own = asdict(report)
    (folder / METRICS).write_text(json.dumps(own.pop("metrics"), indent=1) + "\n")
    (folder / TRAINING).write_text(json.dumps(own, indent=1) + "\n")
    write_sheet(folder / RESTORATION, SHEET, _rows(results.scores if results else []))
    examples = folder / EXAMPLES
    examples.mkdir()
    if results is None:
        return
    for number, index in enumerate(spread(len(results.truth), N_SHOWN)):
        low = results.low[index].repeat(report.scale, axis=0).repeat(report.scale, axis=1)
        row = np.concatenate([low, *(each[index] for each in results.outputs.values()), results.truth[index]], axis=1)
        Image.fromarray(row).save(examples / f"{number:02d}.png")


SHEET = ("output", "measure", "value", "low", "high", "gain", "gain_low", "gain_high")


def _rows(found: Iterable[RestorationScore]) -> Iterable[Sequence[object]]:
    for score in found:
        yield score.output, score.measure, *sheet_cells(score.mean, score.gain)
