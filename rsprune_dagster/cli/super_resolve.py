"""`rsprune super-resolve`: a scene enlarged by super_resolution_checkpoint."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import load, project_root
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.terminal import say

app = typer.Typer(rich_markup_mode=None)


class Output(StrEnum):
    """Which output of the model is written."""

    SAMPLE = "sample"
    MEAN = "mean"


class OtherBands(StrEnum):
    """How bands other than red, green and blue are treated."""

    REFUSE = "refuse"
    BICUBIC = "bicubic"


@app.command("super-resolve")
def super_resolve(
    source: Annotated[Path, typer.Argument(help="A GeoTIFF of any size and bit depth", metavar="IN.tif")],
    target: Annotated[Path, typer.Argument(help="The enlarged GeoTIFF", metavar="OUT.tif")],
    output: Annotated[
        Output, typer.Option("--output", help="sample: sharp, with invented detail; mean: smooth, with the least error")
    ] = Output.SAMPLE,
    other_bands: Annotated[
        OtherBands, typer.Option("--other-bands", help="Bands beside red, green and blue: refuse or bicubic")
    ] = OtherBands.REFUSE,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Default: the project's super_resolution_checkpoint", metavar="DIR"),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=2, help="Steps of the sampler")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of the sample")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda", metavar="NAME")] = "auto",
) -> None:
    """Enlarge a scene with the fine-tuned model, window by window. An interrupted command goes on where it was."""
    from dataclasses import replace
    from functools import partial

    from rsprune_dagster.corpus.options import options_of
    from rsprune_dagster.diffusion.checkpoint import model_digest
    from rsprune_dagster.downstream.open_scene import Scaling
    from rsprune_dagster.downstream.scene import upscale
    from rsprune_dagster.downstream.super_resolution import load_super_resolution
    from rsprune_dagster.utils.device import resolve_device
    from rsprune_dagster.utils.progress import terminal

    project = project_root()
    whole = load(project / "params.yaml")
    params = whole.training
    folder = checkpoint or Layout.of_project(project).folder("super_resolution_checkpoint")
    loaded = load_super_resolution(folder)
    on = resolve_device(device)
    model = replace(loaded, model=loaded.model.to(str(on)))
    space, scale = model.model.space, model.task.scale
    if output is Output.MEAN and steps:
        raise UsageError("--steps has no effect with --output mean, which takes one step")
    is_mean, n_steps = output is Output.MEAN, steps or params.sample_steps
    drawn = partial(model.sample, n_steps=n_steps, sampler=params.sampler)
    remarks = upscale(
        source,
        target,
        Scaling(
            scale=scale,
            edge_px=space.image_size_px,
            noise_shape=(space.channels, space.edge),
            seed=seed,
            other_bands=other_bands.value,
            at_once=params.micro_batch_size,
        ),
        (lambda low, noise: model.mean(low)) if is_mean else drawn,
        options=options_of(whole.corpus),
        key=f"{model_digest(folder)} {output.value} {n_steps} {params.sampler} {on.type} {params.micro_batch_size}",
        progress=terminal,
    )
    say(f"{target}: {source} enlarged x{scale}, the {output.value} of the model")
    for remark in remarks:
        say(f"note: {remark}")
