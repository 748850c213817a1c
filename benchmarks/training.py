"""The training loop against the bare step of the same model on tensors in memory: the loader should not be the limit.

    python -m benchmarks.training [--denoiser unet] [--preset tiny] [--precision auto] [--size 32] [--batch 64]
        [--steps 20] [--rounds 5]

Tiles are JPEG files of 64 px, read, checked against their hash, resized, turned and noised by the loop; nothing of that
is done for the bare step. Rounds by turns; the median of each.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from benchmarks.machine import heading
from benchmarks.memory import jpeg, pictures
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.diffusion.distributed import SINGLE_PROCESS
from rsprune_dagster.diffusion.objective import OBJECTIVES, NoisyBatch
from rsprune_dagster.diffusion.state import TrainingState
from rsprune_dagster.diffusion.tile_set import TileSet, tile_set
from rsprune_dagster.diffusion.training import TrainingOptions, new_denoiser, pixel_space, share_of, step, train

AIM = 0.9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoiser", default="unet")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    asked = parser.parse_args()
    options = TrainingOptions(
        preset=asked.preset,
        n_images=asked.batch * asked.steps,
        batch_size=asked.batch,
        micro_batch_size=asked.batch,
        learning_rate=1e-4,
        warmup_images=0,
        ema_half_life_images=1000,
        scene_dropout=0.1,
        precision=asked.precision,
        seed=0,
        save_every_images=10**12,
        denoiser=asked.denoiser,
    )
    with tempfile.TemporaryDirectory() as folder:
        table = write_tiles(Path(folder) / "tiles", n=options.n_images)
        rounds = []
        for number in range(asked.rounds):
            tiles = tile_set(table, ReadOptions(), image_size_px=asked.size)
            bare = bare_rate(tiles, options, asked.device)
            loop = loop_rate(tiles, options, Path(folder) / f"states-{number}", asked.device)
            rounds.append((bare, loop))
    bare, loop = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratios = [loop / bare for bare, loop in rounds]
    print(heading("benchmarks.training"), end="\n\n")
    print("| denoiser | edge, px | precision | bare step, images/s | loop, images/s | loop of bare | rounds | aim |")
    print("|---|---:|---|---:|---:|---:|---|---|")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    ratio = statistics.median(ratios)
    name = f"{asked.denoiser} {asked.preset} | {asked.size} | {asked.precision}"
    print(f"| {name} | {bare:.0f} | {loop:.0f} | {ratio:.2f} | {spread} | {AIM} |")


def bare_rate(tiles: TileSet, options: TrainingOptions, device: str) -> float:
    """Images/s of the step alone, on one batch that lies in memory."""
    space = pixel_space(tiles, options)
    state = TrainingState.new(new_denoiser(tiles, options, space)).on(device)
    first = next(tiles.batches(start=0, end=options.batch_size, batch_size=options.batch_size, seed=0))
    tiles.memory.clear()
    objective = OBJECTIVES[options.objective]
    share = share_of(first, objective, objective.schedule(space), space, state, options, SINGLE_PROCESS)
    n_steps = options.n_images // options.batch_size
    run_steps(state, share, options, device, 2)
    started = time.perf_counter()
    run_steps(state, share, options, device, n_steps)
    return options.n_images / (time.perf_counter() - started)


def run_steps(state: TrainingState, share: NoisyBatch, options: TrainingOptions, device: str, n_steps: int) -> None:
    """Steps on the same batch, with the averaging that belongs to each."""
    for _ in range(n_steps):
        loss = step(state.denoiser, state, share, options.batch_size, options, device, SINGLE_PROCESS)
        state.after(loss, n=options.batch_size, half_life_images=options.ema_half_life_images)


def loop_rate(tiles: TileSet, options: TrainingOptions, folder: Path, device: str) -> float:
    """Images/s of the loop, from tiles that no one has read yet; its first two steps and its last save do not count."""
    marks: list[tuple[float, int]] = []

    @contextmanager
    def clock(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda n: marks.append((time.perf_counter(), n))

    train(tiles, options, folder, device=device, progress=clock)
    began, ended = marks[2][0], marks[-1][0]
    return sum(n for _, n in marks[3:]) / (ended - began)


def write_tiles(folder: Path, *, n: int) -> pa.Table:
    """JPEG files of 64 px, and the rows of a subset that point at them; ten scenes in turn."""
    folder.mkdir()
    rows = []
    for number, picture in enumerate(pictures(n, 64, seed=0)):
        content = jpeg(picture)
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(content)
        rows.append(
            {
                "tile_id": path.name,
                "uri": str(path),
                "kind": "file",
                "content_md5": hashlib.md5(content).hexdigest(),
                "scene": f"scene {number % 10}",
                "stamp": "",
            }
        )
    return pa.Table.from_pylist(rows)


if __name__ == "__main__":
    main()
