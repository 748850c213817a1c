"""Fine-tuning of the foundation for a task."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rsprune_dagster.config.params import SemanticSynthesisParams, SuperResolutionParams, TrainingParams
from rsprune_dagster.diffusion.denoiser import Denoiser, kind_of, with_condition, with_new_weights
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.schedule import objective_name
from rsprune_dagster.diffusion.state import training_key
from rsprune_dagster.diffusion.tile_set import TrainingData
from rsprune_dagster.diffusion.training import Trained, TrainingOptions, train, training_options
from rsprune_dagster.utils.progress import Progress

LENGTH: Final = ("n_images", "learning_rate", "warmup_images", "ema_half_life_images", "save_every_images")
"""Parameters of a fine-tuning; all other options are those of the foundation's training."""


def fine_tuned(
    data: TrainingData,
    foundation: Model,
    params: SuperResolutionParams | SemanticSynthesisParams,
    training: TrainingParams,
    *,
    parent: str,
    n_channels: int,
    states: Path,
    seed: int,
    device: str,
    progress: Progress,
    **task: Any,
) -> tuple[Trained, TrainingOptions]:
    """Train the foundation's denoiser with a condition of `n_channels`; also the options of that training.

    Args:
        training: batches and precision.
        parent: the foundation's digest.
        states: a folder below it holds the training states, under a hash of data and options.
        task: training options that the task sets.

    Raises:
        UsageError, RunError: as `training.train`.
    """
    options = replace(
        training_options(training, seed, foundation.space),
        **params.model_dump(include=set(LENGTH)),
        denoiser=kind_of(foundation.denoiser),
        objective=objective_name(foundation.schedule),
        scene_dropout=1.0,  # no scenes
        parent=f"{params.start} {parent}",
        **task,
    )
    trained = train(
        data,
        options,
        states / training_key(options, data),
        device=device,
        space=foundation.space,
        start=lambda: start_of(foundation, n_channels, seed, from_random=params.start == "random"),
        progress=progress,
    )
    return trained, options


def start_of(foundation: Model, n_channels: int, seed: int, *, from_random: bool) -> Denoiser:
    """The denoiser before the fine-tuning, with `n_channels` more input channels.

    Args:
        from_random: random weights of `seed` instead of the foundation's.
    """
    denoiser = with_new_weights(foundation.denoiser, seed) if from_random else foundation.denoiser
    return with_condition(denoiser, n_channels)
