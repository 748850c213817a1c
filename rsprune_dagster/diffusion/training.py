"""The training loop, counted in images. Whatever cuts it short, it goes on from its last state to the same losses."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rsprune_dagster.diffusion.denoiser import Denoiser, build_denoiser, noise_schedule
from rsprune_dagster.diffusion.objective import Noised, loss_of, noised
from rsprune_dagster.diffusion.ranks import ALONE, Ranks
from rsprune_dagster.diffusion.state import TrainingState, latest_state, layout, save_state
from rsprune_dagster.diffusion.tiles import Batch, TileSet, batches
from rsprune_dagster.errors import RunError, UsageError
from rsprune_dagster.progress import Progress, silent
from rsprune_dagster.pruning.embedding import ahead


@dataclass(frozen=True)
class TrainingOptions:
    """What a training depends on, beside its tiles."""

    preset: str
    n_images: int
    """Training length; an image that is seen twice counts twice."""
    batch_size: int
    """Over all processes."""
    micro_batch_size: int
    """Images that one process works on at a time; less memory, the same result."""
    learning_rate: float
    warmup_images: int
    """The learning rate rises linearly over these."""
    ema_half_life_images: int
    """The averaged weights forget half in so many images."""
    scene_dropout: float
    precision: str
    """float32, bfloat16, or auto: bfloat16 on a GPU."""
    seed: int
    save_every_images: int


@dataclass(frozen=True)
class Trained:
    """The end of a training."""

    denoiser: Denoiser
    """With the averaged weights."""
    losses: tuple[float, ...]
    """One per step."""
    n_images: int

    def moved(self, device: str) -> "Trained":
        """With its weights on a device, in the plain layout."""
        return replace(self, denoiser=self.denoiser.to(device=device, memory_format=torch.contiguous_format))


OnState = Callable[[Denoiser, int], object]
"""Told of the averaged denoiser and the images seen, whenever a state was saved."""


def train(
    tiles: TileSet,
    options: TrainingOptions,
    folder: Path,
    *,
    device: str,
    ranks: Ranks = ALONE,
    progress: Progress = silent,
    on_state: OnState = lambda denoiser, n_images: None,
) -> Trained:
    """Train a denoiser on tiles, from the last state in `folder` if there is one.

    Args:
        folder: gets the states, `state-IMAGES`; the last two are kept.

    Raises:
        UsageError: fewer tiles than a batch, unknown preset, or `folder` holds the states of another training.
        RunError: the loss is no number any more (the last state is from before), a tile changed, the disk is full.
    """
    check(tiles, options, ranks)
    state = latest_state(folder, options, tiles) or new_state(tiles, options)
    state = state.on(device)
    schedule = noise_schedule()
    model = ranks.wrapped(state.denoiser)
    saved_at = state.n_images
    with progress("training", options.n_images) as advance, _loaded(tiles, options, state.n_images) as stream:
        advance(state.n_images)
        for batch in stream:
            whole = noised(
                batch,
                schedule,
                n_scenes=len(tiles.scene_names),
                scene_dropout=options.scene_dropout,
                seed=options.seed,
            )
            loss = step(model, state, ranks.share(whole), options, device, ranks)
            state.after(loss, n=len(batch.images), half_life_images=options.ema_half_life_images)
            advance(len(batch.images))
            if state.n_images - saved_at >= options.save_every_images or state.n_images >= options.n_images:
                _save(state, folder, options, tiles, ranks, on_state)
                saved_at = state.n_images
    return Trained(state.averaged, tuple(state.losses), state.n_images)


def check(tiles: TileSet, options: TrainingOptions, ranks: Ranks = ALONE) -> None:
    """Raise UsageError for what would fail later.

    Raises:
        UsageError: fewer tiles than a batch, or a batch that the processes do not divide.
    """
    if len(tiles) < options.batch_size:
        raise UsageError(
            f"{len(tiles):,} tiles are fewer than one batch of {options.batch_size}: keep more tiles, "
            f"or set training.batch_size to at most {len(tiles)}"
        )
    if options.batch_size % ranks.n:
        raise UsageError(f"a batch of {options.batch_size} cannot be shared by {ranks.n} processes: give a multiple")


def learning_rate_at(n_images: int, options: TrainingOptions) -> float:
    """Linear warm-up, then constant: the average of the weights does the cooling down."""
    return options.learning_rate * min(1.0, (n_images + options.batch_size) / max(1, options.warmup_images))


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """bfloat16 where asked, or on a GPU by itself; float32 else."""
    kind = device.split(":", maxsplit=1)[0]
    if precision == "bfloat16" or (precision == "auto" and kind == "cuda"):
        return torch.autocast(kind, torch.bfloat16)
    return nullcontext()


def new_state(tiles: TileSet, options: TrainingOptions) -> TrainingState:
    denoiser = build_denoiser(
        options.preset,
        image_size_px=tiles.image_size_px,
        n_scenes=len(tiles.scene_names),
        seed=options.seed,
    )
    return TrainingState.new(denoiser)


def _loaded(tiles: TileSet, options: TrainingOptions, start: int) -> AbstractContextManager[Iterator[Batch]]:
    """The batches that are left, read ahead of the model."""
    stream = batches(tiles, start=start, end=options.n_images, batch_size=options.batch_size, seed=options.seed)
    return ahead(stream, 4)


def step(
    model: torch.nn.Module, state: TrainingState, share: Noised, options: TrainingOptions, device: str, ranks: Ranks
) -> float:
    """One step of Adam on a batch; returns its loss, the mean over all processes.

    Raises:
        RunError: the loss is no number.
    """
    n = len(share.noisy)
    total = torch.zeros((), device=device)
    for start in range(0, n, options.micro_batch_size):
        part = _slice(share, slice(start, start + options.micro_batch_size), device)
        with autocast(device, options.precision):
            loss = loss_of(model, part) * (len(part.noisy) / n)
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


def _slice(share: Noised, rows: slice, device: str) -> Noised:
    return Noised(
        share.noisy[rows].to(device, memory_format=layout(device)),
        share.timesteps[rows].to(device),
        share.scenes[rows].to(device),
        share.target[rows].to(device, memory_format=layout(device)),
    )


def _save(
    state: TrainingState, folder: Path, options: TrainingOptions, tiles: TileSet, ranks: Ranks, on_state: OnState
) -> None:
    if ranks.is_first:
        save_state(state, folder, options, tiles)
        on_state(state.averaged, state.n_images)
    ranks.wait()
