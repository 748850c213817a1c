"""What the denoiser learns: v-prediction, on noise and timesteps that come from the number of the image."""

from dataclasses import dataclass

import numpy as np
import torch

from rsprune_dagster.diffusion.denoiser import Denoiser, Schedule
from rsprune_dagster.diffusion.tiles import Batch


@dataclass(frozen=True)
class Noised:
    """A batch as the denoiser sees it, and what it should say."""

    noisy: torch.Tensor
    """(n, 3, s, s) float32: alpha x + sigma noise."""
    timesteps: torch.Tensor
    """(n,) int64."""
    scenes: torch.Tensor
    """(n,) int64; `n_scenes` where the scene is left out."""
    target: torch.Tensor
    """(n, 3, s, s) float32: v = alpha noise - sigma x (Salimans & Ho 2022)."""


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(n, s, s, 3) uint8 as (n, 3, s, s) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_images(tensor: torch.Tensor) -> np.ndarray:
    """The inverse of `to_tensor`, clipped and rounded."""
    pixels = tensor.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return np.asarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def noised(batch: Batch, schedule: Schedule, *, n_scenes: int, scene_dropout: float, seed: int) -> Noised:
    """Noise a batch. The draws depend on the seed and on the number of the batch's first image, on nothing else."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, batch.first)).generate_state(1)[0]))
    clean = to_tensor(batch.images)
    n = len(clean)
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.randint(schedule.config.num_train_timesteps, (n,), generator=generator)
    left_out = torch.rand(n, generator=generator) < scene_dropout
    scenes = torch.where(left_out, n_scenes, torch.from_numpy(batch.scenes))
    return Noised(
        noisy=schedule.add_noise(clean, noise, timesteps),
        timesteps=timesteps,
        scenes=scenes,
        target=schedule.get_velocity(clean, noise, timesteps),
    )


def loss_of(denoiser: Denoiser, part: Noised) -> torch.Tensor:
    """The mean squared error of v, a scalar."""
    labels = part.scenes if takes_scenes(denoiser) else None
    said = denoiser(part.noisy, part.timesteps, class_labels=labels).sample
    return torch.nn.functional.mse_loss(said.float(), part.target)


def takes_scenes(denoiser: torch.nn.Module) -> bool:
    """Whether the denoiser is conditional on scenes."""
    inner = getattr(denoiser, "module", denoiser)
    return getattr(inner, "class_embedding", None) is not None
