"""`rsprune sample`: images from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import load, project_root, suggest
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.terminal import say

app = typer.Typer(rich_markup_mode=None)


@app.command()
def sample(
    out: Annotated[Path, typer.Option("--out", help="A PNG: all images in one grid", metavar="FILE.png")],
    scene: Annotated[list[str] | None, typer.Option("--scene", help="Scene, repeatable; default: all")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Images of each scene")] = 16,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Default: the project's diffusion_checkpoint", metavar="DIR")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of the sampler")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", min=1, help="Guidance scale; 1: none")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="ddim or dpm_solver")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Random seed")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda", metavar="NAME")] = "auto",
) -> None:
    """Draw images of SCENE from a checkpoint."""
    from rsprune_dagster.diffusion.checkpoint import load_checkpoint
    from rsprune_dagster.diffusion.sampling import grid, sample
    from rsprune_dagster.utils.atomic_write import atomic_write
    from rsprune_dagster.utils.device import resolve_device
    from rsprune_dagster.utils.progress import terminal

    project = project_root()
    params = load(project / "params.yaml").training
    model, names = load_checkpoint(checkpoint or Layout.of_project(project).folder("diffusion_checkpoint"))
    images = sample(
        model.to(str(resolve_device(device))),
        [number for name in scene or names for number in [_number(name, names)] * n],
        n_steps=steps or params.sample_steps,
        guidance=params.guidance if guidance is None else guidance,
        sampler=sampler or params.sampler,
        seed=seed,
        batch_size=params.micro_batch_size,
        progress=terminal,
    )
    with atomic_write(out) as draft:
        grid(images, columns=min(n, 16)).save(draft, "PNG")
    say(f"{len(images)} images of {', '.join(scene or names) or 'any scene'} in {out}")


def _number(name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        known = ", ".join(names) or "none: the model is unconditional"
        raise UsageError(f"no scene is called {name}{suggest(name, names)}; the checkpoint knows {known}")
    return names.index(name)
