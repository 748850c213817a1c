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


def seeded(n: int, side: int = 16) -> torch.Tensor:
    """Maps (n, side, side) of noise in 0 to 1."""
    return torch.from_numpy(np.random.default_rng(n).uniform(size=(n, side, side)).astype(np.float32))


def test_opponent_channels_of_pure_colours() -> None:
    colours = torch.tensor([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    channels = descriptor.opponent(colours[:, :, None, None])[:, :, 0, 0]
    expected = [[1, 0, 0], [1 / 3, 0.5, 0.25], [1 / 3, -0.5, 0.25], [1 / 3, 0, -0.5]]
    assert torch.allclose(channels, torch.tensor(expected))


def test_a_value_is_shared_linearly_by_the_nearest_two_bins() -> None:
    weights = descriptor.soft_bins(torch.tensor([[0.0, 0.3, 0.5, 1.0, 1.7]]), 5)[0].T
    expected = [[1, 0, 0, 0, 0], [0, 0.8, 0.2, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert torch.allclose(weights, torch.tensor(expected), atol=1e-6)


def test_the_histogram_is_that_of_luma_and_of_stretched_chroma_together() -> None:
    """One pixel with a luma of 1/2 and a red-green of 0.05493, whose tanh(10 x) is 1/2: three quarters of the way."""
    pixel = torch.tensor([0.5, np.arctanh(0.5) / 10, 0.0])[None, :, None, None]
    histogram = descriptor.colour_histogram(pixel.float()).view(7, 5, 5)
    assert histogram[3, 3, 2] == pytest.approx(1, abs=1e-5)


def test_filters_are_waves_of_four_pixels_under_a_gaussian_of_1_6() -> None:
    bank = descriptor.gabor_bank().view(4, 2, 7, 7)
    y, x = np.mgrid[-3:4, -3:4]
    window = np.exp(-(x**2 + y**2) / (2 * 1.6**2))
    window /= window.sum()
    for k, (even, odd) in enumerate(bank.numpy()):
        phase = np.pi / 2 * (x * np.cos(np.pi * k / 4) + y * np.sin(np.pi * k / 4))
        np.testing.assert_allclose(odd, window * np.sin(phase), atol=1e-6)
        np.testing.assert_allclose(even, window * (np.cos(phase) - np.sum(window * np.cos(phase))), atol=1e-6)


def test_the_energy_of_a_wave_is_the_same_at_every_phase_and_highest_along_its_direction() -> None:
    x = torch.arange(32.0).expand(32, 32)
    waves = torch.stack([torch.cos(np.pi / 2 * x + phase) for phase in (0.0, 0.7, 1.9)])[:, None]
    inner = descriptor.energies(waves, descriptor.gabor_bank())[:, 0, :, 8:24, 8:24]
    assert inner[:, 0].min().item() == pytest.approx(inner[:, 0].max().item(), rel=0.05)
    assert inner.mean((0, 2, 3)).argmax() == 0
    assert inner[:, 0].mean().item() == pytest.approx(0.5, rel=0.03)


def test_moments_agree_with_their_definitions() -> None:
    a, b = seeded(2)
    pair = torch.stack([a**2, b])
    spread = pair.flatten(1).std(1, correction=0)
    assert torch.allclose(descriptor.spread_of(pair), spread, atol=1e-5)
    third = ((pair - pair.mean((1, 2), keepdim=True)) ** 3).mean((1, 2))
    assert torch.allclose(descriptor.skewness(pair, 0.1), third / (spread + 0.1) ** 3, atol=1e-5)
    spike = torch.zeros(1, 16, 16)
    spike[0, 0, 0] = 9.0
    assert descriptor.skewness(spike, 0.01).item() == 3 and descriptor.skewness(-spike, 0.01).item() == -3
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    expected = covariance / ((a.std(correction=0) + 0.01) * (b.std(correction=0) + 0.01))
    assert descriptor.correlation(a[None], b[None]).item() == pytest.approx(expected.item(), abs=1e-5)


def test_anisotropy_is_the_fourier_modulus_of_the_shares_of_four_directions() -> None:
    energy = torch.from_numpy(np.random.default_rng(5).uniform(size=(1, 4, 3, 3)))
    for values, floor, found in (
        (energy.mean((2, 3)), 0.001, descriptor.anisotropy(energy)[:, :2]),
        (energy, 0.004, descriptor.uneven(energy, 0.004)),
    ):
        shares = (values / (values.sum(1, keepdim=True) + floor)).numpy()
        assert np.allclose(found, np.abs(np.fft.fft(shares, axis=1))[:, 1:3], atol=1e-5)
    assert torch.allclose(descriptor.anisotropy(energy)[:, 2:], descriptor.uneven(energy, 0.004).mean((2, 3)))


def test_the_parts_of_a_vector_have_their_weights(encoder: Encoder) -> None:
    """A histogram whose root is taken has length 1: one of colours, and one of patterns on each of three levels."""
    channels = descriptor.opponent(torch.from_numpy(np.stack(blobs(3))).permute(0, 3, 1, 2))
    features = descriptor.Descriptor().describe(channels)
    assert torch.allclose(features[:, :175].norm(dim=1), torch.tensor(5.0), atol=1e-4)
    assert torch.allclose(features[:, 175:205].norm(dim=1), torch.tensor(4 * 3**0.5), atol=1e-4)


STATISTICS = {
    "mean": [0.464, -0.006, -0.007],
    "quantiles": [0.25, 0.482, 0.656, -0.181, -0.02, 0.244, -0.141, -0.021, 0.16],
    "log_spread": [-1.699, -1.638, -1.8],
    "skewness": [-0.236, 0.326, 0.356],
    "correlation": [0.009, -0.023, -0.041],
    "strength_0": [-3.985, -3.925],
    "shape_0": [0.345, 0.059, 0.273],
    "anisotropy_0": [0.139, 0.053, 0.23, 0.214],
    "second_order_0": [-2.735, -2.856, -3.038],
    "strength_1": [-4.001, -4.178, -3.923, -3.923, -3.781, -3.672],
    "shape_1": [0.405, -0.164, 0.275, 0.45],
    "anisotropy_1": [0.302, 0.065, 0.39, 0.172],
    "second_order_1": [-2.584, -2.711],
    "strength_2": [-3.917, -3.758, -3.944, -3.847, -3.519, -3.848],
    "shape_2": [0.383, -0.128, -0.11, 0.226],
    "anisotropy_2": [0.305, 0.028, 0.438, 0.215],
    "second_order_2": [-2.269],
    "strength_3": [-3.824, -3.754],
    "shape_3": [0.359, 0.367, -0.498, 0.202],
    "anisotropy_3": [0.311, 0.179, 0.414, 0.273],
}
"""The numbers of a tile that a formula makes of integers: vectors in a cache have these."""


def test_the_numbers_of_a_tile_stay() -> None:
    y, x, c = np.mgrid[:64, :64, :3]
    tile = (x * y * (c + 1) // 8 + 3 * x + 20 * ((x // 4 + y // 3) % 2)) % 256
    channels = descriptor.opponent(torch.from_numpy(tile.astype(np.uint8)[None]).permute(0, 3, 1, 2))
    blocks = {name: block[0].tolist() for name, block in descriptor.Descriptor().statistics(channels)}
    assert blocks.pop("second_order_3") == []
    assert list(blocks) == list(STATISTICS)
    for name, expected in STATISTICS.items():
        assert blocks[name] == pytest.approx(expected, abs=0.003), name
