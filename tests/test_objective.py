"""The formulas of the two objectives: draws, noisy inputs, targets and the loss, against their closed forms."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from diffusion_runs import tiny_autoencoder

from rsprune_dagster.diffusion.distributed import ProcessGroup
from rsprune_dagster.diffusion.latents import Space, identity_space, latents, pixels, read_autoencoder
from rsprune_dagster.diffusion.objective import (
    OBJECTIVES,
    NoisyBatch,
    encoded_condition,
    logit_normal_timesteps,
    loss_of,
    noised,
    to_tensor,
    uniform_timesteps,
)
from rsprune_dagster.diffusion.schedule import noise_schedule
from rsprune_dagster.diffusion.tile_set import Batch, Condition

NULL_CLASS = 7
MANY = 20_000
"""Number of draws. The standard error of a share is at most 0.0036."""


class Echo(torch.nn.Module):
    """A denoiser that predicts each image's timestep plus ten times its class."""

    def __init__(self, n_classes: int | None) -> None:
        super().__init__()
        self.config = FrozenDict({"num_class_embeds": n_classes})

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> object:
        said = timesteps if class_labels is None else timesteps + 10 * class_labels
        return SimpleNamespace(sample=said[:, None, None, None].expand_as(noisy).to(torch.float64))


def grey(n: int, level: int = 255, *, first: int = 0, edge: int = 1) -> Batch:
    """Images of one grey level, of scene 3."""
    return Batch(first, np.full((n, edge, edge, 3), level, np.uint8), np.full(n, 3))


def draw(
    batch: Batch,
    objective: str = "v_prediction",
    *,
    scene_dropout: float = 0.0,
    condition_dropout: float = 0.0,
    mean_share: float = 0.0,
    rows: slice = slice(None),
) -> NoisyBatch:
    space, chosen = pixels(batch.images.shape[1]), OBJECTIVES[objective]
    return noised(
        batch,
        chosen,
        chosen.schedule(space),
        space,
        null_class=NULL_CLASS,
        scene_dropout=scene_dropout,
        condition_dropout=condition_dropout,
        mean_share=mean_share,
        seed=0,
        rows=rows,
    )


def cosine_alphas_cumprod() -> np.ndarray:
    """Nichol & Dhariwal's equation 17, rescaled so that the last timestep is pure noise (Lin et al., algorithm 1)."""
    times = np.arange(1001) / 1000
    cosine = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    root = np.sqrt(np.cumprod(1 - np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)))
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def test_the_noise_schedule_is_the_cosine_with_zero_terminal_snr() -> None:
    assert noise_schedule().alphas_cumprod.numpy() == pytest.approx(cosine_alphas_cumprod(), abs=1e-5)


def test_v_prediction_is_its_formula() -> None:
    seen = draw(grey(500, edge=4))
    alpha = torch.from_numpy(cosine_alphas_cumprod()).sqrt()[seen.timesteps][:, None, None, None]
    sigma = (1 - alpha**2).sqrt()
    noise = sigma * seen.inputs + alpha * seen.target  # of x = 1
    assert torch.allclose(seen.inputs.double(), alpha + sigma * noise, atol=1e-4)
    assert torch.allclose(seen.target.double(), alpha * noise - sigma, atol=1e-4)
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03  # 24,000 draws


def test_flow_matching_is_its_formula() -> None:
    seen = draw(grey(500, edge=4), "flow_matching")
    noise = seen.target + 1  # u = noise - x, x = 1
    sigma = (seen.timesteps / 1000)[:, None, None, None]
    assert torch.allclose(seen.inputs, (1 - sigma) + sigma * noise, atol=1e-5)
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03


def test_timesteps_of_v_prediction_are_uniform_from_0_to_999() -> None:
    drawn = uniform_timesteps(MANY, torch.Generator().manual_seed(0))
    assert (int(drawn.min()), int(drawn.max())) == (0, 999)
    shares = torch.bincount(drawn // 100, minlength=10) / MANY
    assert torch.allclose(shares, torch.tensor(0.1), atol=0.01)


def test_timesteps_of_flow_matching_are_logit_normal() -> None:
    sigma = logit_normal_timesteps(MANY, torch.Generator().manual_seed(0)) / 1000
    normal = torch.distributions.Normal(0.0, 1.0)
    for z in (-2.0, -1.0, 0.0, 1.0, 2.0):
        below = float((sigma < 1 / (1 + np.exp(-z))).float().mean())
        assert below == pytest.approx(float(normal.cdf(torch.tensor(z))), abs=0.015)


@pytest.mark.parametrize(("scene_dropout", "expected"), [(0.0, 0.0), (0.1, 0.1), (1.0, 1.0)])
def test_so_many_images_lose_their_scene(scene_dropout: float, expected: float) -> None:
    scenes = draw(grey(MANY), scene_dropout=scene_dropout).scenes
    assert set(scenes.tolist()) <= {3, NULL_CLASS}
    assert float((scenes == NULL_CLASS).float().mean()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_process_has_its_rows_of_the_same_draw(objective: str) -> None:
    batch = replace(grey(8), images=np.arange(24, dtype=np.uint8).reshape(8, 1, 1, 3), scenes=np.arange(8))
    whole = draw(batch, objective, scene_dropout=0.5)
    for number in range(3):
        rows = ProcessGroup(number, 3).rows(8)
        share = draw(batch, objective, scene_dropout=0.5, rows=rows)
        for name in ("inputs", "timesteps", "scenes", "target"):
            assert torch.equal(getattr(share, name), getattr(whole, name)[rows])


def test_a_condition_is_concatenated_and_changes_no_other_draw() -> None:
    planes = np.random.default_rng(0).normal(size=(6, 2, 4, 4)).astype(np.float32)
    plain, given = grey(6, edge=4), replace(grey(6, edge=4), condition=Condition(planes, is_image=False))
    before, after = (draw(batch, scene_dropout=0.5) for batch in (plain, given))
    assert torch.equal(after.inputs[:, :3], before.inputs) and np.array_equal(after.inputs[:, 3:].numpy(), planes)
    assert all(torch.equal(getattr(after, name), getattr(before, name)) for name in ("timesteps", "scenes", "target"))
    share = draw(given, rows=slice(2, 4))
    assert torch.equal(share.inputs, draw(given).inputs[2:4])


def test_so_many_images_lose_their_condition() -> None:
    planes = np.ones((MANY, 1, 1, 1), np.float32)
    drawn = draw(replace(grey(MANY), condition=Condition(planes, is_image=False)), condition_dropout=0.1)
    lost = drawn.inputs[:, 3] == 0
    assert float(lost.float().mean()) == pytest.approx(0.1, abs=0.01)
    assert (drawn.inputs[:, 3][~lost] == 1).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_so_many_images_teach_the_mean(objective: str) -> None:
    planes = np.ones((MANY, 1, 1, 1), np.float32)
    batch = replace(grey(MANY, 51), condition=Condition(planes, is_image=False))  # 51 is -0.6
    plain, drawn = draw(batch, objective), draw(batch, objective, mean_share=0.2)
    of_mean = drawn.inputs[:, :3].abs().amax((1, 2, 3)) == 0
    assert float(of_mean.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert (drawn.timesteps[of_mean] == 999).all() and torch.allclose(drawn.target[of_mean], torch.tensor(0.6))
    for name in ("inputs", "timesteps", "target"):
        assert torch.equal(getattr(drawn, name)[~of_mean], getattr(plain, name)[~of_mean])
    assert (drawn.inputs[:, 3] == 1).all()


def test_in_latents_a_condition_is_encoded_or_averaged(tmp_path: Path) -> None:
    space = latents(*read_autoencoder(tiny_autoencoder(tmp_path / "vae")), 16)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    encoded = encoded_condition(space, Condition(image, is_image=True))
    assert torch.equal(encoded, space.encode(torch.from_numpy(image), at_once=2))
    averaged = encoded_condition(space, Condition(image, is_image=False)).numpy()
    assert averaged == pytest.approx(image.reshape(2, 3, 8, 2, 8, 2).mean(axis=(3, 5)), abs=1e-6)


def test_pixels_are_clipped_and_latents_are_not() -> None:
    schedule = OBJECTIVES["v_prediction"].schedule
    assert schedule(pixels(8)).config.clip_sample and schedule(identity_space(8)).config.clip_sample
    assert not schedule(Space(4, 4, object(), "digest")).config.clip_sample


def test_black_is_minus_one_and_white_is_one() -> None:
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    assert to_tensor(images).flatten().tolist() == pytest.approx([-1, -0.6, 1])


@pytest.mark.parametrize(("n_classes", "expected"), [(None, [1.0, 2.0]), (4, [31.0, 22.0])])
def test_the_loss_is_the_mean_squared_error_of_what_is_said_of_time_and_scene(
    n_classes: int | None, expected: list[float]
) -> None:
    noisy, target = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 5.0)
    part = NoisyBatch(noisy, torch.tensor([1, 2]), torch.tensor([3, 2]), target)
    assert float(loss_of(Echo(n_classes), part)) == pytest.approx(np.mean([(said - 5) ** 2 for said in expected]))
