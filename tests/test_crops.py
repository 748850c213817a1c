"""The data of super-resolution: how low-resolution images come about, and which crops are trained on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusion_runs import OPTIONS, write_tiles
from PIL import Image

from rsprune_dagster.diffusion.objective import to_tensor
from rsprune_dagster.downstream.crops import CropSet, crop_set
from rsprune_dagster.downstream.degradation import DEGRADATIONS, consistent, enlarged, reduced
from rsprune_dagster.utils.errors import UsageError


def noise(edge: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)


def crops(folder: Path, *, n: int = 24, edge_px: int = 8, scale: int = 4, degradation: str = "bicubic") -> CropSet:
    table = write_tiles(folder, n, patchy=True)
    sides = pa.array([20] * n, pa.int32())
    table = table.append_column("width_px", sides).append_column("height_px", sides)
    return crop_set(table, OPTIONS, edge_px=edge_px, scale=scale, degradation=degradation, on_changed="fail")


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_is_pillow_s_and_torch_agrees(scale: int) -> None:
    high = noise(48)
    low = DEGRADATIONS["bicubic"](high, scale, np.random.default_rng(0))
    wanted = Image.fromarray(high).resize((48 // scale, 48 // scale), Image.Resampling.BICUBIC)
    assert np.array_equal(low, np.asarray(wanted))
    again = (reduced(to_tensor(high[None]), scale)[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(np.clip(again, 0, 255) - low).max() < 1.5  # Pillow rounds between its two passes
    big = (enlarged(to_tensor(low[None]), scale)[0].permute(1, 2, 0).numpy() + 1) * 127.5
    pillow = Image.fromarray(low).resize((48, 48), Image.Resampling.BICUBIC)
    assert np.abs(np.clip(big, 0, 255) - np.asarray(pillow)).max() < 1.5


def test_the_realistic_chain_blurs_and_adds_noise_by_its_random_numbers() -> None:
    realistic = DEGRADATIONS["realistic"]
    flat = np.full((64, 64, 3), 128, np.uint8)
    spread = [realistic(flat, 4, np.random.default_rng(seed)).std() for seed in range(20)]
    assert min(spread) < 1.5 and max(spread) > 2.5
    edges = np.zeros((64, 64, 3), np.uint8)
    edges[:, 32:] = 255
    sharpest = np.abs(np.diff(DEGRADATIONS["bicubic"](edges, 4, np.random.default_rng(0)).astype(int), axis=1)).max()
    steps = [
        np.abs(np.diff(realistic(edges, 4, np.random.default_rng(seed)).astype(int), axis=1)).max() for seed in range(9)
    ]
    assert np.median(steps) < sharpest
    again = [realistic(noise(64), 4, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(again[0], again[1]) and not np.array_equal(again[0], again[2])


def test_back_projection_brings_the_reduction_to_the_input() -> None:
    rng = torch.Generator().manual_seed(0)
    low, high = (torch.rand((2, 3, edge, edge), generator=rng) * 2 - 1 for edge in (8, 32))
    before, after = ((reduced(each, 4) - low).abs().mean() for each in (high, consistent(high, low, 4, 6)))
    assert after < before / 10


def test_a_crop_depends_on_its_number_and_seed_alone(tmp_path: Path) -> None:
    tiles = crops(tmp_path)
    whole = next(tiles.batches(start=0, end=16, batch_size=16, seed=3))
    parts = list(tiles.batches(start=8, end=16, batch_size=4, seed=3))
    assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images[8:])
    assert whole.condition is not None and whole.condition.planes.shape == (16, 3, 8, 8)
    given = np.concatenate([part.condition.planes for part in parts if part.condition])
    assert np.array_equal(given, whole.condition.planes[8:])
    other = next(tiles.batches(start=0, end=16, batch_size=16, seed=4))
    assert not np.array_equal(other.images, whole.images)


def test_the_condition_is_the_enlarged_reduction_of_the_crop(tmp_path: Path) -> None:
    batch = next(crops(tmp_path).batches(start=0, end=4, batch_size=4, seed=0))
    assert batch.condition is not None and batch.condition.is_image
    for image, given in zip(batch.images, batch.condition.planes, strict=True):
        low = DEGRADATIONS["bicubic"](image, 4, np.random.default_rng(0))
        wanted = enlarged(to_tensor(low[None]), 4).clamp(-1, 1)[0].numpy()
        assert np.array_equal(given, wanted)


def test_crops_come_from_everywhere_in_a_tile_and_in_all_orientations(tmp_path: Path) -> None:
    tile = np.arange(20 * 20, dtype=np.uint16).reshape(20, 20)
    image = np.stack([tile // 20 * 10, tile % 20 * 10, tile * 0], axis=-1).astype(np.uint8)
    tiles = crops(tmp_path, n=1)
    tiles.memory[0] = image
    found = [tiles.pair(0, (0, number))[0] for number in range(200)]
    corners = {(int(crop[..., 0].min()) // 10, int(crop[..., 1].min()) // 10) for crop in found}
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(13))
    rows = [crop[..., 0].astype(int) for crop in found]
    directions = {(int(np.sign(row[-1, 0] - row[0, 0])), int(np.sign(row[0, -1] - row[0, 0]))) for row in rows}
    assert directions == {(1, 0), (-1, 0), (0, 1), (0, -1)}


def test_trainings_differ_by_degradation_and_scale(tmp_path: Path) -> None:
    prints = {crops(tmp_path, scale=scale, degradation=name).fingerprint() for scale in (2, 4) for name in DEGRADATIONS}
    assert len(prints) == 4


def test_tiles_smaller_than_a_crop_are_left_out(tmp_path: Path) -> None:
    table = write_tiles(tmp_path, 4)
    table = table.append_column("width_px", pa.array([20, 7, 20, 20], pa.int32()))
    table = table.append_column("height_px", pa.array([20, 20, 7, 8], pa.int32()))
    made = crop_set(table, OPTIONS, edge_px=8, scale=4, degradation="bicubic", on_changed="fail")
    assert made.table.column("tile_id").to_pylist() == ["000.png", "003.png"]
    none = crop_set(table, OPTIONS, edge_px=24, scale=4, degradation="bicubic", on_changed="fail")
    assert len(none) == 0
    with pytest.raises(UsageError, match=r"scale 3 does not divide the 32 px.*train a foundation of 24 px"):
        crop_set(table, OPTIONS, edge_px=32, scale=3, degradation="bicubic", on_changed="fail")
