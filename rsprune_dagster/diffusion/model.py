"""A denoiser with its noise schedule and its space (pixels or latents)."""

from dataclasses import dataclass, replace

import torch

from rsprune_dagster.diffusion.denoiser import Denoiser, kind_of, null_class
from rsprune_dagster.diffusion.latents import Space, pixels
from rsprune_dagster.diffusion.schedule import Schedule, noise_schedule


@dataclass(frozen=True)
class Model:
    """Everything that sampling needs; the result of a training and the content of a checkpoint."""

    denoiser: Denoiser
    schedule: Schedule
    space: Space

    def to(self, device: str) -> "Model":
        """Move the weights to a device, in contiguous memory format."""
        moved = self.denoiser.to(device=device, memory_format=torch.contiguous_format)
        return replace(self, denoiser=moved, space=self.space.on(device))

    @property
    def n_weights(self) -> int:
        return sum(parameter.numel() for parameter in self.denoiser.parameters())

    @property
    def null_class(self) -> int | None:
        """The null class of classifier-free guidance; None for a denoiser without classes."""
        return null_class(self.denoiser)


def pixel_model(denoiser: Denoiser) -> Model:
    """The Model of a bare UNet trained by v-prediction in pixel space."""
    assert kind_of(denoiser) == "unet", "a DiT is sampled as the Model that the training returns"
    return Model(denoiser, noise_schedule(), pixels(denoiser.config.sample_size))
