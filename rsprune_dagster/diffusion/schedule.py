"""The noise schedules of the two objectives as diffusers schedulers, and the samplers."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

Schedule = Any
"""A diffusers scheduler; Any, since mypy cannot follow diffusers' types."""

N_TIMESTEPS = 1000
FIRST_FLOW_TIMESTEP = 1
"""Smallest timestep of flow matching; with 1000 steps diffusers' last timestep is 0.999, truncated to 0."""


def noise_schedule(*, clipped: bool = True) -> Schedule:
    """Cosine schedule (Nichol & Dhariwal 2021) with zero terminal SNR (Lin et al. 2023) and v-prediction.

    Args:
        clipped: whether predictions are clipped to [-1, 1]: for pixels, not for latents.
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

    It uses DPM-Solver's scheduler, which at first order equals FlowMatchEulerDiscreteScheduler; the latter lacks
    `scale_model_input`, which all class-conditional pipelines of diffusers call.
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
"""Has `timesteps` (n,) int64, descending, and `step(prediction, timestep, state)`, which returns `prev_sample`."""

Sampler = Callable[[Schedule, int, "str | torch.device"], Stepper]
"""(schedule, number of steps, device of the timesteps) to a stepper."""


def ddim(schedule: Schedule, n_steps: int, device: str | torch.device) -> Stepper:
    """DDIM (Song et al. 2021); on straight paths its step is Euler's."""
    if is_flow(schedule):
        return _dpm_solver(schedule, n_steps, device, order=1)
    return DdimStepper(schedule, trailing_timesteps(n_steps).to(device))


def dpm_solver(schedule: Schedule, n_steps: int, device: str | torch.device) -> Stepper:
    """Second-order DPM-Solver++ (Lu et al. 2022): the same quality in half the steps."""
    return _dpm_solver(schedule, n_steps, device, order=2)


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpm_solver": dpm_solver}


@dataclass(frozen=True)
class DdimStepper:
    """Deterministic DDIM (Song et al. 2021, equation 12), from each timestep to the next in the list.

    diffusers' DDIMScheduler always steps by 1000 // n timesteps, which leaves residual noise if n does not divide
    1000. If it does, both give the same bits.
    """

    schedule: Schedule
    timesteps: torch.Tensor

    def step(self, said: torch.Tensor, timestep: torch.Tensor, state: torch.Tensor) -> SimpleNamespace:
        """The next state, as `prev_sample`, from `state` (n, c, s, s) and the predicted v in `said`."""
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

    As in diffusers, but without the extra timestep -1 that it adds for some n, such as 61.
    """
    n = min(n_steps, N_TIMESTEPS)
    ends = np.arange(N_TIMESTEPS, 0, -N_TIMESTEPS / n)[:n]
    return torch.from_numpy(np.rint(ends).astype(np.int64) - 1)


def is_flow(schedule: Schedule) -> bool:
    """Whether the schedule is that of flow matching."""
    return bool(schedule.config.prediction_type == "flow_prediction")


def objective_name(schedule: Schedule) -> str:
    """The training objective that a schedule belongs to, as in `training.objective`."""
    return "flow_matching" if is_flow(schedule) else "v_prediction"


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


def read_noise_schedule(config: dict[str, Any]) -> Schedule:
    """The schedule of a checkpoint, from its scheduler_config.json."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    known = {kind.__name__: kind for kind in (DDIMScheduler, DPMSolverMultistepScheduler)}
    return known[config["_class_name"]](**{name: value for name, value in config.items() if not name.startswith("_")})
