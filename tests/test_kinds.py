"""Every kind of checkpoint: diffusers alone draws from it what we draw, and it is trained, resumed and told alike."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_runs import small_options, tiny_autoencoder

from rsprune_dagster.diffusion.checkpoint import Origin, load_checkpoint, write_checkpoint
from rsprune_dagster.diffusion.denoiser import build_denoiser
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import OBJECTIVES
from rsprune_dagster.diffusion.sampling import sample
from rsprune_dagster.diffusion.spaces import Space, latents, passed_through, pixels, read_autoencoder
from rsprune_dagster.diffusion.training import Trained, TrainingOptions

SIZE_PX = 16
N_STEPS = 3
PROJECT = Path(__file__).parents[1]

# what a machine with diffusers and without this package does with a folder
DIFFUSERS = (
    """
import json, sys
import numpy as np, torch
from diffusers import DiffusionPipeline
for folder, call in json.loads(sys.argv[1]).items():
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in call.pop("seeds")]
    images = pipeline(generator=noise, num_inference_steps=%d, **call).images
    np.save(folder + ".npy", np.stack([np.asarray(image) for image in images]))
assert not [name for name in sys.modules if name.startswith("rsprune")]
"""
    % N_STEPS
)  # noqa: UP031 (braces of a program)


@dataclass(frozen=True)
class Kind:
    """A combination of parameters."""

    denoiser: str
    objective: str
    in_latents: bool
    scenes: tuple[str, ...]

    def __str__(self) -> str:
        where = "latents" if self.in_latents else "pixels"
        return f"{self.denoiser}-{self.objective}-{where}-{len(self.scenes)}"


KINDS = [
    Kind(denoiser, objective, in_latents, scenes)
    for denoiser in ("unet", "dit")
    for objective in OBJECTIVES
    for in_latents in (False, True)
    for scenes in (("field", "sea"), ("",))
]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_autoencoder(tmp_path_factory.mktemp("autoencoder") / "vae")


@pytest.fixture(scope="module")
def folders(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """A checkpoint of each kind, with random weights."""
    root = tmp_path_factory.mktemp("kinds")
    made = {kind: root / str(kind) for kind in KINDS}
    for kind, folder in made.items():
        trained, options = random_model(kind, autoencoder)
        write_checkpoint(folder, trained, kind.scenes, options, Origin(24, "abc.dir", ""))
    return made


def random_model(kind: Kind, autoencoder: Path) -> tuple[Trained, TrainingOptions]:
    space = space_of(kind, autoencoder)
    denoiser = build_denoiser(
        "tiny",
        image_size_px=space.edge,
        n_scenes=len(kind.scenes),
        seed=1,
        kind=kind.denoiser,
        channels=space.channels,
        for_latents=kind.in_latents,
    )
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in denoiser.parameters():  # a DiT starts with zeros, and would say nothing
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model = Model(denoiser, OBJECTIVES[kind.objective].schedule(space), space)
    options = small_options(denoiser=kind.denoiser, objective=kind.objective, autoencoder_digest=space.digest)
    return Trained(model, (1.0, 0.5), 16), options


def space_of(kind: Kind, autoencoder: Path) -> Space:
    if kind.in_latents:
        return latents(*read_autoencoder(autoencoder), SIZE_PX)
    return passed_through(SIZE_PX) if kind.denoiser == "dit" else pixels(SIZE_PX)


def seeds(n: int) -> list[int]:
    return [int(np.random.SeedSequence((5, number)).generate_state(1)[0]) for number in range(n)]


def call(kind: Kind, folder: Path) -> dict[str, Any]:
    """How the folder's pipeline is asked for one image of each scene."""
    n = len(kind.scenes)
    labels = {"class_labels": list(range(n))}
    index = json.loads((folder / "model_index.json").read_text())
    if index["_class_name"] == "DiTPipeline":
        return {"seeds": seeds(n), **labels, "guidance_scale": 1.5}
    return {"seeds": seeds(n), "batch_size": n, **(labels if n > 1 else {})}


def test_diffusers_alone_draws_what_we_draw(folders: dict[Kind, Path]) -> None:
    check_by_diffusers(Path(sys.executable), folders)


@pytest.mark.slow
def test_an_environment_with_diffusers_alone_draws_what_we_draw(folders: dict[Kind, Path], tmp_path: Path) -> None:
    from importlib.metadata import version

    uv = PROJECT / ".venv-uv" / "bin" / "uv"
    if not uv.exists():
        pytest.skip("no uv: make setup")
    bare = tmp_path / "bare"
    wanted = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "diffusers", "safetensors", "numpy")]
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, bare], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", bare / "bin" / "python", *wanted], check=True)
    check_by_diffusers(bare / "bin" / "python", folders)


def check_by_diffusers(python: Path, folders: dict[Kind, Path]) -> None:
    calls = {str(folder): call(kind, folder) for kind, folder in folders.items()}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", DIFFUSERS, json.dumps(calls)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=next(iter(folders.values())),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, folder in folders.items():
        theirs = np.load(f"{folder}.npy")
        model, names = load_checkpoint(folder)
        assert names == kind.scenes
        guidance = calls[str(folder)].get("guidance_scale", 1.0)
        sampler = "dpm_solver" if kind.objective == "flow_matching" else "ddim"
        rest = {"n_steps": N_STEPS, "guidance": guidance, "seed": 5, "batch_size": 4, "sampler": sampler}
        ours = sample(model, range(len(names)), **rest)
        assert ours.std() > 5, kind
        assert np.abs(ours.astype(int) - theirs).max() <= 1, kind  # rounding of the last bit
