"""The trained model as a diffusers pipeline folder, with loss curve, scenes and model card."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsprune_dagster.config.layout import LOSS, SCENE_NAMES
from rsprune_dagster.diffusion.denoiser import read_denoiser
from rsprune_dagster.diffusion.latents import PASS_THROUGH_SCALE, Space, pixels, read_autoencoder
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.model_card import Origin, in_dit_pipeline, model_card
from rsprune_dagster.diffusion.sampling import sample
from rsprune_dagster.diffusion.schedule import read_noise_schedule
from rsprune_dagster.diffusion.training import Trained, TrainingOptions
from rsprune_dagster.utils.csv_files import write_sheet
from rsprune_dagster.utils.errors import RunError

__all__ = ["Origin", "SamplingOptions", "load_checkpoint", "model_card", "sample_grid", "write_checkpoint"]

CARD = "README.md"
ORIGIN = "origin.json"
MODEL_FOLDERS = ("unet", "transformer", "vae", "scheduler")
N_LOSS_POINTS = 400


@dataclass(frozen=True)
class SamplingOptions:
    """Default sampling options of a checkpoint."""

    n_steps: int
    guidance: float
    sampler: str
    batch_size: int
    seed: int


def write_checkpoint(
    folder: Path, trained: Trained, scene_names: Sequence[str], options: TrainingOptions, origin: Origin
) -> None:
    """Write a diffusers pipeline of the averaged weights, loss curve, scenes and model card into `folder`.

    `DiffusionPipeline.from_pretrained(folder)` loads it without this package (`pipeline_of`).

    Raises:
        RunError: the disk is full or not writable.
    """
    card = model_card(trained, scene_names, options, origin)
    write_pipeline(folder, pipeline_of(trained, scene_names), trained, scene_names, card)
    (folder / ORIGIN).write_text(json.dumps(asdict(origin), indent=1) + "\n")


def write_pipeline(folder: Path, pipeline: Any, trained: Trained, scene_names: Sequence[str], card: str) -> None:
    """Write a diffusers pipeline, the loss curve, the names of the scenes and the model card.

    Raises:
        RunError: the disk is full or not writable.
    """
    from safetensors import SafetensorError

    try:
        pipeline.save_pretrained(folder)
        (folder / SCENE_NAMES).write_text(json.dumps(list(scene_names), indent=1) + "\n")
        _write_losses(folder / LOSS, trained.losses, trained.n_images)
        (folder / CARD).write_text(card)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot write the checkpoint into {folder} ({' '.join(str(error).split())}): free some space, then run "
            "again: nothing is trained a second time"
        ) from error


def pipeline_of(trained: Trained, scene_names: Sequence[str]) -> Any:
    """The diffusers pipeline for a model; diffusers has no dedicated class for each kind.

    A DiTPipeline supports classes, guidance and decoding: it is used for every DiT and every latent model, with a UNet
    as its transformer if need be, and with an identity autoencoder for pixels. A UNet in pixel space is a DDIMPipeline
    if it has neither scenes nor flow matching, else a ConsistencyModelPipeline, which supports classes without
    guidance and any scheduler.
    """
    from diffusers import ConsistencyModelPipeline, DDIMPipeline, DiTPipeline

    model = trained.model
    if in_dit_pipeline(trained):
        pipeline = DiTPipeline(transformer=model.denoiser, vae=model.space.autoencoder, scheduler=model.schedule)
        pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(scene_names)})
        return pipeline
    plain = model.null_class is None and model.schedule.config.prediction_type == "v_prediction"
    return (DDIMPipeline if plain else ConsistencyModelPipeline)(unet=model.denoiser, scheduler=model.schedule)


def load_checkpoint(folder: Path) -> tuple[Model, tuple[str, ...]]:
    """Load the model and its scene names.

    Raises:
        RunError: there is no checkpoint, or its weights are truncated or of another architecture.
    """
    try:
        names = tuple(json.loads((folder / SCENE_NAMES).read_text()))
        schedule = read_noise_schedule(json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
        kind = "transformer" if (folder / "transformer").is_dir() else "unet"
        denoiser = read_denoiser(folder / kind)
        edge = denoiser.config.sample_size
        space = _space(folder / "vae", edge) if (folder / "vae").is_dir() else pixels(edge)
    except Exception as error:  # safetensors and diffusers raise many exception types
        raise RunError(
            f"{folder} is no checkpoint that can be loaded ({' '.join(str(error).split())[:300]}): materialize "
            "the asset anew, or restore an older version with `rsprune restore`"
        ) from error
    return Model(denoiser, schedule, space), names


def _space(folder: Path, edge: int) -> Space:
    """The latent space of the autoencoder in a checkpoint, for latents of the given edge."""
    autoencoder, digest = read_autoencoder(folder)
    is_identity = autoencoder.config.scaling_factor == PASS_THROUGH_SCALE
    return Space(autoencoder.config.latent_channels, edge, autoencoder, "" if is_identity else digest)


def trained_on(folder: Path) -> str:
    """The version of pruned_subset that a checkpoint was trained on; empty if unknown."""
    try:
        return str(json.loads((folder / ORIGIN).read_text())["subset_version"])
    except (OSError, ValueError, KeyError):
        return ""


def model_digest(folder: Path) -> str:
    """sha256 of everything that samples depend on: denoiser, schedule, autoencoder and scenes."""
    digest = hashlib.sha256()
    parts = [path for name in MODEL_FOLDERS for path in (folder / name).rglob("*") if path.is_file()]
    for path in sorted([*parts, folder / SCENE_NAMES]):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def sample_grid(
    model: Model, scene_names: Mapping[int, str], *, n_per_scene: int, options: SamplingOptions
) -> dict[str, np.ndarray]:
    """Samples (n, s, s, 3) uint8 for each scene, given by number and name."""
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
    """Write at most 400 rows, each the mean over several steps."""
    parts = np.array_split(np.asarray(losses, np.float64), min(N_LOSS_POINTS, len(losses)))
    per_step = n_images / len(losses)
    seen = np.cumsum([len(part) for part in parts]) * per_step
    points = ((round(at), f"{part.mean():.6g}") for at, part in zip(seen, parts, strict=True))
    write_sheet(path, ("n_images", "loss"), points)
