"""Training objectives: noisy inputs and targets. Noise and timesteps depend on the seed and the image number."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from rsprune_dagster.diffusion.denoiser import Denoiser, null_class
from rsprune_dagster.diffusion.latents import Space
from rsprune_dagster.diffusion.schedule import FIRST_FLOW_TIMESTEP, N_TIMESTEPS, Schedule, flow_schedule, noise_schedule
from rsprune_dagster.diffusion.tile_set import Batch, Condition

SCENE_DROPOUT = 0.1
"""Share of images trained without a scene label, which classifier-free guidance needs."""


@dataclass(frozen=True)
class NoisyBatch:
    """The noisy input of the denoiser, and its target."""

    inputs: torch.Tensor
    """(n, c, s, s) float32: alpha x + sigma noise, then the channels of the condition, if there is one."""
    timesteps: torch.Tensor
    """(n,) int64."""
    scenes: torch.Tensor
    """(n,) int64; the null class where the scene is dropped."""
    target: torch.Tensor
    """(n, c, s, s) float32."""


@dataclass(frozen=True)
class Objective:
    """A training objective."""

    schedule: Callable[[Space], Schedule]
    draw_timesteps: Callable[[int, torch.Generator], torch.Tensor]
    noised: Callable[[Schedule, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """(schedule, clean, noise, timesteps) to (noisy, target)."""


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(n, s, s, 3) uint8 as (n, 3, s, s) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_images(tensor: torch.Tensor) -> np.ndarray:
    """The inverse of `to_tensor`, clipped and rounded."""
    pixels = tensor.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return np.asarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def noised(
    batch: Batch,
    objective: Objective,
    schedule: Schedule,
    space: Space,
    *,
    null_class: int,
    scene_dropout: float,
    condition_dropout: float = 0.0,
    mean_share: float = 0.0,
    seed: int,
    rows: slice = slice(None),
    at_once: int = 64,
) -> NoisyBatch:
    """Add noise to a batch, or to some rows of it.

    Random numbers are drawn for the whole batch and depend only on the seed and the index of its first image.

    Args:
        condition_dropout: share of images with zeros for the condition.
        mean_share: share of images with zeros for the noisy image, from which the mean is learnt (`sampling.mean`).
        at_once: images per call of the autoencoder.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, batch.first)).generate_state(1)[0]))
    n = len(batch.images)
    noise = torch.randn((n, space.channels, space.edge, space.edge), generator=generator)[rows]
    timesteps = objective.draw_timesteps(n, generator)[rows]
    left_out = torch.rand(n, generator=generator) < scene_dropout
    scenes = torch.where(left_out, null_class, torch.from_numpy(batch.scenes))[rows]
    clean = space.encode(to_tensor(batch.images[rows]), at_once=at_once)
    noisy, target = objective.noised(schedule, clean, noise, timesteps)
    if batch.condition is not None:
        given = encoded_condition(space, batch.condition[rows], at_once=at_once)
        without = (torch.rand(n, generator=generator) < condition_dropout)[rows]
        alone = (torch.rand(n, generator=generator) < mean_share)[rows]
        timesteps = torch.where(alone, N_TIMESTEPS - 1, timesteps)
        target = torch.where(alone[:, None, None, None], -clean, target)
        noisy = noisy.masked_fill(alone[:, None, None, None], 0.0)
        noisy = torch.cat([noisy, given.masked_fill(without[:, None, None, None], 0.0)], dim=1)
    return NoisyBatch(noisy, timesteps, scenes, target)


def encoded_condition(space: Space, condition: Condition, *, at_once: int = 64) -> torch.Tensor:
    """The channels that a condition has in the space: (n, c, edge, edge) float32."""
    planes = torch.from_numpy(condition.planes)
    if not space.digest:
        return planes
    if condition.is_image:
        return space.encode(planes, at_once=at_once)
    return torch.nn.functional.adaptive_avg_pool2d(planes, space.edge)


def uniform_timesteps(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n,) uniform timesteps from 0 to 999."""
    return torch.randint(N_TIMESTEPS, (n,), generator=generator)


def logit_normal_timesteps(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n,) timesteps from 1 to 999 with logit-normal density, highest in the middle (Esser et al. 2024)."""
    sigma = torch.randn(n, generator=generator).sigmoid()
    return (sigma * N_TIMESTEPS).round().long().clamp(FIRST_FLOW_TIMESTEP, N_TIMESTEPS - 1)


def with_velocity(
    schedule: Schedule, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """v-prediction: alpha x + sigma noise, and v = alpha noise - sigma x (Salimans & Ho 2022)."""
    return schedule.add_noise(clean, noise, timesteps), schedule.get_velocity(clean, noise, timesteps)


def with_flow(
    schedule: Schedule, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow matching: (1 - sigma) x + sigma noise, and the velocity noise - x (Lipman et al. 2023)."""
    sigma = (timesteps / N_TIMESTEPS)[:, None, None, None]
    return (1 - sigma) * clean + sigma * noise, noise - clean


OBJECTIVES: dict[str, Objective] = {
    "v_prediction": Objective(lambda space: noise_schedule(clipped=space.clipped), uniform_timesteps, with_velocity),
    "flow_matching": Objective(lambda space: flow_schedule(), logit_normal_timesteps, with_flow),
}


def loss_of(denoiser: Denoiser, part: NoisyBatch) -> torch.Tensor:
    """The mean squared error of the denoiser's prediction, a scalar."""
    labels = part.scenes if takes_scenes(denoiser) else None
    said = denoiser(part.inputs, part.timesteps, class_labels=labels).sample
    return torch.nn.functional.mse_loss(said.float(), part.target)


def takes_scenes(denoiser: torch.nn.Module) -> bool:
    """Whether the denoiser is conditional on scenes."""
    return null_class(getattr(denoiser, "module", denoiser)) is not None
