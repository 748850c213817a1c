"""The trained model as a folder that diffusers loads by itself, with what it was trained on and how that went."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rsprune_dagster.diffusion.denoiser import Denoiser, noise_schedule, read_denoiser
from rsprune_dagster.diffusion.objective import takes_scenes
from rsprune_dagster.diffusion.sampling import sample
from rsprune_dagster.diffusion.training import Trained, TrainingOptions
from rsprune_dagster.errors import RunError

SCENES = "scenes.json"
LOSS = "loss.csv"
CARD = "README.md"
ORIGIN = "origin.json"
N_LOSS_POINTS = 400


@dataclass(frozen=True)
class SamplingOptions:
    """How images are made from a checkpoint unless one says otherwise."""

    n_steps: int
    guidance: float
    sampler: str
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Origin:
    """What a checkpoint was trained on, for its model card."""

    n_tiles: int
    subset_version: str
    """The content hash of pruned_subset; empty where the tiles are not an asset's."""
    licence: str
    """Of the images; empty: not stated."""


def write_checkpoint(
    folder: Path, trained: Trained, scene_names: Sequence[str], options: TrainingOptions, origin: Origin
) -> None:
    """Fill `folder` with a diffusers pipeline of the averaged weights, the loss curve, the scenes and a model card.

    `DiffusionPipeline.from_pretrained(folder)` loads it without this package: with scenes as a pipeline that takes
    `class_labels`, the numbers of scenes.json (without guidance, which is ours), else as a DDIMPipeline. The first is
    diffusers' ConsistencyModelPipeline, its only one for a UNet with classes in pixel space; it steps as its scheduler,
    here DDIM's, says.
    """
    from diffusers import ConsistencyModelPipeline, DDIMPipeline

    kind = ConsistencyModelPipeline if takes_scenes(trained.denoiser) else DDIMPipeline
    kind(unet=trained.denoiser, scheduler=noise_schedule()).save_pretrained(folder)
    (folder / SCENES).write_text(json.dumps(list(scene_names), indent=1) + "\n")
    (folder / ORIGIN).write_text(json.dumps(asdict(origin), indent=1) + "\n")
    _write_losses(folder / LOSS, trained.losses, trained.n_images)
    (folder / CARD).write_text(model_card(trained, scene_names, options, origin))


def load_checkpoint(folder: Path) -> tuple[Denoiser, tuple[str, ...]]:
    """The denoiser and its scenes.

    Raises:
        RunError: no checkpoint lies there, its weights are truncated, or of another architecture.
    """
    try:
        names = tuple(json.loads((folder / SCENES).read_text()))
        denoiser = read_denoiser(folder / "unet")
    except Exception as error:  # safetensors and diffusers raise many kinds
        raise RunError(
            f"{folder} is no checkpoint that can be loaded ({' '.join(str(error).split())[:300]}): materialize "
            "diffusion_checkpoint, or restore an older version with `rsprune restore`"
        ) from error
    return denoiser, names


def trained_on(folder: Path) -> str:
    """The version of pruned_subset that a checkpoint was trained on; empty where that is not known."""
    try:
        return str(json.loads((folder / ORIGIN).read_text())["subset_version"])
    except (OSError, ValueError, KeyError):
        return ""


def sample_grid(
    denoiser: Denoiser, scene_names: Sequence[str], *, n_per_scene: int, options: SamplingOptions
) -> dict[str, np.ndarray]:
    """For each scene (n, s, s, 3) uint8 samples."""
    scenes = np.repeat(np.arange(len(scene_names)), n_per_scene)
    images = sample(
        denoiser,
        scenes,
        n_steps=options.n_steps,
        guidance=options.guidance,
        seed=options.seed,
        batch_size=options.batch_size,
        sampler=options.sampler,
    )
    return {name: images[scenes == number] for number, name in enumerate(scene_names)}


def model_card(trained: Trained, scene_names: Sequence[str], options: TrainingOptions, origin: Origin) -> str:
    """Markdown, with the front matter that model hubs read."""
    weights = sum(parameter.numel() for parameter in trained.denoiser.parameters())
    values = "\n".join(f"* `{name}`: {value}" for name, value in asdict(options).items())
    scenes = ", ".join(name for name in scene_names if name) or "none: unconditional"
    size_px = trained.denoiser.config.sample_size
    version = origin.subset_version or "of no known version"
    labels = "class_labels=[0, 0, 0, 0], " if len(scene_names) > 1 else ""
    return f"""---
library_name: diffusers
tags: [remote-sensing, diffusion, data-pruning]
---

# A diffusion model of remote-sensing tiles

A UNet of {weights:,} weights that makes RGB tiles of {size_px} px, trained from nothing on {trained.n_images:,}
images drawn from {origin.n_tiles:,} tiles that RS-Prune kept (pruned_subset {version}).

* Scenes: {scenes}
* Licence of the images: {origin.licence or "not stated; see the corpus"}
* v-prediction, cosine schedule with zero terminal SNR, averaged weights

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this/folder")
images = pipeline(batch_size=4, {labels}num_inference_steps=20).images
```

It repeats what its tiles show and may copy them: see the memorization figures of evaluation_metrics before using it.

## Training

{values}
"""


def _write_losses(path: Path, losses: Sequence[float], n_images: int) -> None:
    """At most 400 rows, each the mean over its steps."""
    parts = np.array_split(np.asarray(losses, np.float64), min(N_LOSS_POINTS, len(losses)))
    per_step = n_images / len(losses)
    seen = np.cumsum([len(part) for part in parts]) * per_step
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["n_images", "loss"])
        writer.writerows((round(at), f"{part.mean():.6g}") for at, part in zip(seen, parts, strict=True))
