"""The trained model as a folder that diffusers loads by itself, with what it was trained on and how that went."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsprune_dagster.corpus.sheets import write_sheet
from rsprune_dagster.diffusion.card import Origin, in_dit_pipeline, model_card
from rsprune_dagster.diffusion.denoiser import read_denoiser
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.sampling import sample
from rsprune_dagster.diffusion.schedule import read_schedule
from rsprune_dagster.diffusion.spaces import Space, pixels, read_autoencoder
from rsprune_dagster.diffusion.training import Trained, TrainingOptions
from rsprune_dagster.errors import RunError

__all__ = ["Origin", "SamplingOptions", "load_checkpoint", "model_card", "sample_grid", "write_checkpoint"]

SCENES = "scenes.json"
LOSS = "loss.csv"
CARD = "README.md"
ORIGIN = "origin.json"
MODEL_FOLDERS = ("unet", "transformer", "vae", "scheduler")
N_LOSS_POINTS = 400


@dataclass(frozen=True)
class SamplingOptions:
    """How images are made from a checkpoint unless one says otherwise."""

    n_steps: int
    guidance: float
    sampler: str
    batch_size: int
    seed: int


def write_checkpoint(
    folder: Path, trained: Trained, scene_names: Sequence[str], options: TrainingOptions, origin: Origin
) -> None:
    """Fill `folder` with a diffusers pipeline of the averaged weights, the loss curve, the scenes and a model card.

    `DiffusionPipeline.from_pretrained(folder)` loads it without this package (`pipeline_of`).

    Raises:
        RunError: the disk is full or not writable.
    """
    from safetensors import SafetensorError

    try:
        pipeline_of(trained, scene_names).save_pretrained(folder)
        (folder / SCENES).write_text(json.dumps(list(scene_names), indent=1) + "\n")
        (folder / ORIGIN).write_text(json.dumps(asdict(origin), indent=1) + "\n")
        _write_losses(folder / LOSS, trained.losses, trained.n_images)
        (folder / CARD).write_text(model_card(trained, scene_names, options, origin))
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot write the checkpoint into {folder} ({' '.join(str(error).split())}): free some space, then run "
            "again: nothing is trained a second time"
        ) from error


def pipeline_of(trained: Trained, scene_names: Sequence[str]) -> Any:
    """diffusers' own pipeline for a model. It has none that is meant for each kind, so some serve for what they can do.

    A DiTPipeline takes classes, guides and decodes: it holds every DiT and all that works in latents, a UNet as its
    transformer too, and for pixels an autoencoder that changes nothing. A UNet in pixel space is a DDIMPipeline where
    it has neither scenes nor flows, else a ConsistencyModelPipeline, which takes classes without guidance, and steps as
    its scheduler says.
    """
    from diffusers import ConsistencyModelPipeline, DDIMPipeline, DiTPipeline

    model = trained.model
    if in_dit_pipeline(trained):
        pipeline = DiTPipeline(transformer=model.denoiser, vae=model.space.autoencoder, scheduler=model.schedule)
        pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(scene_names)})
        return pipeline
    plain = model.any_scene is None and model.schedule.config.prediction_type == "v_prediction"
    return (DDIMPipeline if plain else ConsistencyModelPipeline)(unet=model.denoiser, scheduler=model.schedule)


def load_checkpoint(folder: Path) -> tuple[Model, tuple[str, ...]]:
    """The model and its scenes.

    Raises:
        RunError: no checkpoint lies there, its weights are truncated, or of another architecture.
    """
    try:
        names = tuple(json.loads((folder / SCENES).read_text()))
        schedule = read_schedule(json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
        kind = "transformer" if (folder / "transformer").is_dir() else "unet"
        denoiser = read_denoiser(folder / kind)
        edge = denoiser.config.sample_size
        space = _space(folder / "vae", edge) if (folder / "vae").is_dir() else pixels(edge)
    except Exception as error:  # safetensors and diffusers raise many kinds
        raise RunError(
            f"{folder} is no checkpoint that can be loaded ({' '.join(str(error).split())[:300]}): materialize "
            "diffusion_checkpoint, or restore an older version with `rsprune restore`"
        ) from error
    return Model(denoiser, schedule, space), names


def _space(folder: Path, edge: int) -> Space:
    """Of the autoencoder in a checkpoint, for latents of an edge."""
    autoencoder, digest = read_autoencoder(folder)
    return Space(autoencoder.config.latent_channels, edge, autoencoder, digest)


def trained_on(folder: Path) -> str:
    """The version of pruned_subset that a checkpoint was trained on; empty where that is not known."""
    try:
        return str(json.loads((folder / ORIGIN).read_text())["subset_version"])
    except (OSError, ValueError, KeyError):
        return ""


def model_digest(folder: Path) -> str:
    """sha256 of all that samples of a checkpoint depend on: its denoiser, schedule, autoencoder and scenes."""
    digest = hashlib.sha256()
    parts = [path for name in MODEL_FOLDERS for path in (folder / name).rglob("*") if path.is_file()]
    for path in sorted([*parts, folder / SCENES]):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def sample_grid(
    model: Model, scene_names: Mapping[int, str], *, n_per_scene: int, options: SamplingOptions
) -> dict[str, np.ndarray]:
    """For each scene, given by its number and name, (n, s, s, 3) uint8 samples."""
    scenes = np.repeat(list(scene_names), n_per_scene)
    images = sample(
        model,
        scenes,
        n_steps=options.n_steps,
        guidance=options.guidance,
        seed=options.seed,
        batch_size=options.batch_size,
        sampler=options.sampler,
    )
    return {name: images[scenes == number] for number, name in scene_names.items()}


def _write_losses(path: Path, losses: Sequence[float], n_images: int) -> None:
    """At most 400 rows, each the mean over its steps."""
    parts = np.array_split(np.asarray(losses, np.float64), min(N_LOSS_POINTS, len(losses)))
    per_step = n_images / len(losses)
    seen = np.cumsum([len(part) for part in parts]) * per_step
    points = ((round(at), f"{part.mean():.6g}") for at, part in zip(seen, parts, strict=True))
    write_sheet(path, ("n_images", "loss"), points)
