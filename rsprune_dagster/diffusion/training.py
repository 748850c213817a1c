"""The training loop, counted in images. An interrupted training resumes from its last state with the same losses."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rsprune_dagster.config.params import TrainingParams, suggest
from rsprune_dagster.diffusion.denoiser import Denoiser, build_denoiser, null_class
from rsprune_dagster.diffusion.distributed import SINGLE_PROCESS, ProcessGroup
from rsprune_dagster.diffusion.latents import Space, identity_space, pixels
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import OBJECTIVES, SCENE_DROPOUT, NoisyBatch, Objective, loss_of, noised
from rsprune_dagster.diffusion.signals import deferred_signals
from rsprune_dagster.diffusion.state import TrainingState, latest_state, layout, save_state
from rsprune_dagster.diffusion.threads import resume_threads, torch_threads
from rsprune_dagster.diffusion.tile_set import Batch, TrainingData
from rsprune_dagster.pruning.encoders.embedding import ahead
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.progress import Progress, silent


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training."""

    preset: str
    n_images: int
    """Training length; an image that is seen twice counts twice."""
    batch_size: int
    """Images per step over all processes."""
    micro_batch_size: int
    """Images per forward pass of one process; smaller: less memory, same result."""
    learning_rate: float
    warmup_images: int
    """Images over which the learning rate rises linearly."""
    ema_half_life_images: int
    """Half-life of the weight average (EMA), in images."""
    scene_dropout: float
    """Share of images trained without a scene label; the pipeline's: SCENE_DROPOUT."""
    precision: str
    """float32, bfloat16, or auto: bfloat16 where the device computes in it (`autocast`)."""
    seed: int
    save_every_images: int
    denoiser: str = "unet"
    """unet or dit."""
    objective: str = "v_prediction"
    """v_prediction or flow_matching."""
    gradient_checkpointing: bool = False
    """Recompute activations: less memory, slower, same result."""
    autoencoder_digest: str = ""
    """sha256 of the autoencoder of a latent diffusion; empty: pixels."""
    condition: str = ""
    """Description of the denoiser's additional input; empty: there is none."""
    condition_dropout: float = 0.0
    """Share of images trained with zeros for the condition, which classifier-free guidance needs."""
    mean_share: float = 0.0
    """Share of images trained with zeros for the noisy image, from which the mean is predicted (`sampling.mean`)."""
    parent: str = ""
    """Digest of the checkpoint that the training starts from; empty: from random weights."""


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    model: Model
    """The model with averaged weights (EMA)."""
    losses: tuple[float, ...]
    """One loss per step."""
    n_images: int
    n_threads: int
    """Number of CPU threads used; another number changes the last bits."""

    @property
    def denoiser(self) -> Denoiser:
        return self.model.denoiser

    @property
    def final_loss(self) -> float:
        """The mean over the last twentieth of the steps."""
        return float(np.mean(self.losses[-max(1, len(self.losses) // 20) :]))

    def moved(self, device: str) -> "Trained":
        """Move the weights to a device, in contiguous memory format."""
        return replace(self, model=self.model.to(device))


OnState = Callable[[Model, int], object]
"""Callback with the averaged model and the number of training images, after each scheduled save."""


def train(
    tiles: TrainingData,
    options: TrainingOptions,
    folder: Path,
    *,
    device: str,
    space: Space | None = None,
    start: Callable[[], Denoiser] | None = None,
    ranks: ProcessGroup = SINGLE_PROCESS,
    progress: Progress = silent,
    on_state: OnState = lambda model, n_images: None,
) -> Trained:
    """Train a denoiser on tiles, from the last state in `folder` if there is one.

    A resumed training uses the same number of threads as before if there are enough cores (`threads.resume_threads`).
    So it gives the same bits on the same type of processor.

    SIGTERM and Ctrl-C are handled between two steps: a state is saved, then the previous handler runs.

    Args:
        folder: receives the states, `state-IMAGES`; the last two are kept.
        space: the latent space (`latents.latents`) of `options.autoencoder_digest`; None: pixels.
        start: the denoiser before the first image; None: one with random weights (`new_denoiser`).

    Raises:
        UsageError: fewer tiles than a batch, unknown preset, or `folder` holds the states of another training.
        RunError: the loss is not finite, a tile changed, or the disk is full; the last saved state is intact.
    """
    check(tiles, options)
    space = (space or pixel_space(tiles, options)).on(device)
    assert space.digest == options.autoencoder_digest, "the options name the space's autoencoder"
    objective = OBJECTIVES[options.objective]
    schedule = objective.schedule(space)
    first = start or (lambda: new_denoiser(tiles, options, space))
    state = latest_state(folder, options, tiles) or TrainingState.new(first())
    state = state.on(device)
    state.n_threads = resume_threads(state.n_threads, ranks.n)
    averaged = Model(state.averaged, schedule, space)
    if options.gradient_checkpointing:
        state.denoiser.enable_gradient_checkpointing()
    model = ranks.wrapped(state.denoiser)
    with (
        torch_threads(state.n_threads),
        progress("training", options.n_images) as advance,
        _loaded(tiles, options, state.n_images) as stream,
        deferred_signals() as interruption,
    ):
        advance(state.n_images)
        for batch in stream:
            share = share_of(batch, objective, schedule, space, state, options, ranks)
            loss = step(model, state, share, len(batch.images), options, device, ranks)
            state.after(loss, n=len(batch.images), half_life_images=options.ema_half_life_images)
            advance(len(batch.images))
            interrupted = ranks.any(bool(interruption.came), device)
            due = is_due(state.n_images, len(batch.images), options)
            if due or interrupted:
                _save(state, folder, options, tiles, ranks)
            if due and ranks.is_first:
                on_state(averaged, state.n_images)
            ranks.wait()
            if interrupted:
                interruption.end(interruption.came)
    return Trained(averaged, tuple(state.losses), state.n_images, state.n_threads)


def is_due(n_images: int, n: int, options: TrainingOptions) -> bool:
    """Whether the last `n` images reached the end or a multiple of `save_every_images`.

    This does not depend on where a training was interrupted.
    """
    every = options.save_every_images
    return n_images >= options.n_images or n_images // every > (n_images - n) // every


def pixel_space(tiles: TrainingData, options: TrainingOptions) -> Space:
    """The pixel space; for a DiT with an identity autoencoder, which its pipeline requires."""
    return identity_space(tiles.image_size_px) if options.denoiser == "dit" else pixels(tiles.image_size_px)


def share_of(
    batch: Batch,
    objective: Objective,
    schedule: object,
    space: Space,
    state: TrainingState,
    options: TrainingOptions,
    ranks: ProcessGroup,
) -> NoisyBatch:
    """This process's rows of a batch, with noise added."""
    return noised(
        batch,
        objective,
        schedule,
        space,
        null_class=null_class(state.denoiser) or 0,
        scene_dropout=options.scene_dropout,
        condition_dropout=options.condition_dropout,
        mean_share=options.mean_share,
        seed=options.seed,
        rows=ranks.rows(len(batch.images)),
        at_once=options.micro_batch_size,
    )


def check(tiles: TrainingData, options: TrainingOptions) -> None:
    """Validate before training.

    Raises:
        UsageError: fewer tiles than a batch, or an unknown objective.
    """
    if options.objective not in OBJECTIVES:
        known = tuple(OBJECTIVES)
        raise UsageError(
            f"no objective is called {options.objective}{suggest(options.objective, known)}; "
            f"there are {', '.join(known)}"
        )
    if len(tiles) < options.batch_size:
        raise UsageError(
            f"{len(tiles):,} tiles are fewer than one batch of {options.batch_size}: keep more tiles, "
            f"or set training.batch_size to at most {len(tiles)}"
        )


def learning_rate_at(n_images: int, options: TrainingOptions) -> float:
    """Linear warm-up, then constant: the weight average (EMA) replaces a decay."""
    return options.learning_rate * min(1.0, (n_images + options.batch_size) / max(1, options.warmup_images))


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """The autocast context: bfloat16 if requested, or with auto if it is faster on the device; else float32."""
    kind = device.split(":", maxsplit=1)[0]
    if precision == "bfloat16" or (precision == "auto" and bfloat16_is_faster(kind)):
        return torch.autocast(kind, torch.bfloat16)
    return nullcontext()


def bfloat16_is_faster(kind: str) -> bool:
    """Whether a step is faster in bfloat16: on GPUs and on processors with AMX.

    With AVX-512 only, conversions cost what the arithmetic saves; emulation is ten times slower (docs/log.md).
    """
    if kind == "cpu":
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return kind == "cuda"


def new_denoiser(tiles: TrainingData, options: TrainingOptions, space: Space) -> Denoiser:
    """A denoiser with random weights, which depend on the seed only, not on the machine."""
    return build_denoiser(
        options.preset,
        image_size_px=space.edge,
        n_scenes=len(tiles.scene_names),
        seed=options.seed,
        kind=options.denoiser,
        channels=space.channels,
        for_latents=bool(space.digest),
    )


def _loaded(tiles: TrainingData, options: TrainingOptions, start: int) -> AbstractContextManager[Iterator[Batch]]:
    """The remaining batches, prefetched in a thread."""
    stream = tiles.batches(start=start, end=options.n_images, batch_size=options.batch_size, seed=options.seed)
    return ahead(stream, 4)


def step(
    model: torch.nn.Module,
    state: TrainingState,
    share: NoisyBatch,
    n_rows: int,
    options: TrainingOptions,
    device: str,
    ranks: ProcessGroup,
) -> float:
    """One Adam step on a batch of `n_rows`, of which this process has `share`; returns the batch's mean loss.

    Raises:
        RunError: the loss is not finite.
    """
    total = torch.zeros((), device=device)
    n_own, at_once = len(share.inputs), options.micro_batch_size
    for start in range(0, n_own, at_once):
        part = _slice(share, slice(start, start + at_once), device)
        with ranks.averaging(model, last=start + at_once >= n_own):
            with autocast(device, options.precision):
                loss = loss_of(model, part) * ranks.weight(len(part.inputs), n_rows)
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    value = ranks.mean(total)
    if not math.isfinite(value):
        raise RunError(
            f"the loss is {value} after {state.n_images:,} images: lower training.learning_rate, or set "
            "training.precision to float32; the last saved state is from before"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(state.n_images, options)
    torch.nn.utils.clip_grad_norm_(state.denoiser.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return value


def _slice(share: NoisyBatch, rows: slice, device: str) -> NoisyBatch:
    return NoisyBatch(
        share.inputs[rows].to(device, memory_format=layout(device)),
        share.timesteps[rows].to(device),
        share.scenes[rows].to(device),
        share.target[rows].to(device, memory_format=layout(device)),
    )


def _save(
    state: TrainingState, folder: Path, options: TrainingOptions, tiles: TrainingData, ranks: ProcessGroup
) -> None:
    if ranks.is_first:
        save_state(state, folder, options, tiles)


def training_options(params: TrainingParams, seed: int, space: Space | None = None) -> TrainingOptions:
    """The training options from params.yaml."""
    names = TrainingOptions.__dataclass_fields__.keys() & type(params).model_fields.keys()
    digest = space.digest if space else ""
    values = params.model_dump(include=set(names))
    return TrainingOptions(seed=seed, autoencoder_digest=digest, scene_dropout=SCENE_DROPOUT, **values)
