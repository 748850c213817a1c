"""A super-resolution model: a denoiser that is also given the low-resolution image, enlarged to the full size.

A sample is one of the high-resolution images that the input may come from. The mean of all of them has the smallest
squared error, and lacks their texture; it is predicted in one step, which a share of the training images teaches.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from rsprune_dagster.diffusion.checkpoint import SamplingOptions, load_checkpoint, pipeline_of, write_pipeline
from rsprune_dagster.diffusion.latents import unscaled_identity_autoencoder
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import to_images, to_tensor
from rsprune_dagster.diffusion.sampling import denoised, mean, noise_of
from rsprune_dagster.diffusion.training import Trained, TrainingOptions
from rsprune_dagster.downstream.crops import condition_of
from rsprune_dagster.downstream.degradation import N_BACK_PROJECTIONS, consistent
from rsprune_dagster.utils.errors import RunError, UsageError

SETTINGS: Final = "super_resolution.json"
MEAN_SHARE: Final = 0.2
"""Share of training images that teach the mean: with less the mean is worse, with more samples are (docs/log.md)."""


@dataclass(frozen=True)
class Task:
    """The scale and the degradation that a model was trained for."""

    scale: int
    degradation: str
    mean_share: float = 0.0
    """Share of training images that taught the mean; 0: it was not taught, as in older checkpoints."""


@dataclass(frozen=True)
class SuperResolution:
    """A model and the task it was trained for."""

    model: Model
    task: Task

    def sample(self, low: torch.Tensor, noise: torch.Tensor, *, n_steps: int, sampler: str) -> torch.Tensor:
        """One of the images that low-resolution images may come from.

        Args:
            low: (n, 3, h, w) float32 in [-1, 1].
            noise: (n, c, edge, edge) float32: what the sampling starts from.

        Returns:
            (n, 3, h scale, w scale) float32 on the CPU, about [-1, 1], made consistent with `low`.
        """
        return self._corrected(self.predicted(low, noise, n_steps=n_steps, sampler=sampler), low)

    def mean(self, low: torch.Tensor) -> torch.Tensor:
        """The mean of all images that low-resolution images may come from; argument and result as of `sample`.

        Raises:
            UsageError: the model was not taught the mean.
        """
        if not self.task.mean_share:
            raise UsageError("this checkpoint was not taught the mean: materialize super_resolution_checkpoint anew")
        with torch.inference_mode():
            return self._corrected(mean(self.model, condition_of(low, self.task.scale)).float().cpu(), low)

    def predicted(self, low: torch.Tensor, noise: torch.Tensor, *, n_steps: int, sampler: str) -> torch.Tensor:
        """What the denoiser makes of the noise; arguments and result as of `sample`, but not made consistent."""
        condition = condition_of(low, self.task.scale)
        scenes = np.full(len(low), self.model.null_class or 0)
        with torch.inference_mode():
            return denoised(self.model, noise, scenes, n_steps, 1.0, sampler, condition).float().cpu()

    def _corrected(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        return consistent(high, low, self.task.scale, N_BACK_PROJECTIONS[self.task.degradation])

    def samples(self, low: NDArray[np.uint8], options: SamplingOptions) -> NDArray[np.uint8]:
        """Samples (n, s, s, 3) of (n, s / scale, s / scale, 3); image i starts from the noise of (seed, i)."""

        def drawn(part: torch.Tensor, first: int) -> torch.Tensor:
            noise = noise_of(self.model, np.arange(first, first + len(part)), options.seed)
            return self.sample(part, noise, n_steps=options.n_steps, sampler=options.sampler)

        return _in_batches(drawn, low, options.batch_size)

    def means(self, low: NDArray[np.uint8], batch_size: int) -> NDArray[np.uint8]:
        """Means (n, s, s, 3) of (n, s / scale, s / scale, 3)."""
        return _in_batches(lambda part, first: self.mean(part), low, batch_size)


def write_super_resolution(folder: Path, trained: Trained, task: Task, card: str) -> None:
    """Write the checkpoint. RunError: the disk is full or not writable."""
    write_pipeline(folder, _pipeline(trained), trained, ("",), card)
    (folder / SETTINGS).write_text(json.dumps(asdict(task), indent=1) + "\n")


def load_super_resolution(folder: Path) -> SuperResolution:
    """Load a checkpoint. RunError: there is none, or it cannot be read."""
    try:
        task = Task(**json.loads((folder / SETTINGS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{folder} is no checkpoint of super-resolution ({error}): materialize super_resolution_checkpoint"
        ) from None
    return SuperResolution(load_checkpoint(folder)[0], task)


def card(trained: Trained, task: Task, options: TrainingOptions, licence: str) -> str:
    """The model card: Markdown, with the front matter that model hubs read."""
    values = "\n".join(f"* `{name}`: {value}" for name, value in asdict(options).items())
    edge = trained.model.space.image_size_px
    return f"""---
library_name: diffusers
tags: [remote-sensing, diffusion, super-resolution]
---

# Super-resolution of remote-sensing images, x{task.scale}

A denoiser of {trained.model.n_weights:,} weights, fine-tuned on {trained.n_images:,} crops of {edge} x {edge} px. It is
given the low-resolution image, enlarged by bicubic interpolation, as additional channels.

* Degradation that it was trained to undo: {task.degradation}
* Started from: {options.parent.replace(" ", " weights, architecture of checkpoint ")}
* Licence of the images: {licence or "not stated; see the corpus"}

{_usage(trained, edge, task)}
A sample shows plausible detail that the input does not determine. Do not measure or count in it. The mean (one step)
shows only what the input determines, and is smoother. `metrics.json` has both against bicubic interpolation.

## Training

{values}
"""


def _usage(trained: Trained, edge: int, task: Task) -> str:
    ours = f"`rsprune super-resolve IN.tif OUT.tif` enlarges scenes of any size x{task.scale}"
    if not loads_in_diffusers(trained):
        return (
            "diffusers has no pipeline that passes an image on to a transformer or to a latent model of this kind: "
            f"`DiffusionPipeline.from_pretrained` loads the parts only. {ours}.\n"
        )
    return f"""```python
import numpy as np
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import LDMSuperResolutionPipeline
from PIL import Image

pipeline = LDMSuperResolutionPipeline.from_pretrained("this/folder")
low = Image.open("low.png").convert("RGB").resize(({edge}, {edge}), Image.Resampling.BICUBIC)
given = torch.from_numpy(np.array(low)).permute(2, 0, 1)[None] / 127.5 - 1
image = pipeline(given, num_inference_steps=20).images[0]
```

{ours}, and adds what the result's own reduction lacks of the input, which the
pipeline does not.
"""


def loads_in_diffusers(trained: Trained) -> bool:
    """Whether diffusers has a pipeline that runs the model: it has one for a UNet on pixels."""
    return trained.model.space.autoencoder is None


def _in_batches(
    enlarge: Callable[[torch.Tensor, int], torch.Tensor], low: NDArray[np.uint8], batch_size: int
) -> NDArray[np.uint8]:
    """The results of (low-resolution images, number of the first)."""
    starts = range(0, len(low), batch_size)
    return np.concatenate([to_images(enlarge(to_tensor(low[start : start + batch_size]), start)) for start in starts])


def _pipeline(trained: Trained) -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import (
        LDMSuperResolutionPipeline,
    )

    if not loads_in_diffusers(trained):
        return pipeline_of(trained, ("",))  # holds the parts, but cannot pass the image on
    model = trained.model
    return LDMSuperResolutionPipeline(unscaled_identity_autoencoder(), model.denoiser, model.schedule)
