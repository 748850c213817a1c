"""Laws of the fixed-filter descriptor: turns and flips change nothing, its histogram is one, its numbers are sane."""

from pathlib import Path

import numpy as np
import pytest
import torch
from simplejpeg import decode_jpeg

from rsprune_dagster.pruning.encoders import descriptor
from rsprune_dagster.pruning.encoders.encoder import Encoder, load_encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("descriptor", image_size_px=128)


def blobs(n_tiles: int, side: int = 64, seed: int = 0) -> list[np.ndarray]:
    """Smooth coloured noise: not white, not flat."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (n_tiles, 3, side // 8, side // 8)))
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255)
    return list(fine.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_quarter_turns_and_flips_change_only_rounding(encoder: Encoder, quarter_turns: int, flipped: bool) -> None:
    tiles = blobs(8)
    turned = [np.rot90(tile[::-1] if flipped else tile, quarter_turns).copy() for tile in tiles]
    assert np.abs(encoder.embed(turned) - encoder.embed(tiles)).max() < 2e-5


def test_vectors_have_the_dimension_and_length_1(encoder: Encoder) -> None:
    vectors = encoder.embed(blobs(5))
    assert vectors.shape == (5, descriptor.DIMENSION)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_flat_tiles_are_finite_and_alike(encoder: Encoder, value: int) -> None:
    vectors = encoder.embed([np.full((side, side, 3), value, np.uint8) for side in (20, 64, 200)])
    assert np.isfinite(vectors).all()
    assert np.abs(vectors - vectors[0]).max() < 1e-4


def test_histogram_sums_to_one_for_any_colours() -> None:
    extremes = torch.tensor(np.random.default_rng(0).choice([0, 255], (6, 3, 64, 64)).astype(np.uint8))
    histogram = descriptor.colour_histogram(descriptor.opponent(extremes))
    assert torch.allclose(histogram.sum(1), torch.ones(6), atol=1e-5)
    assert (histogram >= 0).all()


def test_cosine_filters_ignore_brightness() -> None:
    bank = descriptor.gabor_bank()
    assert bank.sum((1, 2, 3)).abs().max() < 1e-6


def test_a_quarter_turn_permutes_the_bank() -> None:
    pairs = descriptor.gabor_bank().view(descriptor.N_DIRECTIONS, 2, 7, 7)
    turned = torch.rot90(pairs, 1, (2, 3)).roll(descriptor.N_DIRECTIONS // 2, 0)
    assert torch.allclose(turned.abs(), pairs.abs(), atol=1e-6)


def test_brightness_colour_and_texture_all_move_the_vector(encoder: Encoder) -> None:
    (tile,) = blobs(1)
    grey = np.repeat(tile.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    shuffled = np.random.default_rng(0).permutation(tile.reshape(-1, 3)).reshape(tile.shape)
    vectors = encoder.embed([tile, tile // 2, grey, shuffled])
    assert (vectors[1:] @ vectors[0]).max() < 0.95


def test_neighbour_accuracy_on_eurosat_stays(encoder: Encoder, shared_data: Path) -> None:
    """5-NN over 10 scenes, 40 tiles to learn from and 60 to test, 5 draws; measured 0.76; chance 0.10."""
    folders = sorted((shared_data / "eurosat" / "reference").iterdir())
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    vectors = encoder.embed([decode_jpeg(path.read_bytes()) for path in files])
    by_scene = vectors.reshape(len(folders), 200, -1)
    assert np.mean([neighbour_accuracy(by_scene, seed) for seed in range(5)]) > 0.72


def neighbour_accuracy(by_scene: np.ndarray, seed: int) -> float:
    """Of 5 nearest neighbours by cosine, over vectors (scenes, tiles, d)."""
    n_scenes, n_tiles, dimension = by_scene.shape
    drawn = by_scene[:, np.random.default_rng(seed).permutation(n_tiles)]
    known, asked = drawn[:, :40].reshape(-1, dimension), drawn[:, 40:100].reshape(-1, dimension)
    nearest = np.argsort(-(asked @ known.T), axis=1, kind="stable")[:, :5] // 40
    voted = np.array([np.bincount(row).argmax() for row in nearest])
    return float((voted == np.repeat(np.arange(n_scenes), 60)).mean())


def test_patterns_count_brighter_neighbours() -> None:
    """A flat field has none; a bright point is one of eight to its neighbours; a checkerboard is not one arc."""
    point, board = torch.full((5, 5), 0.5), (torch.arange(5)[:, None] + torch.arange(5)).remainder(2) / 2
    point[2, 2] = 1.0
    codes = descriptor.binary_patterns(torch.stack([torch.full((5, 5), 0.5), point, board]))
    assert (codes[0] == 0).all()
    assert codes[1].tolist() == [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    assert codes[2].tolist() == [[9, 0, 9], [0, 9, 0], [9, 0, 9]]


def test_patterns_do_not_change_under_turns_and_flips() -> None:
    luma = descriptor.opponent(torch.from_numpy(np.stack(blobs(6))).permute(0, 3, 1, 2))[:, 0]
    expected = descriptor.pattern_histograms(luma)
    assert torch.equal(descriptor.pattern_histograms(luma.rot90(1, (1, 2))), expected)
    assert torch.equal(descriptor.pattern_histograms(luma.flip(2)), expected)
    assert torch.allclose(expected.view(6, -1, descriptor.N_PATTERNS).sum(2), torch.ones(()))
