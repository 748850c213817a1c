"""The noise schedules of the two objectives, as diffusers' schedulers, and the samplers that step along them."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

Schedule = Any
"""A diffusers scheduler; diffusers ships no types that mypy can follow."""

N_TIMESTEPS = 1000
FIRST_FLOW_TIMESTEP = 1
"""Flows are trained with timesteps from 1; with 1000 steps diffusers' last one is 0.999, cut to 0."""


def noise_schedule(*, clipped: bool = True) -> Schedule:
    """The cosine schedule (Nichol & Dhariwal 2021), rescaled to end in pure noise (Lin et al. 2023), v-prediction.

    Args:
        clipped: whether what is denoised lies in [-1, 1], as pixels do and latents do not.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=N_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=clipped,
    )


def flow_schedule() -> Schedule:
    """Straight paths from image to noise (Lipman et al. 2023; Liu et al. 2023), sigma = t / 1000.

    It is DPM-Solver's scheduler, which at first order steps as FlowMatchEulerDiscreteScheduler does: that one lacks
    `scale_model_input`, which every pipeline of diffusers that takes classes calls.
    """
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        num_train_timesteps=N_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


Stepper = Any
"""Has `timesteps` (n,) int64, falling, and `step(said, timestep, state)`, whose `prev_sample` is the next state."""

Sampler = Callable[[Schedule, int, "str | torch.device"], Stepper]
"""Of a schedule, a number of steps, and the device of the timesteps."""


def ddim(schedule: Schedule, n_steps: int, device: str | torch.device) -> Stepper:
    """DDIM (Song et al. 2021); on straight paths its step is Euler's."""
    if is_flow(schedule):
        return _dpm_solver(schedule, n_steps, device, order=1)
    return DdimStepper(schedule, trailing_timesteps(n_steps).to(device))


def dpm_solver(schedule: Schedule, n_steps: int, device: str | torch.device) -> Stepper:
    """DPM-Solver++ of second order (Lu et al. 2022): as good in half the steps."""
    return _dpm_solver(schedule, n_steps, device, order=2)


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpm_solver": dpm_solver}


@dataclass(frozen=True)
class DdimStepper:
    """DDIM without added noise (Song et al. 2021, equation 12), from each timestep to the next in the list.

    diffusers' DDIMScheduler goes down by 1000 // n timesteps, whichever comes next: with a number of steps that does
    not divide 1000 noise is left over. Where it divides 1000, both give the same bits.
    """

    schedule: Schedule
    timesteps: torch.Tensor

    def step(self, said: torch.Tensor, timestep: torch.Tensor, state: torch.Tensor) -> SimpleNamespace:
        """The `prev_sample` that follows on `state` (n, c, s, s), of which the denoiser `said` v."""
        alphas = self.schedule.alphas_cumprod
        lower = self.timesteps[self.timesteps < timestep]
        here, there = alphas[int(timestep)], alphas[int(lower[0])] if len(lower) else torch.ones(())
        clean = here**0.5 * state - (1 - here) ** 0.5 * said
        noise = here**0.5 * said + (1 - here) ** 0.5 * state
        if self.schedule.config.clip_sample:
            clean = clean.clamp(-1, 1)
        return SimpleNamespace(prev_sample=there**0.5 * clean + (1 - there) ** 0.5 * noise)


def trailing_timesteps(n_steps: int) -> torch.Tensor:
    """(n_steps,) evenly spaced from 999 down (Lin et al. 2023, table 2), at most the 1000 there are.

    As diffusers makes them, without the one more that it has for some n, such as 61: -1, for which nothing was trained.
    """
    n = min(n_steps, N_TIMESTEPS)
    ends = np.arange(N_TIMESTEPS, 0, -N_TIMESTEPS / n)[:n]
    return torch.from_numpy(np.rint(ends).astype(np.int64) - 1)


def is_flow(schedule: Schedule) -> bool:
    """Whether the schedule's paths are straight."""
    return bool(schedule.config.prediction_type == "flow_prediction")


def _dpm_solver(schedule: Schedule, n_steps: int, device: str | torch.device, *, order: int) -> Stepper:
    from diffusers import DPMSolverMultistepScheduler

    kind = {"algorithm_type": "dpmsolver++", "solver_order": order}
    stepper = DPMSolverMultistepScheduler.from_config(schedule.config, **kind)
    if is_flow(schedule):
        stepper.set_timesteps(n_steps, device=device)
        stepper.timesteps.clamp_(min=FIRST_FLOW_TIMESTEP)
    else:
        stepper.set_timesteps(timesteps=trailing_timesteps(n_steps).tolist(), device=device)
    return stepper


def read_schedule(config: dict[str, Any]) -> Schedule:
    """The schedule of a checkpoint, from its scheduler_config.json."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    known = {kind.__name__: kind for kind in (DDIMScheduler, DPMSolverMultistepScheduler)}
    return known[config["_class_name"]](**{name: value for name, value in config.items() if not name.startswith("_")})
