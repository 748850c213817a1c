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
from needs import missing
from PIL import Image
from typer.testing import CliRunner

from rsprune_dagster.cli.commands import app
from rsprune_dagster.diffusion.checkpoint import Origin, load_checkpoint, write_checkpoint
from rsprune_dagster.diffusion.denoiser import build_denoiser
from rsprune_dagster.diffusion.latents import Space, identity_space, latents, pixels, read_autoencoder
from rsprune_dagster.diffusion.model import Model, pixel_model
from rsprune_dagster.diffusion.objective import OBJECTIVES, logit_normal_timesteps, with_flow
from rsprune_dagster.diffusion.sampling import NULL_CLASS, sample
from rsprune_dagster.diffusion.schedule import SAMPLERS, flow_schedule, noise_schedule, trailing_timesteps
from rsprune_dagster.diffusion.training import Trained, TrainingOptions

SIZE_PX = 16
N_STEPS = 4  # divides 1000: diffusers' own DDIM is right only then
PROJECT = Path(__file__).parents[1]

# what a machine with diffusers and without this package does with a folder
DIFFUSERS = """
import json, sys
import numpy as np, torch
from diffusers import DiffusionPipeline
for folder, call in json.loads(sys.argv[1]).items():
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in call.pop("seeds")]
    images = pipeline(generator=noise, **call).images
    np.save(folder + ".npy", np.stack([np.asarray(image) for image in images]))
assert not [name for name in sys.modules if name.startswith("rsprune")]
"""


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
    return Trained(model, (1.0, 0.5), 16, 1), options


def space_of(kind: Kind, autoencoder: Path) -> Space:
    if kind.in_latents:
        return latents(*read_autoencoder(autoencoder), SIZE_PX)
    return identity_space(SIZE_PX) if kind.denoiser == "dit" else pixels(SIZE_PX)


def seeds(n: int) -> list[int]:
    return [int(np.random.SeedSequence((5, number)).generate_state(1)[0]) for number in range(n)]


def call(kind: Kind, folder: Path) -> dict[str, Any]:
    """How the folder's pipeline is asked for one image of each scene."""
    n = len(kind.scenes)
    labels = {"class_labels": list(range(n))}
    index = json.loads((folder / "model_index.json").read_text())
    always = {"seeds": seeds(n), "num_inference_steps": N_STEPS}
    if index["_class_name"] == "DiTPipeline":
        return {**always, **labels, "guidance_scale": 1.5}
    return {**always, "batch_size": n, **(labels if n > 1 else {})}


@pytest.mark.slow
def test_an_environment_with_diffusers_alone_draws_what_we_draw(folders: dict[Kind, Path], tmp_path: Path) -> None:
    from importlib.metadata import version

    uv = PROJECT / ".venv-uv" / "bin" / "uv"
    if not uv.exists():
        missing(f"no uv at {uv}: `make setup` installs it; no environment with diffusers alone was tried")
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


def test_pixels_pass_through_unchanged() -> None:
    space = identity_space(8)
    images = torch.rand((3, 3, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(space.encode(images, at_once=2), images, atol=1e-6)  # a few roundings of float32
    assert torch.allclose(space.decode(images), images, atol=1e-6)


def test_the_flow_s_first_order_step_is_that_of_the_flow_match_scheduler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    ours = SAMPLERS["ddim"](flow_schedule(), 5, "cpu")
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=ours.sigmas[:-1].tolist())
    one = two = torch.randn((1, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    for mine, their in zip(ours.timesteps, theirs.timesteps, strict=True):
        one = ours.step(torch.tanh(one), mine, one).prev_sample
        two = theirs.step(torch.tanh(two), their, two).prev_sample
    assert torch.allclose(one, two, atol=1e-5)


def test_a_step_against_the_flow_leads_from_noise_to_the_image() -> None:
    clean, noise = torch.rand((2, 3, 4, 4)), torch.randn((2, 3, 4, 4))
    timesteps = logit_normal_timesteps(2, torch.Generator().manual_seed(0))
    noisy, direction = with_flow(flow_schedule(), clean, noise, timesteps)
    sigma = (timesteps / 1000)[:, None, None, None]
    assert torch.allclose(noisy - sigma * direction, clean, atol=1e-6)
    assert torch.allclose(noisy + (1 - sigma) * direction, noise, atol=1e-6)


def test_flow_timesteps_are_those_that_the_sampler_asks_for() -> None:
    drawn = logit_normal_timesteps(10_000, torch.Generator().manual_seed(0))
    assert drawn.min() >= 1 and drawn.max() <= 999
    # the median of a logit-normal distribution is a half; of 10,000 draws it is within .02
    assert abs(float(drawn.float().median()) - 500) < 20
    for sampler in SAMPLERS.values():
        for n_steps in (1, 12, 20, 999, 1000):
            asked = sampler(flow_schedule(), n_steps, "cpu").timesteps
            assert len(asked) == n_steps and asked.min() >= 1 and asked.max() == 999


def test_v_prediction_is_sampled_at_timesteps_that_it_was_trained_with() -> None:
    for n_steps in range(1, 1001):
        timesteps = trailing_timesteps(n_steps)
        assert len(timesteps) == n_steps and timesteps[0] == 999 and timesteps[-1] >= 0
        assert n_steps == 1 or (timesteps.diff() < 0).all()


def optimal(objective: str, schedule: Any, timestep: torch.Tensor, state: torch.Tensor, std: float) -> torch.Tensor:
    """What a perfect denoiser says of images that are normal with mean 0 and a standard deviation, in closed form."""
    if objective == "flow_matching":
        sigma = timestep / 1000
        return (sigma - (1 - sigma) * std**2) / ((1 - sigma) ** 2 * std**2 + sigma**2) * state
    alpha, sigma = schedule.alphas_cumprod[timestep] ** 0.5, (1 - schedule.alphas_cumprod[timestep]) ** 0.5
    return alpha * sigma * (1 - std**2) / (alpha**2 * std**2 + sigma**2) * state


@pytest.mark.parametrize("n_steps", [7, 12, 50, 61, 333, 400, 999, 1000])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_denoiser_s_samples_have_the_spread_of_the_images_at_any_number_of_steps(
    objective: str, sampler: str, n_steps: int
) -> None:
    schedule, std = OBJECTIVES[objective].schedule(pixels(8)), 0.25
    stepper = SAMPLERS[sampler](schedule, n_steps, "cpu")
    state = torch.ones(1, 1, 1, 1)  # every step is linear: noise of deviation 1 ends as this 1 does
    for timestep in stepper.timesteps:
        said = optimal(objective, schedule, timestep, state, std)
        state = stepper.step(said, timestep, state).prev_sample
    assert abs(float(state) - std) < 1.2 / n_steps  # what steps of first order leave out


@pytest.mark.parametrize("n_steps", [1, 10, 50])
def test_where_the_steps_divide_1000_ddim_is_that_of_diffusers(n_steps: int) -> None:
    schedule = noise_schedule()
    own, theirs = SAMPLERS["ddim"](schedule, n_steps, "cpu"), noise_schedule()
    theirs.set_timesteps(n_steps)
    assert torch.equal(own.timesteps, theirs.timesteps)
    generator = torch.Generator().manual_seed(0)
    state, said = (torch.randn((1, 3, 8, 8), generator=generator) for _ in range(2))
    for timestep in own.timesteps:
        one, two = (each.step(said, timestep, state).prev_sample for each in (own, theirs))
        assert torch.equal(one, two)


def test_any_scene_is_the_class_that_trains_without_scenes(folders: dict[Kind, Path]) -> None:
    for kind in (KINDS[0], Kind("dit", "flow_matching", False, ("field", "sea"))):
        model, names = load_checkpoint(folders[kind])
        assert model.null_class == (len(names) if kind.denoiser == "unet" else 1000)
        drawn = {"n_steps": 2, "guidance": 1, "seed": 0, "batch_size": 1}
        assert model.null_class is not None
        assert np.array_equal(sample(model, [NULL_CLASS], **drawn), sample(model, [model.null_class], **drawn))


def test_a_bare_transformer_is_not_taken_for_a_unet_in_pixels(folders: dict[Kind, Path]) -> None:
    model, _ = load_checkpoint(folders[Kind("dit", "flow_matching", False, ("field", "sea"))])
    with pytest.raises(AssertionError, match="a DiT is sampled as the Model"):
        pixel_model(model.denoiser)


def test_the_card_says_what_kind_it_is(folders: dict[Kind, Path]) -> None:
    cards = {kind: (folder / "README.md").read_text() for kind, folder in folders.items()}
    for kind, card in cards.items():
        assert ("diffusion transformer (DiT)" in card) == (kind.denoiser == "dit")
        assert ("flow matching" in card) == (kind.objective == "flow_matching")
        assert ("latents of 4 channels, of the AutoencoderKL" in card) == kind.in_latents
        assert ("unconditional" in card) == (len(kind.scenes) == 1)


def test_no_kind_holds_pickle(folders: dict[Kind, Path]) -> None:
    suffixes = {path.suffix for folder in folders.values() for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".csv", ".md"}


def test_sample_draws_from_every_kind(folders: dict[Kind, Path], tmp_path: Path) -> None:
    target = tmp_path / "grid.png"
    for kind, folder in folders.items():
        scene = ["--scene", "sea"] if len(kind.scenes) > 1 else []
        rest = ["-n", "2", "--steps", "2", "--device", "cpu", "--checkpoint", str(folder), "--out", str(target)]
        said = CliRunner().invoke(app, ["sample", *scene, *rest], catch_exceptions=False).output
        assert ("2 images of sea" if scene else "2 images of any scene") in said
        assert Image.open(target).size == (2 * SIZE_PX, SIZE_PX)
        target.unlink()
