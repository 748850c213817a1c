"""Images from a denoiser: in batches, by scene, led towards it."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from rsprune_dagster.diffusion.denoiser import SAMPLERS, Denoiser, noise_schedule
from rsprune_dagster.diffusion.objective import takes_scenes, to_images
from rsprune_dagster.errors import UsageError
from rsprune_dagster.params import suggest
from rsprune_dagster.progress import Progress, silent


def sample(
    denoiser: Denoiser,
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
        scenes: (n,) scene numbers; the number of scenes itself stands for any scene.
        guidance: 1: as learned; more: further from "any scene" (Ho & Salimans 2022).
        seed: image i starts from noise of (seed, i), whatever the batch size.

    Returns:
        (n, s, s, 3) uint8.

    Raises:
        UsageError: unknown sampler.
    """
    if sampler not in SAMPLERS:
        known = tuple(SAMPLERS)
        raise UsageError(f"no sampler is called {sampler}{suggest(sampler, known)}; there are {', '.join(known)}")
    wanted = np.asarray(scenes, np.int64)
    images = []
    denoiser.eval()
    with progress("samples", len(wanted)) as advance, torch.inference_mode():
        for start in range(0, len(wanted), batch_size):
            numbers = np.arange(start, min(start + batch_size, len(wanted)))
            images.append(_sample_batch(denoiser, wanted[numbers], numbers, n_steps, guidance, seed, sampler))
            advance(len(numbers))
    return np.concatenate(images)


def grid(images: np.ndarray, *, columns: int) -> Image.Image:
    """Images (n, s, s, 3) uint8, row by row."""
    n, edge = images.shape[:2]
    rows = -(-n // columns)
    sheet = np.full((rows * columns, edge, edge, 3), 255, np.uint8)
    sheet[:n] = images
    return Image.fromarray(
        sheet.reshape(rows, columns, edge, edge, 3).swapaxes(1, 2).reshape(rows * edge, columns * edge, 3)
    )


def _sample_batch(
    denoiser: Denoiser,
    scenes: np.ndarray,
    numbers: np.ndarray,
    n_steps: int,
    guidance: float,
    seed: int,
    sampler: str,
) -> np.ndarray:
    stepper = SAMPLERS[sampler](noise_schedule())
    stepper.set_timesteps(n_steps, device=denoiser.device)
    state = _noise(denoiser, numbers, seed)
    labels = torch.from_numpy(scenes).to(denoiser.device)
    for timestep in stepper.timesteps:
        said = _guided(denoiser, state, timestep, labels, guidance)
        state = stepper.step(said, timestep, state).prev_sample
    return to_images(state)


def _noise(denoiser: Denoiser, numbers: np.ndarray, seed: int) -> torch.Tensor:
    edge = denoiser.config.sample_size
    seeds = [int(np.random.SeedSequence((seed, int(number))).generate_state(1)[0]) for number in numbers]
    noise = [torch.randn((3, edge, edge), generator=torch.Generator().manual_seed(each)) for each in seeds]
    return torch.stack(noise).to(denoiser.device)


def _guided(
    denoiser: Denoiser, state: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, guidance: float
) -> torch.Tensor:
    """What the denoiser says, led away from what it says of any scene."""
    if not takes_scenes(denoiser):
        return _said(denoiser, state, timestep, None)
    if guidance == 1:
        return _said(denoiser, state, timestep, labels)
    any_scene = torch.full_like(labels, denoiser.config.num_class_embeds - 1)
    led, free = _said(denoiser, torch.cat([state, state]), timestep, torch.cat([labels, any_scene])).chunk(2)
    return free + guidance * (led - free)


def _said(denoiser: Denoiser, state: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    said: torch.Tensor = denoiser(state, timestep, class_labels=labels).sample
    return said
