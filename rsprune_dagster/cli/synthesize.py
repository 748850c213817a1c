"""`rsprune synthesize`: images drawn for a mask by semantic_synthesis_checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import load, project_root
from rsprune_dagster.utils.terminal import say

app = typer.Typer(rich_markup_mode=None)


@app.command("synthesize")
def synthesize(
    mask: Annotated[
        Path, typer.Argument(help="A mask: a picture in the palette's colours, or a GeoTIFF of labels", metavar="MASK")
    ],
    target: Annotated[Path, typer.Argument(help="The drawn image, .png or .tif", metavar="OUT")],
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, help="Random seed; several draw an image each, as OUT-SEED. Default: 0"),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Default: the project's semantic_synthesis_checkpoint", metavar="DIR"),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=2, help="Steps of the sampler")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=1, help="How closely the mask is followed; 1: no guidance")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda", metavar="NAME")] = "auto",
) -> None:
    """Draw images of a mask of any size with the fine-tuned model. The same seed draws the same image."""
    from dataclasses import replace

    from rsprune_dagster.downstream.drawing import SUFFIXES, targets, write_drawing
    from rsprune_dagster.downstream.masks import read_mask
    from rsprune_dagster.downstream.synthesis import load_synthesis
    from rsprune_dagster.stages.diffusion_checkpoint import sampling_options
    from rsprune_dagster.utils.atomic_write import check_output
    from rsprune_dagster.utils.device import resolve_device
    from rsprune_dagster.utils.progress import terminal

    project = project_root()
    params = load(project / "params.yaml")
    each = targets(target, seeds or [0])
    for path in each.values():
        check_output(mask, path, SUFFIXES)
    loaded = load_synthesis(checkpoint or Layout.of_project(project).folder("semantic_synthesis_checkpoint"))
    model = replace(loaded, model=loaded.model.to(str(resolve_device(device))))
    classes = read_mask(mask, model.palette)
    options = replace(sampling_options(params.training, 0), guidance=guidance or params.semantic_synthesis.guidance)
    if steps:
        options = replace(options, n_steps=steps)
    for seed, path in each.items():
        remark = write_drawing(model.image_of(classes, replace(options, seed=seed), terminal), mask, path)
        say(f"{path}: an image of {mask}, seed {seed}")
    if remark:
        say(f"note: {remark}")
