"""The model card of a checkpoint: model, training data, training and usage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rsprune_dagster.diffusion.training import Trained, TrainingOptions

NETWORKS = {"unet": "UNet", "dit": "diffusion transformer (DiT)"}
LEARNED = {
    "v_prediction": "v-prediction, cosine schedule with zero terminal SNR",
    "flow_matching": "flow matching on straight paths, timesteps from a logit-normal distribution",
}


@dataclass(frozen=True)
class Origin:
    """The training data of a checkpoint, for its model card."""

    n_tiles: int
    subset_version: str
    """The content hash of pruned_subset; empty if the tiles do not come from an asset."""
    licence: str
    """Licence of the images; empty: not stated."""


def model_card(trained: Trained, scene_names: Sequence[str], options: TrainingOptions, origin: Origin) -> str:
    """Markdown, with the front matter that model hubs read."""
    values = "\n".join(f"* `{name}`: {value}" for name, value in asdict(options).items())
    scenes = ", ".join(name for name in scene_names if name) or "none: unconditional"
    return f"""---
library_name: diffusers
tags: [remote-sensing, diffusion, data-pruning]
---

# A diffusion model of remote-sensing tiles

A {NETWORKS[options.denoiser]} of {trained.model.n_weights:,} weights that makes RGB tiles, trained from nothing on
{trained.n_images:,} images drawn from {origin.n_tiles:,} tiles that RS-Prune kept
(pruned_subset {origin.subset_version or "of no known version"}).

* Scenes: {scenes}
* Space: {_space(trained, options)}
* Learned: {LEARNED[options.objective]}; the weights are averaged over the training
* Computed on: {trained.n_threads} threads of the processor, or its GPU; the same training with another number ends in
  other last bits
* Licence of the images: {origin.licence or "not stated; see the corpus"}

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this/folder")
images = pipeline({_call(trained, scene_names)}num_inference_steps=20).images
```
{_note(trained, options)}
It repeats what its tiles show and may copy them: see the memorization figures of evaluation_metrics before using it.

## Training

{values}
"""


def in_dit_pipeline(trained: Trained) -> bool:
    """Whether the checkpoint is a DiTPipeline, as for every DiT and every latent model."""
    return trained.model.space.autoencoder is not None


def _space(trained: Trained, options: TrainingOptions) -> str:
    space = trained.model.space
    if not options.autoencoder_digest:
        return f"pixels, {space.edge} x {space.edge}"
    kind = type(space.autoencoder).__name__
    return (
        f"{space.edge} x {space.edge} latents of {space.channels} channels, of the {kind} in `vae/`, "
        f"which was not trained here (digest {options.autoencoder_digest})"
    )


def _call(trained: Trained, scene_names: Sequence[str]) -> str:
    if in_dit_pipeline(trained):
        scale = "1.5" if len(scene_names) > 1 else "1.0"
        return f"class_labels=[0, 0, 0, 0], guidance_scale={scale}, "
    labels = "class_labels=[0, 0, 0, 0], " if len(scene_names) > 1 else ""
    return f"batch_size=4, {labels}"


def _note(trained: Trained, options: TrainingOptions) -> str:
    return (_note_on_steps() if options.objective == "v_prediction" else "") + (
        _note_on_labels() if in_dit_pipeline(trained) else ""
    )


def _note_on_steps() -> str:
    return (
        "\nGive a number of steps that divides 1000: with others, such as 400, diffusers' DDIM leaves noise in the "
        "images. `rsprune sample` takes any number.\n"
    )


def _note_on_labels() -> str:
    return (
        "\nLabels are the places of the scenes in `scenes.json`, or `pipeline.get_label_ids([...])`; 1000: any scene.\n"
        "diffusers remarks on components that are not of the published DiT's classes; they work all the same.\n"
    )
