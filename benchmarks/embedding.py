"""The embedding stream (JPEG bytes to unit vectors) against the bare model on tensors already in memory.

    .venv/bin/python benchmarks/embedding.py [--data ../shared/data] [--tiles 2048] [--rounds 5]

Both sides run in one process on the same tiles and batches, in alternating rounds after a warm-up; the table gives the
median rate of each and the median of the rounds' ratios, with the range. The bare model is the trunk alone: normalised
float32 tiles, channels last, in, pooled features out; nothing is decoded, resized, normalised or scaled to length 1.
Of a network with the descriptor both models run, one after the other: they are what the vectors are made of. What the
descriptor costs shows against the line of the network alone.
"""

import argparse
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from simplejpeg import decode_jpeg, encode_jpeg

from rsprune_dagster.config.params import load
from rsprune_dagster.pruning.encoders.backbones import BACKBONES
from rsprune_dagster.pruning.encoders.embedding import embed_stream
from rsprune_dagster.pruning.encoders.encoder import FORWARD_TILES, Encoder, TileEncoder, load_encoder
from rsprune_dagster.pruning.encoders.tile_encoder import CombinedEncoder, load_tile_encoder

AIM = 0.9
PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
MOBILENET = "mobilenet_v2_tfqat_rot180-4ec30254.pth"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--tiles", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    files, origin = jpegs(options.data / "eurosat" / "pool.tar", options.tiles)
    print(heading(origin))
    for encoder in encoders(options.data / "weights" / MOBILENET):
        print(row(encoder, *compare(encoder, files, options.rounds)), flush=True)


def heading(origin: str) -> str:
    """What was run, where and when, and the head of the table."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {processor()}"
    command = "python " + " ".join(["benchmarks/embedding.py", *sys.argv[1:]])
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine}; {origin}\n\n"
        "| encoder | px | precision | bare model, tiles/s | stream, tiles/s | ratio (range) | aim |\n"
        "|---|---|---|---|---|---|---|"
    )


def row(encoder: TileEncoder, bare: list[float], stream: list[float]) -> str:
    """A line of the table."""
    ratios = [s / b for s, b in zip(stream, bare, strict=True)]
    ratio = statistics.median(ratios)
    verdict = "reached" if ratio >= AIM else "missed"
    side, precision = encoder.identity["image_size_px"], encoder.identity["precision"]
    return (
        f"| {encoder.name} | {side} | {precision} | {statistics.median(bare):,.0f} "
        f"| {statistics.median(stream):,.0f} | {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {AIM} {verdict} |"
    )


def encoders(weights: Path) -> Iterator[TileEncoder]:
    """The encoders to measure, one at a time."""
    with tempfile.TemporaryDirectory() as folder:
        if not weights.exists():
            weights = Path(folder) / "random.safetensors"
            save_file(BACKBONES["mobilenet_v2"].build().state_dict(), weights)
        for side in (64, 128):
            yield load_encoder("mobilenet_v2", weights=str(weights), image_size_px=side, device="cpu")
        given = {"backbone": "mobilenet_v2", "weights": str(weights)}
        yield load_tile_encoder(load(PARAMS).embedding.model_copy(update=given), "cpu")
    yield load_encoder("descriptor", image_size_px=64, device="cpu")


def compare(encoder: TileEncoder, files: list[bytes], rounds: int) -> tuple[list[float], list[float]]:
    """Tiles a second of the bare model and of the stream, per round."""
    tensors = [prepared(encoder, batch) for batch in batches(files)]
    measure(lambda: bare_model(encoder, tensors[:4]), len(files))
    measure(lambda: stream(encoder, files[: 4 * FORWARD_TILES]), len(files))
    bare, streamed = [], []
    for _ in range(rounds):
        bare.append(measure(lambda: bare_model(encoder, tensors), len(files)))
        streamed.append(measure(lambda: stream(encoder, files), len(files)))
    return bare, streamed


def prepared(encoder: TileEncoder, files: list[bytes]) -> list[torch.Tensor]:
    """A batch as the bare models take it: resized and normalised, for each."""
    sizes = encoder.prepare([decode_jpeg(file) for file in files])
    return [part.normalise(seen) for part, seen in zip(parts(encoder), sizes, strict=True)]


def parts(encoder: TileEncoder) -> tuple[Encoder, ...]:
    """The models that an encoder is made of."""
    if isinstance(encoder, CombinedEncoder):
        return encoder.network, encoder.texture
    assert isinstance(encoder, Encoder)
    return (encoder,)


@torch.inference_mode()
def bare_model(encoder: TileEncoder, tensors: list[list[torch.Tensor]]) -> None:
    """One forward pass after the other, nothing else."""
    for batch in tensors:
        for part, seen in zip(parts(encoder), batch, strict=True):
            part.model(seen)


def stream(encoder: TileEncoder, files: list[bytes]) -> None:
    """The product's own way from bytes to vectors."""
    decoded = ([decode_jpeg(file) for file in batch] for batch in batches(files))
    for vectors in embed_stream(decoded, encoder):
        assert len(vectors) == FORWARD_TILES


def measure(work: Callable[[], None], n_tiles: int) -> float:
    """Tiles a second."""
    started = time.perf_counter()
    work()
    return n_tiles / (time.perf_counter() - started)


def batches(files: list[bytes]) -> Iterator[list[bytes]]:
    """Full batches; a rest is left out."""
    for start in range(0, len(files) - FORWARD_TILES + 1, FORWARD_TILES):
        yield files[start : start + FORWARD_TILES]


def jpegs(tar: Path, n_tiles: int) -> tuple[list[bytes], str]:
    """Encoded tiles, a multiple of a batch, from the EuroSAT pool, or synthetic ones where it is absent."""
    n_tiles -= n_tiles % FORWARD_TILES
    if not tar.exists():
        return [synthetic_jpeg(seed) for seed in range(n_tiles)], "synthetic 64 px JPEGs"
    with tarfile.open(tar) as archive:
        members = (archive.extractfile(member) for member in archive if member.isfile())
        found = [file.read() for file, _ in zip(members, range(n_tiles), strict=False) if file]
    return found, f"{len(found):,} JPEGs of 64 px from EuroSAT's pool.tar"


def synthetic_jpeg(seed: int) -> bytes:
    """Coloured noise of 8 px grain."""
    grain = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return bytes(encode_jpeg(np.ascontiguousarray(grain.repeat(8, 0).repeat(8, 1)), quality=90))


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


if __name__ == "__main__":
    main()
