"""A model of semantic image synthesis: a denoiser that is also given the share of each class in each pixel."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rsprune_dagster.diffusion.checkpoint import SamplingOptions, load_checkpoint, pipeline_of, write_pipeline
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import to_images
from rsprune_dagster.diffusion.sampling import NULL_CLASS, guided, sample
from rsprune_dagster.diffusion.schedule import SAMPLERS
from rsprune_dagster.diffusion.tile_set import Condition
from rsprune_dagster.diffusion.training import Trained, TrainingOptions
from rsprune_dagster.downstream.masks import Palette
from rsprune_dagster.downstream.pairs import class_shares
from rsprune_dagster.downstream.windows import corners, ramp
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.progress import Progress, silent

SETTINGS: Final = "semantic_synthesis.json"
CONDITION_DROPOUT: Final = 0.1
"""Share of images trained without a mask, which classifier-free guidance needs."""
OVERLAP: Final = 4
"""Neighbouring windows of a large mask overlap by one part in so many of their edge."""


@dataclass(frozen=True)
class Task:
    """The classes and the size of crops that a model was trained for."""

    classes: tuple[str, ...]
    """Lines of a colour and its class, as in params.yaml."""
    crop_px: int
    """Edge of the part of a mask that an image of the model shows."""


@dataclass(frozen=True)
class Synthesis:
    """A model and the task it was trained for."""

    model: Model
    task: Task

    @property
    def palette(self) -> Palette:
        return Palette.of(self.task.classes)

    def images(
        self, shares: NDArray[np.float32], options: SamplingOptions, progress: Progress = silent
    ) -> NDArray[np.uint8]:
        """An image (n, s, s, 3) for each mask (n, k, s, s), as the share of each class in each pixel.

        Image i starts from the noise of (seed, i).
        """
        return sample(
            self.model,
            [NULL_CLASS] * len(shares),
            n_steps=options.n_steps,
            guidance=options.guidance,
            seed=options.seed,
            batch_size=options.batch_size,
            sampler=options.sampler,
            condition=Condition(shares, is_image=False),
            progress=progress,
        )

    def image_of(
        self, mask: NDArray[np.uint8], options: SamplingOptions, progress: Progress = silent
    ) -> NDArray[np.uint8]:
        """An image (H, W, 3) of a mask (h, w) of any size from `crop_px` on; H is h times the model's size / crop_px.

        In each step the predictions for overlapping windows are averaged, so that no border shows (Bar-Tal et al. 2023,
        MultiDiffusion). All of the image is in memory.

        Raises:
            UsageError: the mask is smaller than `crop_px`.
        """
        space, crop, device = self.model.space, self.task.crop_px, self.model.denoiser.device
        if min(mask.shape) < crop:
            height, width = mask.shape
            raise UsageError(
                f"the mask has {width} x {height} px, expected {crop} x {crop} or more, as in the training"
            )
        height, width = (round(length * space.edge / crop) for length in mask.shape)
        given = torch.from_numpy(class_shares(mask, len(self.palette), (height, width)))[None].to(device)
        noise = torch.Generator().manual_seed(options.seed)
        state = torch.randn((1, space.channels, height, width), generator=noise).to(device)
        tops, lefts = (corners(length, space.edge, space.edge // OVERLAP) for length in (height, width))
        places = [(top, left) for top in tops for left in lefts]
        stepper = SAMPLERS[options.sampler](self.model.schedule, options.n_steps, device)
        with progress("steps", options.n_steps) as advance, torch.inference_mode():
            for timestep in stepper.timesteps:
                said = self._predicted(state, given, timestep, places, options)
                state = stepper.step(said, timestep, state).prev_sample
                advance(1)
            drawn: NDArray[np.uint8] = to_images(space.decode(state))[0]
        return drawn

    def _predicted(
        self,
        state: torch.Tensor,
        given: torch.Tensor,
        timestep: torch.Tensor,
        places: Sequence[tuple[int, int]],
        options: SamplingOptions,
    ) -> torch.Tensor:
        """The weighted mean of the predictions for all windows, of the shape of the state."""
        edge = self.model.space.edge
        profile = torch.from_numpy(ramp(edge, edge // OVERLAP)).to(state.device)
        weight = profile[:, None] * profile
        total, weights = torch.zeros_like(state), torch.zeros_like(state[:, :1])
        for start in range(0, len(places), options.batch_size):
            windows = [
                np.s_[:, :, top : top + edge, left : left + edge]
                for top, left in places[start : start + options.batch_size]
            ]
            labels = torch.full((len(windows),), self.model.null_class or 0, device=state.device)
            parts, masks = (torch.cat([whole[window] for window in windows]) for whole in (state, given))
            said = guided(self.model, parts, timestep, labels, masks, options.guidance)
            for window, one in zip(windows, said, strict=True):
                total[window] += one * weight
                weights[window] += weight
        return total / weights


def write_synthesis(folder: Path, trained: Trained, task: Task, card: str) -> None:
    """Write the checkpoint. RunError: the disk is full or not writable."""
    write_pipeline(folder, pipeline_of(trained, ("",)), trained, ("",), card)
    (folder / SETTINGS).write_text(json.dumps(asdict(task), indent=1) + "\n")


def load_synthesis(folder: Path) -> Synthesis:
    """Load a checkpoint. RunError: there is none, or it cannot be read."""
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        task = Task(tuple(settings["classes"]), settings["crop_px"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{folder} is no checkpoint of semantic synthesis ({error}): materialize semantic_synthesis_checkpoint"
        ) from None
    return Synthesis(load_checkpoint(folder)[0], task)


def card(trained: Trained, task: Task, options: TrainingOptions) -> str:
    """The model card: Markdown, with the front matter that model hubs read."""
    values = "\n".join(f"* `{name}`: {value}" for name, value in asdict(options).items())
    edge, names = trained.model.space.image_size_px, Palette.of(task.classes).names
    return f"""---
library_name: diffusers
tags: [remote-sensing, diffusion, semantic-image-synthesis]
---

# Remote-sensing images of {edge} px from masks of {len(names)} classes

A denoiser of {trained.model.n_weights:,} weights, fine-tuned on {trained.n_images:,} crops of {task.crop_px} px,
reduced to {edge} px. It is given the share of each class in each pixel of the mask as additional channels.

* Classes, in the order of the channels: {", ".join(names)}
* Started from: {options.parent.replace(" ", " weights, architecture of checkpoint ")}
* Licence of the images: not stated; see the pairs

{_usage(trained, len(names), edge)}
An image shows what a place with such a mask could look like. It is no image of a place. `metrics.json` tells how well a
segmenter that knows real images finds the masks in drawn ones.

## Training

{values}
"""


def _usage(trained: Trained, n_classes: int, edge: int) -> str:
    ours = "`rsprune synthesize MASK OUT` draws images for masks of any size, with classifier-free guidance"
    none = "diffusers has no pipeline that passes a mask on to this denoiser"
    if trained.model.space.autoencoder is not None:
        return f"{none}: `DiffusionPipeline.from_pretrained` loads the parts only. {ours}.\n"
    schedule = type(trained.model.schedule).__name__
    return f"""{none}. With its parts:

```python
import torch
from diffusers import UNet2DModel, {schedule}

unet = UNet2DModel.from_pretrained("this/folder", subfolder="unet")
schedule = {schedule}.from_pretrained("this/folder", subfolder="scheduler")
shares = torch.zeros(1, {n_classes}, {edge}, {edge})
shares[:, 0] = 1  # all of the first class
image = torch.randn(1, 3, {edge}, {edge})
schedule.set_timesteps(20)
for timestep in schedule.timesteps:
    with torch.no_grad():
        said = unet(torch.cat([image, shares], dim=1), timestep).sample
    image = schedule.step(said, timestep, image).prev_sample
```

{ours}, which this code does not have.
"""
