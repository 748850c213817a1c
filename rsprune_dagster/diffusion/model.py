"""A denoiser together with what it takes to make images from it: its schedule, and the space it works in."""

from dataclasses import dataclass, replace

import torch

from rsprune_dagster.diffusion.denoiser import Denoiser, any_scene
from rsprune_dagster.diffusion.schedule import Schedule, noise_schedule
from rsprune_dagster.diffusion.spaces import Space, pixels


@dataclass(frozen=True)
class Model:
    """All that sampling needs, as a training leaves it and a checkpoint holds it."""

    denoiser: Denoiser
    schedule: Schedule
    space: Space

    def to(self, device: str) -> "Model":
        """With its weights on a device, in the plain layout."""
        moved = self.denoiser.to(device=device, memory_format=torch.contiguous_format)
        return replace(self, denoiser=moved, space=self.space.on(device))

    @property
    def n_weights(self) -> int:
        return sum(parameter.numel() for parameter in self.denoiser.parameters())

    @property
    def any_scene(self) -> int | None:
        """The class that stands for any scene; None for a denoiser without classes."""
        return any_scene(self.denoiser)


def in_pixels(denoiser: Denoiser) -> Model:
    """A bare UNet, as trained by v-prediction in pixel space."""
    assert "num_embeds_ada_norm" not in denoiser.config, "a DiT is sampled as the Model that the training returns"
    return Model(denoiser, noise_schedule(), pixels(denoiser.config.sample_size))
