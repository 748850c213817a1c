"""How fast images are drawn, by sampler and steps, and how far they are from where many steps would have led.

    python -m benchmarks.sampling [--checkpoint DIR] [--denoiser unet] [--preset tiny] [--size 32] [--images 32]

Without a checkpoint the weights are random: the speed is the same, and the distance says nothing and is left out.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import heading
from rsprune_dagster.diffusion.checkpoint import load_checkpoint
from rsprune_dagster.diffusion.denoiser import build_denoiser
from rsprune_dagster.diffusion.latents import identity_space, pixels
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import OBJECTIVES
from rsprune_dagster.diffusion.sampling import sample

N_SCENES = 10
RUNS = (("ddim", 12), ("ddim", 25), ("ddim", 50), ("dpm_solver", 6), ("dpm_solver", 12), ("dpm_solver", 25))
TRUTH = ("ddim", 200)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--denoiser", default="unet")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    model = load_checkpoint(asked.checkpoint)[0] if asked.checkpoint else untrained(asked)
    model = model.to(asked.device)
    truth = drawn(model, asked, *TRUTH)[0] if asked.checkpoint else None
    drawn(model, asked, "ddim", 1)  # warm
    print(heading("benchmarks.sampling"), end="\n\n")
    print("| sampler | steps | images/s | from 200 steps of DDIM, grey levels (rms) |")
    print("|---|---:|---:|---:|")
    for sampler, n_steps in RUNS:
        images, rate = drawn(model, asked, sampler, n_steps)
        away = "" if truth is None else f"{np.sqrt(np.mean((images - truth) ** 2)):.1f}"
        print(f"| {sampler} | {n_steps} | {rate:.1f} | {away} |", flush=True)


def drawn(model: Model, asked: argparse.Namespace, sampler: str, n_steps: int) -> tuple[np.ndarray, float]:
    """Images, as float64, always from the same noise, and how many came in a second."""
    scenes = np.arange(asked.images) % (2 if asked.checkpoint else N_SCENES)
    started = time.perf_counter()
    images = sample(
        model, scenes, n_steps=n_steps, guidance=asked.guidance, seed=0, batch_size=asked.images, sampler=sampler
    )
    return images.astype(float), len(images) / (time.perf_counter() - started)


def untrained(asked: argparse.Namespace) -> Model:
    """A model with random weights."""
    space = identity_space(asked.size) if asked.denoiser == "dit" else pixels(asked.size)
    denoiser = build_denoiser(
        asked.preset, image_size_px=asked.size, n_scenes=N_SCENES, seed=0, kind=asked.denoiser, channels=3
    )
    return Model(denoiser, OBJECTIVES["v_prediction"].schedule(space), space)


if __name__ == "__main__":
    main()
