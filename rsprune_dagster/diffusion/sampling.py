"""Sample images from a denoiser: in batches, by scene, with classifier-free guidance."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from rsprune_dagster.config.params import suggest
from rsprune_dagster.diffusion.denoiser import Denoiser
from rsprune_dagster.diffusion.model import Model, pixel_model
from rsprune_dagster.diffusion.objective import encoded_condition, to_images
from rsprune_dagster.diffusion.schedule import N_TIMESTEPS, SAMPLERS
from rsprune_dagster.diffusion.tile_set import Condition
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
    condition: Condition | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """One image per entry of `scenes`.

    Args:
        model: from a training or a checkpoint; a bare denoiser is a UNet in pixel space (`model.pixel_model`).
        scenes: (n,) scene numbers; ANY_SCENE: unconditional.
        guidance: scale of classifier-free guidance (Ho & Salimans 2022); 1: none.
        condition: a row for each image, for a model that takes one (`denoiser.with_condition`).
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
            given = None if condition is None else condition[numbers]
            noise = noise_of(model, numbers, seed)
            images.append(to_images(denoised(model, noise, wanted[numbers], n_steps, guidance, sampler, given)))
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


def denoised(
    model: Model,
    noise: torch.Tensor,
    scenes: np.ndarray,
    n_steps: int,
    guidance: float,
    sampler: str,
    condition: Condition | None = None,
) -> torch.Tensor:
    """Images (n, 3, s, s) float32, about [-1, 1], from noise (n, c, edge, edge), for scenes (n,)."""
    device = model.denoiser.device
    stepper = SAMPLERS[sampler](model.schedule, n_steps, device)
    labels = torch.from_numpy(scenes).to(device)
    given = None if condition is None else encoded_condition(model.space, condition).to(device)
    state = noise.to(device)
    for timestep in stepper.timesteps:
        said = guided(model, state, timestep, labels, given, guidance)
        state = stepper.step(said, timestep, state).prev_sample
    return model.space.decode(state)


def mean(model: Model, condition: Condition) -> torch.Tensor:
    """The mean of all images (n, 3, s, s) that a condition leaves possible: the image of the smallest squared error.

    It is the prediction at the last timestep from zeros, for which the target of a training with
    `TrainingOptions.mean_share` is the negative of the image.
    """
    given = encoded_condition(model.space, condition).to(model.denoiser.device)
    nothing = given.new_zeros(len(given), model.space.channels, model.space.edge, model.space.edge)
    labels = None if model.null_class is None else torch.full((len(given),), model.null_class, device=given.device)
    last = torch.tensor(N_TIMESTEPS - 1, device=given.device)
    return model.space.decode(-_predicted(model.denoiser, nothing, last, labels, given))


def noise_of(model: Model, numbers: np.ndarray, seed: int) -> torch.Tensor:
    """The noise (n, c, edge, edge) that images of these numbers start from."""
    shape = (model.space.channels, model.space.edge, model.space.edge)
    seeds = [int(np.random.SeedSequence((seed, int(number))).generate_state(1)[0]) for number in numbers]
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(each)) for each in seeds]
    return torch.stack(noise).to(model.denoiser.device)


def guided(
    model: Model,
    state: torch.Tensor,
    timestep: torch.Tensor,
    labels: torch.Tensor,
    given: torch.Tensor | None,
    guidance: float,
) -> torch.Tensor:
    """The prediction with classifier-free guidance, away from the one without scene and without condition."""
    labels_taken = labels if model.null_class is not None else None
    if guidance == 1 or (labels_taken is None and given is None):
        return _predicted(model.denoiser, state, timestep, labels_taken, given)
    without = None if labels_taken is None else torch.full_like(labels, model.null_class or 0)
    both = None if without is None else torch.cat([labels, without])
    twice = None if given is None else torch.cat([given, torch.zeros_like(given)])
    led, free = _predicted(model.denoiser, torch.cat([state, state]), timestep, both, twice).chunk(2)
    return free + guidance * (led - free)


def _predicted(
    denoiser: Denoiser,
    state: torch.Tensor,
    timestep: torch.Tensor,
    labels: torch.Tensor | None,
    given: torch.Tensor | None,
) -> torch.Tensor:
    inputs = state if given is None else torch.cat([state, given], dim=1)
    said: torch.Tensor = denoiser(inputs, timestep.expand(len(state)), class_labels=labels).sample
    return said
