"""Training on several processes or GPUs:

    accelerate launch --num_processes 4 -m rsprune_dagster.diffusion.launch --out DIR

(on CPUs, where accelerate starts one process: `torchrun --standalone --nproc_per_node 2 -m …`).
Every process runs this module. Together they run the training of the asset diffusion_checkpoint, from the project's
params.yaml and assets; the first process writes the checkpoint into DIR.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import load, project_root
from rsprune_dagster.diffusion.checkpoint import Origin, write_checkpoint
from rsprune_dagster.diffusion.distributed import process_group
from rsprune_dagster.diffusion.latents import space_of
from rsprune_dagster.diffusion.tile_set import kept_tiles
from rsprune_dagster.diffusion.training import train, training_options
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import silent, terminal


def main() -> None:
    """Train with the other processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder; training states go to OUT.states")
    parser.add_argument("--assets", type=Path, help="default: the project's")
    parser.add_argument("--params", type=Path, help="default: the project's params.yaml")
    asked = parser.parse_args()
    assets = asked.assets or Layout.of_project(project_root()).assets
    params = load(asked.params or project_root() / "params.yaml")
    if asked.out.exists():
        raise UsageError(f"{asked.out} exists: name a new folder")
    ranks, device = process_group(params.compute.device)
    tiles = kept_tiles(assets / "raw_corpus", assets / "pruned_subset", params.training)
    space = space_of(params.training)
    options = training_options(params.training, params.compute.seed, space)
    states = asked.out.with_name(asked.out.name + ".states")
    progress = terminal if ranks.is_first else silent
    trained = train(tiles, options, states, device=device, space=space, ranks=ranks, progress=progress)
    if ranks.is_first:
        asked.out.mkdir(parents=True)
        origin = Origin(len(tiles), "", params.training.data_licence)
        write_checkpoint(asked.out, trained.moved("cpu"), tiles.scene_names, options, origin)
        report = {"n_processes": ranks.n, "losses": trained.losses, **dataclasses.asdict(options)}
        (states / "launch.json").write_text(json.dumps(report))
    ranks.wait()


if __name__ == "__main__":
    main()
