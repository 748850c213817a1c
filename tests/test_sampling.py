"""Sampling: the steps, the noise that an image starts from, guidance, and the grid."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from rsprune_dagster.diffusion.latents import pixels
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import to_images
from rsprune_dagster.diffusion.sampling import NULL_CLASS, grid, sample
from rsprune_dagster.diffusion.schedule import SAMPLERS, flow_schedule, noise_schedule, trailing_timesteps
from rsprune_dagster.diffusion.tile_set import Condition
from rsprune_dagster.utils.errors import UsageError

EDGE, SEED = 4, 5


class ByClass(torch.nn.Module):
    """A denoiser that predicts one number for each class; the last one is the null class."""

    device = torch.device("cpu")

    def __init__(self, *said: float, conditional: bool = True) -> None:
        super().__init__()
        self.said = torch.tensor(said)
        self.config = FrozenDict({"num_class_embeds": len(said) if conditional else None})
        self.n_rows: list[int] = []

    def forward(self, state: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> object:
        assert timesteps.shape == (len(state),) and not self.training and not torch.is_grad_enabled()
        assert class_labels is None or class_labels.min() >= 0
        self.n_rows.append(len(state))
        said = self.said[:1].expand(len(state)) if class_labels is None else self.said[class_labels]
        return SimpleNamespace(sample=said[:, None, None, None].expand_as(state))


def drawn(denoiser: ByClass, scenes: list[int], *, guidance: float, batch_size: int = 2) -> np.ndarray:
    model = Model(denoiser, flow_schedule(), pixels(EDGE))
    rest = {"n_steps": 3, "seed": SEED, "sampler": "ddim"}
    return sample(model, scenes, guidance=guidance, batch_size=batch_size, **rest)


def expected(*directions: float) -> np.ndarray:
    """Images that a constant direction leads to, from sigma 0.999 to 0, from the noise of (seed, number)."""
    states = []
    for number, direction in enumerate(directions):
        seed = int(np.random.SeedSequence((SEED, number)).generate_state(1)[0])
        noise = torch.randn((3, EDGE, EDGE), generator=torch.Generator().manual_seed(seed))
        states.append(noise - 0.999 * direction)
    return to_images(torch.stack(states))


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one.astype(int) - other).max() <= 1)  # roundings of float32


@pytest.mark.parametrize(
    ("n_steps", "timesteps"),
    [(1, [999]), (3, [999, 666, 332]), (4, [999, 749, 499, 249]), (6, [999, 832, 666, 499, 332, 166])],
)
def test_timesteps_are_evenly_spaced_down_from_999(n_steps: int, timesteps: list[int]) -> None:
    assert trailing_timesteps(n_steps).tolist() == timesteps
    for sampler in SAMPLERS.values():
        assert sampler(noise_schedule(), n_steps, "cpu").timesteps.tolist() == timesteps


@pytest.mark.parametrize("n_steps", [1, 4, 7])
def test_flow_takes_equal_steps_of_sigma_from_0_999_to_0(n_steps: int) -> None:
    for sampler in SAMPLERS.values():
        stepper = sampler(flow_schedule(), n_steps, "cpu")
        assert stepper.sigmas.tolist() == pytest.approx(np.linspace(0.999, 0, n_steps + 1), abs=1e-6)
        assert stepper.timesteps.tolist() == [int(1000 * sigma + 1e-3) for sigma in stepper.sigmas[:-1].tolist()]


def test_more_steps_than_timesteps_are_all_timesteps_once() -> None:
    assert trailing_timesteps(2000).tolist() == list(range(999, -1, -1))


def test_dpm_solver_is_of_second_order_and_ddim_of_first() -> None:
    orders = [SAMPLERS[name](flow_schedule(), 4, "cpu").config.solver_order for name in ("ddim", "dpm_solver")]
    assert orders == [1, 2] and SAMPLERS["dpm_solver"](noise_schedule(), 4, "cpu").config.solver_order == 2


def test_an_image_starts_from_the_noise_of_its_seed_and_number() -> None:
    assert near(drawn(ByClass(0.0, conditional=False), [0] * 5, guidance=1), expected(0, 0, 0, 0, 0))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.5, 3.0])
def test_guidance_leads_from_the_null_class_through_the_scene(guidance: float) -> None:
    denoiser = ByClass(0.5, -0.25, 0.125)
    led = [0.125 + guidance * (said - 0.125) for said in (0.5, -0.25, 0.125)]
    assert near(drawn(denoiser, [0, 1, NULL_CLASS], guidance=guidance), expected(*led))
    assert denoiser.n_rows == ([2] * 3 + [1] * 3 if guidance == 1 else [4] * 3 + [2] * 3)  # 1 costs no second pass


def test_without_classes_there_is_no_guidance() -> None:
    denoiser = ByClass(0.25, conditional=False)
    assert near(drawn(denoiser, [NULL_CLASS, 0], guidance=3), expected(0.25, 0.25))
    assert denoiser.n_rows == [2] * 3


class ByCondition(ByClass):
    """A denoiser without classes that predicts the mean of its condition."""

    def forward(self, inputs: torch.Tensor, timesteps: torch.Tensor, class_labels: None = None) -> SimpleNamespace:
        self.n_rows.append(len(inputs))
        given = inputs[:, 3:].mean(dim=(1, 2, 3))
        return SimpleNamespace(sample=given[:, None, None, None].expand(-1, 3, EDGE, EDGE))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_guidance_leads_from_no_condition_through_the_given_one(guidance: float) -> None:
    denoiser = ByCondition(0.0, conditional=False)
    model = Model(denoiser, flow_schedule(), pixels(EDGE))
    planes = np.array([0.5, -0.25, 0.125], np.float32)[:, None, None, None] + np.zeros((3, 2, EDGE, EDGE), np.float32)
    images = sample(
        model,
        [NULL_CLASS] * 3,
        n_steps=3,
        guidance=guidance,
        seed=SEED,
        batch_size=2,
        condition=Condition(planes, is_image=False),
    )
    assert near(images, expected(*(guidance * said for said in (0.5, -0.25, 0.125))))
    assert denoiser.n_rows == ([2] * 3 + [1] * 3 if guidance == 1 else [4] * 3 + [2] * 3)


def test_an_unknown_sampler_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"no sampler is called dim \(did you mean ddim\?\)"):
        model = Model(ByClass(0.0), flow_schedule(), pixels(EDGE))
        sample(model, [0], n_steps=1, guidance=1, seed=0, batch_size=1, sampler="dim")


def test_a_grid_is_filled_row_by_row_and_the_rest_is_white() -> None:
    images = np.stack([np.full((2, 2, 3), 10 * number, np.uint8) for number in range(5)])
    sheet = np.asarray(grid(images, columns=2))
    assert sheet.shape == (6, 4, 3)
    assert sheet[::2, ::2, 0].tolist() == [[0, 10], [20, 30], [40, 255]]
    assert np.array_equal(sheet, np.kron(sheet[::2, ::2], np.ones((2, 2, 1), np.uint8)))
