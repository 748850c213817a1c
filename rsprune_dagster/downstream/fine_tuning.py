"""Fine-tuning of the foundation for a task: the denoiser that it starts from, and the options of its training."""

from dataclasses import replace
from typing import Any, Final

from rsprune_dagster.config.params import SemanticSynthesisParams, SuperResolutionParams, TrainingParams
from rsprune_dagster.diffusion.denoiser import Denoiser, kind_of, with_condition, with_new_weights
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.schedule import objective_name
from rsprune_dagster.diffusion.training import TrainingOptions, training_options

LENGTH: Final = ("n_images", "learning_rate", "warmup_images", "ema_half_life_images", "save_every_images")
"""Parameters of a fine-tuning; all other options are those of the foundation's training."""


def start_of(foundation: Model, n_channels: int, seed: int, *, from_random: bool) -> Denoiser:
    """The denoiser before the fine-tuning, with `n_channels` more input channels.

    Args:
        from_random: random weights of `seed` instead of the foundation's.
    """
    denoiser = with_new_weights(foundation.denoiser, seed) if from_random else foundation.denoiser
    return with_condition(denoiser, n_channels)


def fine_tuning_options(
    params: SuperResolutionParams | SemanticSynthesisParams,
    training: TrainingParams,
    foundation: Model,
    parent: str,
    seed: int,
    **task: Any,
) -> TrainingOptions:
    """The options of a training from the foundation.

    Args:
        parent: the foundation's digest.
        task: options that the task sets.
    """
    return replace(
        training_options(training, seed, foundation.space),
        **params.model_dump(include=set(LENGTH)),
        denoiser=kind_of(foundation.denoiser),
        objective=objective_name(foundation.schedule),
        scene_dropout=1.0,  # no scenes
        parent=f"{params.start} {parent}",
        **task,
    )
