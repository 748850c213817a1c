"""The noise schedules of the two objectives, as diffusers' schedulers, and the samplers that step along them."""

from collections.abc import Callable
from typing import Any

Schedule = Any
"""A diffusers scheduler; diffusers ships no types that mypy can follow."""

N_TIMESTEPS = 1000


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


Sampler = Callable[[Schedule], Schedule]


def ddim(schedule: Schedule) -> Schedule:
    """DDIM (Song et al. 2021), as the schedule is; on straight paths its step is Euler's."""
    from diffusers import DPMSolverMultistepScheduler

    if schedule.config.prediction_type == "flow_prediction":
        return DPMSolverMultistepScheduler.from_config(schedule.config, solver_order=1)
    return schedule


def dpm_solver(schedule: Schedule) -> Schedule:
    """DPM-Solver++ of second order (Lu et al. 2022): as good in half the steps."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config(schedule.config, algorithm_type="dpmsolver++", solver_order=2)


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpm_solver": dpm_solver}


def read_schedule(config: dict[str, Any]) -> Schedule:
    """The schedule of a checkpoint, from its scheduler_config.json."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    known = {kind.__name__: kind for kind in (DDIMScheduler, DPMSolverMultistepScheduler)}
    return known[config["_class_name"]](**{name: value for name, value in config.items() if not name.startswith("_")})
