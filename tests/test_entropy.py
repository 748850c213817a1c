"""Laws of the entropy kernels and of the threshold."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rsprune_dagster.pruning.entropy import (
    patch_histograms,
    threshold_from_quantile,
    threshold_from_reference,
    thumbnail,
    tile_entropy,
)

ALL_VALID = np.zeros((0, 0), bool)
TILES = arrays(np.uint8, st.tuples(st.integers(8, 40), st.integers(8, 40)))


def entropy_by_definition(values: np.ndarray) -> float:
    """-sum p log2 p in plain numpy: the reference that the kernel must agree with."""
    counts = np.bincount(values.ravel(), minlength=256).astype(float)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


@given(TILES)
def test_agrees_with_the_definition(tile: np.ndarray) -> None:
    assert tile_entropy(tile, ALL_VALID, 1)[0] == pytest.approx(entropy_by_definition(tile), abs=1e-9)


@given(TILES, st.randoms(use_true_random=False))
def test_shuffled_pixels_keep_their_entropy(tile: np.ndarray, random: object) -> None:
    shuffled = np.random.default_rng(random.randint(0, 2**32)).permutation(tile.ravel()).reshape(tile.shape)
    assert tile_entropy(shuffled, ALL_VALID, 4)[0] == tile_entropy(tile, ALL_VALID, 4)[0]


@given(TILES, st.permutations(range(256)))
def test_renamed_grey_levels_keep_their_entropy(tile: np.ndarray, names: list[int]) -> None:
    renamed = np.array(names, np.uint8)[tile]
    assert tile_entropy(renamed, ALL_VALID, 3) == pytest.approx(tile_entropy(tile, ALL_VALID, 3), abs=1e-9)


@given(TILES)
def test_patches_never_tell_more_than_the_whole(tile: np.ndarray) -> None:
    """Entropy is concave: the mean over equal patches is at most that of the mixture."""
    square = np.ascontiguousarray(np.resize(tile, (32, 32)))
    whole, patches = tile_entropy(square, ALL_VALID, 4)
    assert 0 <= patches <= whole + 1e-9 <= 8 + 2e-9


@given(TILES)
def test_hidden_pixels_do_not_count(tile: np.ndarray) -> None:
    valid = np.zeros(tile.shape, bool)
    valid[: tile.shape[0] // 2] = True
    scribbled = np.where(valid, tile, 255 - tile)
    assert tile_entropy(tile, valid, 2) == tile_entropy(scribbled, valid, 2)
    assert tile_entropy(tile, valid, 1)[0] == pytest.approx(entropy_by_definition(tile[valid]), abs=1e-9)


def test_extremes() -> None:
    every_level = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert tile_entropy(every_level, ALL_VALID, 1) == (8.0, 8.0)
    assert tile_entropy(np.full((16, 16), 7, np.uint8), ALL_VALID, 4) == (0.0, 0.0)
    assert tile_entropy(every_level, np.zeros((16, 16), bool), 4) == (0.0, 0.0)


def test_counts_beyond_the_table_are_computed() -> None:
    large = np.tile(np.arange(256, dtype=np.uint8), (300, 2))
    assert tile_entropy(large, ALL_VALID, 1)[0] == pytest.approx(8.0, abs=1e-9)
    uneven = np.random.default_rng(0).binomial(60, 0.3, (300, 300)).astype(np.uint8)
    assert tile_entropy(uneven, ALL_VALID, 1)[0] == pytest.approx(entropy_by_definition(uneven), abs=1e-9)


def test_the_second_number_is_the_mean_over_patches_and_one_without_valid_pixels_counts_as_zero() -> None:
    tile = np.random.default_rng(1).integers(0, 9, (20, 27)).astype(np.uint8)
    bounds = [(0, 6, 13, 20), (0, 9, 18, 27)]
    patches = [
        tile[bounds[0][i] : bounds[0][i + 1], bounds[1][j] : bounds[1][j + 1]] for i in range(3) for j in range(3)
    ]
    each = [entropy_by_definition(patch) for patch in patches]
    assert tile_entropy(tile, ALL_VALID, 3)[1] == pytest.approx(np.mean(each), abs=1e-9)
    valid = np.ones(tile.shape, bool)
    valid[:6, :9] = False
    assert tile_entropy(tile, valid, 3)[1] == pytest.approx(sum(each[1:]) / 9, abs=1e-9)


@given(TILES, st.integers(1, 6))
def test_patches_partition_the_tile(tile: np.ndarray, grid: int) -> None:
    counts = patch_histograms(tile, ALL_VALID, grid)
    assert counts.sum() == tile.size
    assert (counts.sum(axis=0) == np.bincount(tile.ravel(), minlength=256)).all()


@settings(max_examples=30)
@given(arrays(np.uint8, (16, 16)), st.integers(1, 5))
def test_thumbnail_of_an_enlarged_tile_is_the_tile(tile: np.ndarray, factor: int) -> None:
    assert (thumbnail(np.ascontiguousarray(tile.repeat(factor, 0).repeat(factor, 1))) == tile).all()


@pytest.mark.parametrize("shape", [(40, 53), (16, 24), (9, 16), (1, 5)])
def test_thumbnail_pixels_are_means_over_their_areas_rounded(shape: tuple[int, int]) -> None:
    tile = np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)

    def spans(length: int) -> list[slice]:
        ends = [place * length // 16 for place in range(17)]
        return [slice(start, max(start + 1, end)) for start, end in pairwise(ends)]

    expected = [[np.floor(tile[rows, columns].mean() + 0.5) for columns in spans(shape[1])] for rows in spans(shape[0])]
    assert np.array_equal(thumbnail(tile), expected)


def test_threshold_costs_no_scene_more_than_asked() -> None:
    rng = np.random.default_rng(0)
    scenes = {"sea": rng.uniform(1, 4, 400), "city": rng.uniform(5, 8, 400)}
    threshold = threshold_from_reference(scenes, max_scene_loss=0.05, max_threshold_bits=8)
    losses = {name: float(np.mean(bits < threshold.bits)) for name, bits in scenes.items()}
    assert max(losses.values()) <= 0.05
    assert losses["sea"] > 0.04
    assert "sea" in threshold.origin


def test_a_rich_foreign_reference_cannot_raise_the_threshold_above_the_cap() -> None:
    threshold = threshold_from_reference({"airport": np.full(50, 6.5)}, max_scene_loss=0.02, max_threshold_bits=2.0)
    assert threshold.bits == 2.0
    assert "6.5" in threshold.origin


def test_thresholds_are_entropies_that_occur() -> None:
    scenes = {"b": np.array([4.0, 1.0, 3.0, 2.0]), "a": np.array([2.0, 2.0, 9.0, 9.0]), "c": np.array([5.0, 5.0])}
    half, none = (
        threshold_from_reference(scenes, max_scene_loss=loss, max_threshold_bits=2.0).bits for loss in (0.5, 0.0)
    )
    assert (half, none) == (2.0, 1.0)
    assert "'a' decides" in threshold_from_reference(scenes, max_scene_loss=0.5, max_threshold_bits=2.0).origin
    assert threshold_from_quantile(np.arange(10.0), quantile=0.25).bits == 2.0


@given(arrays(np.float32, st.integers(1, 200), elements=st.floats(0, 8, width=32)), st.floats(0, 1))
def test_quantile_drops_at_most_its_share(bits: np.ndarray, quantile: float) -> None:
    assert np.mean(bits < threshold_from_quantile(bits, quantile=quantile).bits) <= quantile
