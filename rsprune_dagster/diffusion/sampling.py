"""Sample images from a denoiser: in batches, by scene, with classifier-free guidance."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from rsprune_dagster.config.params import suggest
from rsprune_dagster.diffusion.denoiser import Denoiser
from rsprune_dagster.diffusion.model import Model, pixel_model
from rsprune_dagster.diffusion.objective import to_images
from rsprune_dagster.diffusion.schedule import SAMPLERS
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import Progress, silent

NULL_CLASS = -1


def sample(
    model: Model | Denoiser,
    scenes: Sequence[int] | np.ndarray,
    *,
    n_steps: int,
    guidance: float,
    seed: int,
    batch_size: int,
    sampler: str = "ddim",
    progress: Progress = silent,
) -> np.ndarray:
    """One image per entry of `scenes`.

    Args:
        model: from a training or a checkpoint; a bare denoiser is a UNet in pixel space (`model.pixel_model`).
        scenes: (n,) scene numbers; ANY_SCENE: unconditional.
        guidance: scale of classifier-free guidance (Ho & Salimans 2022); 1: none.
        seed: image i starts from noise of (seed, i), independent of the batch size.

    Returns:
        (n, s, s, 3) uint8.

    Raises:
        UsageError: unknown sampler.
    """
    if sampler not in SAMPLERS:
        known = tuple(SAMPLERS)
        raise UsageError(f"no sampler is called {sampler}{suggest(sampler, known)}; there are {', '.join(known)}")
    model = model if isinstance(model, Model) else pixel_model(model)
    wanted = np.asarray(scenes, np.int64)
    wanted = np.where(wanted == NULL_CLASS, model.null_class or 0, wanted)
    images = []
    model.denoiser.eval()
    with progress("samples", len(wanted)) as advance, torch.inference_mode():
        for start in range(0, len(wanted), batch_size):
            numbers = np.arange(start, min(start + batch_size, len(wanted)))
            images.append(_sample_batch(model, wanted[numbers], numbers, n_steps, guidance, seed, sampler))
            advance(len(numbers))
    return np.concatenate(images)


def grid(images: np.ndarray, *, columns: int) -> Image.Image:
    """Arrange images (n, s, s, 3) uint8 in a grid, row by row."""
    n, edge = images.shape[:2]
    rows = -(-n // columns)
    sheet = np.full((rows * columns, edge, edge, 3), 255, np.uint8)
    sheet[:n] = images
    return Image.fromarray(
        sheet.reshape(rows, columns, edge, edge, 3).swapaxes(1, 2).reshape(rows * edge, columns * edge, 3)
    )


def _sample_batch(
    model: Model,
    scenes: np.ndarray,
    numbers: np.ndarray,
    n_steps: int,
    guidance: float,
    seed: int,
    sampler: str,
) -> np.ndarray:
    device = model.denoiser.device
    stepper = SAMPLERS[sampler](model.schedule, n_steps, device)
    state = _noise(model, numbers, seed)
    labels = torch.from_numpy(scenes).to(device)
    for timestep in stepper.timesteps:
        said = _guided(model, state, timestep, labels, guidance)
        state = stepper.step(said, timestep, state).prev_sample
    return to_images(model.space.decode(state))


def _noise(model: Model, numbers: np.ndarray, seed: int) -> torch.Tensor:
    shape = (model.space.channels, model.space.edge, model.space.edge)
    seeds = [int(np.random.SeedSequence((seed, int(number))).generate_state(1)[0]) for number in numbers]
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(each)) for each in seeds]
    return torch.stack(noise).to(model.denoiser.device)


def _guided(
    model: Model, state: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, guidance: float
) -> torch.Tensor:
    """The prediction with classifier-free guidance."""
    if model.null_class is None:
        return _predicted(model.denoiser, state, timestep, None)
    if guidance == 1:
        return _predicted(model.denoiser, state, timestep, labels)
    both = torch.cat([labels, torch.full_like(labels, model.null_class)])
    led, free = _predicted(model.denoiser, torch.cat([state, state]), timestep, both).chunk(2)
    return free + guidance * (led - free)


def _predicted(
    denoiser: Denoiser, state: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None
) -> torch.Tensor:
    said: torch.Tensor = denoiser(state, timestep.expand(len(state)), class_labels=labels).sample
    return said
