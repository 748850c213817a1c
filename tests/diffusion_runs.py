"""Small trainings, for the tests of the diffusion room."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import rsprune_command
import torch
from PIL import Image

from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.diffusion.tile_set import OnChanged, TileSet, tile_set
from rsprune_dagster.diffusion.training import TrainingOptions

SCENES = ("field", "sea")
OPTIONS = ReadOptions(
    tile_size_px=64, overlap_px=0, min_valid_fraction=0.5, bands=(), value_range=(), max_tile_pixels=10**6
)


def write_tiles(folder: Path, n: int = 24, size_px: int = 20, *, seed: int = 0, patchy: bool = False) -> pa.Table:
    """PNG files of two scenes, green stripes and blue plains, and the rows of a subset that point at them.

    Args:
        patchy: each with patches of its own, so that no two look alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        scene = SCENES[number % 2]
        image = rng.integers(0, 40, (size_px, size_px, 3))
        image[..., 1 if scene == "field" else 2] += 150
        if scene == "field":
            image[::4] //= 2
        if patchy:
            image = image // 2 + np.kron(rng.integers(0, 128, (4, 4, 1)), np.ones((size_px // 4, size_px // 4, 1)))
        path = folder / f"{number:03d}.png"
        Image.fromarray(image.astype(np.uint8)).save(path)
        content = hashlib.md5(path.read_bytes()).hexdigest()
        rows.append(
            {
                "tile_id": path.name,
                "uri": str(path),
                "kind": "file",
                "content_md5": content,
                "scene": scene,
                "stamp": "",
            }
        )
    return pa.Table.from_pylist(rows)


def small_tiles(
    folder: Path, *, image_size_px: int = 16, on_changed: OnChanged = "fail", n: int = 24, patchy: bool = False
) -> TileSet:
    table = write_tiles(folder, n, patchy=patchy)
    return tile_set(table, OPTIONS, image_size_px=image_size_px, on_changed=on_changed)


def small_options(**changes: Any) -> TrainingOptions:
    values: dict[str, Any] = {
        "preset": "tiny",
        "n_images": 48,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_images": 16,
        "ema_half_life_images": 16,
        "scene_dropout": 0.1,
        "precision": "float32",
        "seed": 0,
        "save_every_images": 16,
    }
    return TrainingOptions(**{**values, **changes})


def tiny_autoencoder(folder: Path) -> Path:
    """An AutoencoderKL with random weights that halves images, as `save_pretrained` writes it."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,
        )
    module.save_pretrained(folder)
    return folder


# a training in a process of its own, which can be killed; it tells its losses in a file at the end
TRAINING = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from diffusion_runs import small_options, small_tiles
from rsprune_dagster.diffusion.training import train
folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
trained = train(small_tiles(folder.parent / "tiles"), small_options(**changes), folder, device="cpu")
(folder / "losses.json").write_text(json.dumps(trained.losses))
"""

# several trainings after each other, each by the first n of the processes that run this; the first tells their losses
RANKED = """
import datetime, json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from diffusion_runs import small_options, small_tiles
from rsprune_dagster.diffusion.distributed import ProcessGroup
from rsprune_dagster.diffusion.training import train
number, folder, cases = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
tiles, losses = small_tiles(folder / f"tiles-{number}"), []
for case, (n, changes) in enumerate(cases):
    if number < n:
        meet = f"file://{folder}/meet-{case}"
        patience = datetime.timedelta(seconds=300)
        torch.distributed.init_process_group("gloo", meet, timeout=patience, world_size=n, rank=number)
        states = folder / f"states-{case}"
        group = ProcessGroup(number, n)
        losses.append(train(tiles, small_options(**changes), states, device="cpu", ranks=group).losses)
        torch.distributed.destroy_process_group()
if number == 0:
    (folder / "losses.json").write_text(json.dumps(losses))
"""


def start(folder: Path, **changes: object) -> rsprune_command.Running:
    return rsprune_command.start_script(TRAINING, [folder, json.dumps(changes)])


def losses_of_processes(folder: Path, cases: list[tuple[int, dict[str, Any]]]) -> list[list[float]]:
    """The losses of a training by so many processes with such options, for each case."""
    folder.mkdir()
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        rsprune_command.start_script(RANKED, [str(number), folder, json.dumps(cases)], environment=environment)
        for number in range(max(n for n, _ in cases))
    ]
    try:
        for process in processes:
            assert process.wait() == 0, process.said()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / "losses.json").read_text())  # type: ignore[no-any-return]
