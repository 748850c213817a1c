"""The denoisers: sizes of diffusers' UNet by name, from minutes on two cores to days on many GPUs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsprune_dagster.errors import UsageError
from rsprune_dagster.params import suggest

Denoiser = Any
"""A diffusers model, `torch.nn.Module` and `ModelMixin` at once; diffusers ships no types that mypy can follow."""
Schedule = Any
"""A diffusers scheduler."""


@dataclass(frozen=True)
class UNetPreset:
    """Channels of each resolution, blocks in each, and at which edges attention looks at the whole image."""

    channels: tuple[int, ...]
    layers: int
    attention_edges_px: tuple[int, ...]
    head_dim: int


PRESETS: dict[str, UNetPreset] = {
    "tiny": UNetPreset((32, 64, 64), layers=1, attention_edges_px=(8,), head_dim=16),
    "small": UNetPreset((64, 128, 128, 256), layers=2, attention_edges_px=(16, 8), head_dim=32),
    "base": UNetPreset((128, 256, 256, 256), layers=3, attention_edges_px=(32, 16, 8), head_dim=64),
    "xl": UNetPreset((192, 384, 576, 768), layers=3, attention_edges_px=(32, 16, 8), head_dim=64),
}
"""tiny has 1.1 M weights, small 19 M, base 51 M, xl 261 M."""

N_TIMESTEPS = 1000


def build_denoiser(preset: str, *, image_size_px: int, n_scenes: int, seed: int) -> Denoiser:
    """A UNet with random weights that come from `seed`, for RGB images of `image_size_px`.

    With scenes it has one more class than there are: the last, `n_scenes`, stands for "any scene", which is what
    classifier-free guidance (Ho & Salimans 2022) leads away from.

    Raises:
        UsageError: unknown preset, or an image size that its resolutions do not divide.
    """
    import torch
    from diffusers import UNet2DModel

    sizes = _preset(preset)
    halvings = 2 ** (len(sizes.channels) - 1)
    if image_size_px % halvings:
        raise UsageError(f"the {preset} denoiser needs an image size that {halvings} divides, not {image_size_px} px")
    edges = [image_size_px >> level for level in range(len(sizes.channels))]
    attends = [edge in sizes.attention_edges_px for edge in edges]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=image_size_px,
            in_channels=3,
            out_channels=3,
            layers_per_block=sizes.layers,
            block_out_channels=sizes.channels,
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            attention_head_dim=sizes.head_dim,
            norm_num_groups=min(32, sizes.channels[0] // 2),
            num_class_embeds=n_scenes + 1 if n_scenes > 1 else None,
        )


def read_denoiser(folder: Path) -> Denoiser:
    """A denoiser that `save_pretrained` wrote. (`from_pretrained` would put the folder's path into its configuration.)

    Raises:
        Exception: of many kinds, when the files are missing, truncated, or weights and configuration do not fit.
    """
    from diffusers import UNet2DModel
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    denoiser = UNet2DModel(**{name: value for name, value in config.items() if not name.startswith("_")})
    denoiser.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return denoiser


def noise_schedule() -> Schedule:
    """The cosine schedule (Nichol & Dhariwal 2021), rescaled to end in pure noise (Lin et al. 2023), v-prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=N_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
    )


def _preset(name: str) -> UNetPreset:
    if name not in PRESETS:
        known = tuple(PRESETS)
        raise UsageError(f"no denoiser is called {name}{suggest(name, known)}; there are {', '.join(known)}")
    return PRESETS[name]


Sampler = Callable[[Schedule], Schedule]


def ddim(schedule: Schedule) -> Schedule:
    """DDIM (Song et al. 2021), as the schedule is."""
    return schedule


def dpm_solver(schedule: Schedule) -> Schedule:
    """DPM-Solver++ of second order (Lu et al. 2022): as good in half the steps."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config(schedule.config, algorithm_type="dpmsolver++", solver_order=2)


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpm_solver": dpm_solver}
