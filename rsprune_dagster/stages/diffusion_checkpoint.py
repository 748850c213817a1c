"""diffusion_checkpoint: train on the kept tiles, write the checkpoint and its pictures. Without Dagster."""

import json
import shutil
from dataclasses import asdict, dataclass

import numpy as np

from rsprune_dagster.config.layout import SAMPLES_OVER_TRAINING, TRAINING, Layout
from rsprune_dagster.config.params import TrainingParams
from rsprune_dagster.diffusion.checkpoint import Origin, SamplingOptions, sample_grid, write_checkpoint
from rsprune_dagster.diffusion.latents import space_of
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.sampling import grid
from rsprune_dagster.diffusion.state import training_key
from rsprune_dagster.diffusion.tile_set import TileSet, kept_tiles
from rsprune_dagster.diffusion.training import train, training_options
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.progress import Progress, silent

MOST_SCENES_SHOWN = 16
"""Limit of scenes in these pictures: a foreign pool has one scene per cluster, possibly over a hundred."""


@dataclass(frozen=True)
class TrainingReport:
    """Figures of a training for the web UI."""

    n_tiles: int
    n_scenes: int
    n_images: int
    n_epochs: float
    n_weights: int
    first_loss: float
    final_loss: float
    """The mean over the last twentieth of the steps."""
    n_threads: int
    """Number of CPU threads used."""
    autoencoder_digest: str
    """sha256 of the autoencoder; empty: pixels."""


def train_checkpoint(
    layout: Layout,
    params: TrainingParams,
    *,
    subset_version: str,
    seed: int,
    device: str,
    progress: Progress = silent,
) -> TrainingReport:
    """Train on the kept tiles and write the checkpoint, with samples drawn during training.

    The training states lie in the cache under a hash of tiles and options: an interrupted training resumes, one with
    other tiles or options starts from scratch. There is one picture per saved state, named by training images: a
    sample per scene, always from the same noise.

    Raises:
        UsageError, RunError: as `training.train`.
    """
    tiles = kept_tiles(layout.folder("raw_corpus"), layout.folder("pruned_subset"), params)
    space = space_of(params)
    options, sampling = training_options(params, seed, space), sampling_options(params, seed)
    states = layout.cache / "training" / training_key(options, tiles)
    shown = commonest_scenes(tiles)

    def show(averaged: Model, n_images: int) -> None:
        samples = sample_grid(averaged, shown, n_per_scene=1, options=sampling)
        row = grid(np.concatenate(list(samples.values())), columns=len(samples))
        with atomic_write(states / SAMPLES_OVER_TRAINING / f"{n_images:012d}.png") as draft:
            row.save(draft, "PNG")

    trained = train(
        tiles, options, states, device=str(resolve_device(device)), space=space, progress=progress, on_state=show
    )
    origin = Origin(len(tiles), subset_version, params.data_licence)
    folder = layout.folder("diffusion_checkpoint")
    write_checkpoint(folder, trained.moved("cpu"), tiles.scene_names, options, origin)
    report = TrainingReport(
        n_tiles=len(tiles),
        n_scenes=len(tiles.scene_names),
        n_images=trained.n_images,
        n_epochs=trained.n_images / len(tiles),
        n_weights=trained.model.n_weights,
        first_loss=trained.losses[0],
        final_loss=trained.final_loss,
        n_threads=trained.n_threads,
        autoencoder_digest=options.autoencoder_digest,
    )
    (folder / TRAINING).write_text(json.dumps(asdict(report), indent=1) + "\n")
    shutil.copytree(states / SAMPLES_OVER_TRAINING, folder / SAMPLES_OVER_TRAINING)
    return report


def commonest_scenes(tiles: TileSet) -> dict[int, str]:
    """Number and name of the MOST_SCENES_SHOWN scenes with the most tiles, by number."""
    counts = np.bincount(tiles.scene_ids, minlength=len(tiles.scene_names))
    most = np.argsort(-counts, kind="stable")[:MOST_SCENES_SHOWN]
    return {int(number): tiles.scene_names[number] for number in sorted(most)}


def sampling_options(params: TrainingParams, seed: int) -> SamplingOptions:
    """The sampling options of the pictures."""
    return SamplingOptions(
        n_steps=params.sample_steps,
        guidance=params.guidance,
        sampler=params.sampler,
        batch_size=params.micro_batch_size,
        seed=seed,
    )
