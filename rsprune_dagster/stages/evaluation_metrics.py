"""evaluation_metrics: sample from the checkpoint, compare with held-out tiles, write the scores. Without Dagster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rsprune_dagster.config.layout import HELD_OUT, MANIFEST_FILE, Layout
from rsprune_dagster.config.params import EvaluationParams
from rsprune_dagster.corpus.options import ReadOptions, read_options
from rsprune_dagster.diffusion.checkpoint import load_checkpoint, model_digest, trained_on
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.sampling import sample
from rsprune_dagster.diffusion.tile_set import TileSet, tile_set
from rsprune_dagster.evaluation.evaluate import Evaluation, Settings, evaluate
from rsprune_dagster.evaluation.features import FeatureNetwork, Images
from rsprune_dagster.evaluation.image_set import PIXELS, ImageSet, image_set_of
from rsprune_dagster.evaluation.intervals import Resampling
from rsprune_dagster.evaluation.leakage import LEAK_WARNING, N_EXAMPLES, shared_contents
from rsprune_dagster.evaluation.memorization import COPY_NEIGHBOURS, Pair, nearest, pairs_of
from rsprune_dagster.evaluation.networks import copy_network, measures_of, named_networks
from rsprune_dagster.evaluation.protocol import Score
from rsprune_dagster.evaluation.sample_cache import cached_array, key_of, with_feature_cache
from rsprune_dagster.evaluation.scene_scores import MEAN
from rsprune_dagster.evaluation.writer import SampleSet, write_evaluation
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.utils.progress import Progress, silent

SAMPLES_VERSION = "1"
"""Version of the sampling code; increment when the same model and options give other samples."""
PROTOCOL_SAMPLER_NAMES = {"ddim": "ddim to each next timestep"}
"""Sampler names in protocols. DDIM was renamed after a fix for step counts that do not divide 1000."""
MAX_TILES = 100_000
"""Largest number of training or held-out tiles compared; larger sets are subsampled. About 5 kB a tile and network."""
TILES_PER_READ = 256
"""Tiles read at a time."""
NOTHING_HELD_OUT = (
    "there are no held-out tiles to compare with: name some that neither pruning nor training saw in evaluation.sources"
)


@dataclass(frozen=True)
class EvaluationReport:
    """The result. `metrics` is the content of metrics.json, flat."""

    metrics: dict[str, float]
    scores: tuple[Score, ...]
    left_out: dict[str, str]
    leaks: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """The metrics except those of single scenes."""
        return {name: value for name, value in self.metrics.items() if "/" not in name or f"/{MEAN}" in name}


def evaluate_checkpoint(
    layout: Layout,
    sources: Sequence[str],
    params: EvaluationParams,
    scanner: Scanner,
    *,
    subset_version: str,
    seed: int,
    device: str,
    progress: Progress = silent,
) -> EvaluationReport:
    """Sample from the checkpoint, compare with the held-out tiles in `sources`, and write the results.

    All tiles are preprocessed as in training: cropped to a square, at the checkpoint's image size. Without sources only
    the nearest training tile of each sample is found; other scores are left out with that reason.

    Args:
        subset_version: the content hash of the current pruned_subset; empty if unknown.

    Raises:
        UsageError: sources without images or scenes, an unknown network, or an empty subset.
        RunError: the checkpoint cannot be loaded or was trained on another subset; too few held-out tiles for any
            distance; held-out tiles in the training set, unless `on_leak` is `report`.
    """
    checkpoint, subset = layout.folder("diffusion_checkpoint"), layout.file("subset")
    folder, work = layout.folder("evaluation_metrics"), layout.cache / "evaluation"
    model, scene_names = _checkpoint(checkpoint, subset_version)
    size_px = model.space.image_size_px
    networks, missing = named_networks(params.networks, image_size_px=params.network_size_px, device=device)
    features = work / "features" / resolve_device(device).type  # kinds of device differ in last bits
    networks = [with_feature_cache(network, features) for network in networks]
    turned_in = copy_network(params.copies_in, networks)
    kept_table = pq.read_table(subset)
    others_table = _held_out(sources, folder / HELD_OUT, scanner)
    kept = _drawn(kept_table, read_options(layout.folder("raw_corpus")), size_px, seed, scene_column="scene")
    others = None
    if others_table is not None:
        others = _drawn(others_table, read_options(folder / HELD_OUT), size_px, seed, scene_column="label")
    shared = _shared(others_table, kept_table, params) if others_table is not None else []
    asked_for = scenes_to_sample(params, scene_names, subset)
    drawn = key_of(SAMPLES_VERSION, model_digest(checkpoint), *_drawn_alike(params, asked_for, seed, device))
    images = cached_array(
        work / "samples" / f"{drawn}.safetensors",
        (len(asked_for), size_px, size_px, 3),
        np.uint8,
        lambda: _samples(model.to(str(resolve_device(device))), asked_for, params, seed, progress),
    )

    scenes = tuple(scene_names[number] for number in asked_for)
    generated = image_set_of(
        _batches(images),
        networks,
        turned=True,
        turned_in=turned_in,
        scenes=scenes if len(scene_names) > 1 else None,
    )
    training = _image_set_of_tiles(kept, [turned_in] if turned_in else [], progress("training tiles", len(kept)))
    evaluation = _nothing_held_out(networks)
    if others is not None:
        bar = progress("held-out tiles", len(others))
        held_out = _image_set_of_tiles(others, networks, bar, turned=True, turned_in=turned_in)
        settings = Settings(Resampling(seed=seed), on_leak=params.on_leak)
        evaluation = evaluate(generated, held_out, training, held_out, networks, settings=settings)
        _check_measured(evaluation, networks, len(others))
    evaluation = replace(
        evaluation,
        leak_sentences=(*([_shared_sentence(shared)] if shared else []), *evaluation.leak_sentences),
        scores=tuple(_with_sampling(score, params) for score in evaluation.scores),
        left_out={**missing, **evaluation.left_out},
    )
    sampled = SampleSet(images, scenes, tuple(kept.table.column("tile_id").to_pylist()), _pairs(generated, training))
    counts = {
        "n_samples": len(images),
        "n_training_tiles": len(kept),
        "n_held_out": len(others) if others else 0,
        "n_training_tiles_all": kept_table.num_rows,
        "n_held_out_all": others_table.num_rows if others_table is not None else 0,
        "image_size_px": size_px,
    }
    if shared:
        counts["n_leaked_contents"] = len(shared)
    metrics = write_evaluation(folder, evaluation, sampled, counts, network=networks[0])
    return EvaluationReport(metrics, evaluation.scores, evaluation.left_out, evaluation.leak_sentences)


def scenes_to_sample(params: EvaluationParams, scene_names: Sequence[str], subset: Path) -> NDArray[np.int64]:
    """The scene number of each sample, (n_samples,), sorted: equal per scene, or in the subset's proportions."""
    if params.scenes == "balanced":
        weights = np.ones(len(scene_names))
    else:
        scenes = [scene or "" for scene in pq.read_table(subset).column("scene").to_pylist()]
        weights = np.array([scenes.count(name) for name in scene_names], np.float64)
    ends = np.rint(np.cumsum(weights) / weights.sum() * params.n_samples).astype(np.int64)
    return np.repeat(np.arange(len(scene_names)), np.diff(ends, prepend=0))


def _checkpoint(checkpoint: Path, subset_version: str) -> tuple[Model, tuple[str, ...]]:
    model, scene_names = load_checkpoint(checkpoint)
    version = trained_on(checkpoint)
    if version and subset_version and version != subset_version:
        raise RunError(
            f"the checkpoint was trained on pruned_subset {version}, but {subset_version} lies there, so "
            "copies and leaks would be sought among the wrong tiles: materialize diffusion_checkpoint first, or bring "
            "that subset back with `rsprune restore`"
        )
    return model, scene_names


def _held_out(sources: Sequence[str], folder: Path, scanner: Scanner) -> pa.Table | None:
    """Scan `sources` into `folder` and return the manifest; None without sources."""
    if not sources:
        return None
    folder.mkdir()
    scan(sources, folder, scanner, labelled=True, label="held-out tiles")
    return pq.read_table(folder / MANIFEST_FILE)


def _shared(others: pa.Table, kept: pa.Table, params: EvaluationParams) -> list[str]:
    """Held-out tiles with the content of a training tile, if only a sample of the tiles is compared by pixels.

    Raises RunError if there are any, unless `on_leak` is `report`.
    """
    if max(others.num_rows, kept.num_rows) <= MAX_TILES:
        return []
    shared = shared_contents(others, kept)
    if shared and params.on_leak == "refuse":
        raise RunError(f"{_shared_sentence(shared)} {LEAK_WARNING}")
    return shared


def _shared_sentence(shared: Sequence[str]) -> str:
    more = ", ..." if len(shared) > N_EXAMPLES else ""
    return f"{len(shared):,} held-out tiles have the content of training tiles: {', '.join(shared[:N_EXAMPLES])}{more}."


def _drawn(table: pa.Table, options: ReadOptions, size_px: int, seed: int, *, scene_column: str) -> TileSet:
    """A sample of at most MAX_TILES tiles. Each is read once, so none is cached in memory."""
    if table.num_rows > MAX_TILES:
        chosen = np.random.default_rng(seed).choice(table.num_rows, MAX_TILES, replace=False)
        table = table.take(np.sort(chosen))
    tiles = tile_set(table, options, image_size_px=size_px, scene_column=scene_column)
    return replace(tiles, memory_limit_bytes=0)


def _drawn_alike(params: EvaluationParams, scenes: NDArray[np.int64], seed: int, device: str) -> list[object]:
    """Everything that samples depend on besides the model; batch size and device type change the last bits."""
    how = params.model_dump(include={"sampler", "sample_steps", "guidance", "batch_size"})
    return [how, scenes.tolist(), seed, resolve_device(device).type]


def _samples(
    model: Model, scenes: NDArray[np.int64], params: EvaluationParams, seed: int, progress: Progress
) -> Images:
    return sample(
        model,
        scenes,
        n_steps=params.sample_steps,
        guidance=params.guidance,
        sampler=params.sampler,
        seed=seed,
        batch_size=params.batch_size,
        progress=progress,
    )


def _batches(images: Images) -> Iterator[Images]:
    return (images[start : start + TILES_PER_READ] for start in range(0, len(images), TILES_PER_READ))


def _image_set_of_tiles(
    tiles: TileSet,
    networks: Sequence[FeatureNetwork],
    bar: AbstractContextManager[Callable[[int], None]],
    *,
    turned: bool = False,
    turned_in: FeatureNetwork | None = None,
) -> ImageSet:
    with bar as advance:

        def read() -> Iterator[Images]:
            for start in range(0, len(tiles), TILES_PER_READ):
                rows = range(start, min(start + TILES_PER_READ, len(tiles)))
                yield tiles.images(rows)
                advance(len(rows))

        return image_set_of(
            read(),
            networks,
            turned=turned,
            turned_in=turned_in,
            scenes=[tiles.scene_names[number] for number in tiles.scene_ids],
            names=tiles.table.column("tile_id").to_pylist(),
        )


def _nothing_held_out(networks: Sequence[FeatureNetwork]) -> Evaluation:
    names = [name for network in networks for name in measures_of(network.name)]
    return Evaluation((), dict.fromkeys([*names, "memorization"], NOTHING_HELD_OUT), {}, {}, {}, ())


def _check_measured(evaluation: Evaluation, networks: Sequence[FeatureNetwork], n_held_out: int) -> None:
    """Raise RunError if there are too few tiles for every measure."""
    kernel = networks[0].measure("kernel")
    if reason := evaluation.left_out.get(kernel):
        raise RunError(f"{n_held_out:,} held-out tiles are too few to measure anything: {reason}")


def _with_sampling(score: Score, params: EvaluationParams) -> Score:
    """The score with the sampling options added to its protocol, since they affect it."""
    sampler = PROTOCOL_SAMPLER_NAMES.get(params.sampler, params.sampler)
    drawn = f"{params.scenes} scenes, {sampler}, {params.sample_steps} steps, guidance {params.guidance:g}"
    protocol = replace(score.protocol, parameters=(*score.protocol.parameters, ("samples", drawn)))
    return replace(score, protocol=protocol)


def _pairs(generated: ImageSet, training: ImageSet) -> tuple[Pair, ...]:
    """Each sample and its nearest training tile among downscaled images; empty if there is only one tile."""
    n_neighbours = min(COPY_NEIGHBOURS, len(training) - 1)
    if n_neighbours < 1:
        return ()
    found = nearest(generated.turned[PIXELS], training.spaces[PIXELS], n_neighbours=n_neighbours)
    return pairs_of(found, generated, training)
