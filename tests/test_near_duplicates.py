"""Copies are found in every turn and through re-encoding; tiles that are only alike, and smooth ones, stay."""

import io
import tracemalloc
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from rsprune_dagster.pruning import thumbnail_index
from rsprune_dagster.pruning.near_duplicates import near_duplicates
from rsprune_dagster.pruning.thumbnail_detail import tones
from rsprune_dagster.pruning.thumbnail_index import turn_free
from rsprune_dagster.stages.estimate import RESIDENT_BYTES_PER_TILE

Grey = NDArray[np.uint8]


@lru_cache
def textured(n: int, *, seed: int, size: int = 128) -> Grey:
    """(n, size, size) different pictures with detail at several scales, over a gradient that all share."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, size, size))
    picture = sum(gaussian_filter(noise, (0, s, s)) * s * weight for s, weight in ((4, 60), (10, 60), (24, 40)))
    return np.clip(110 + picture + np.linspace(-30, 30, size), 0, 255).astype(np.uint8)


def thumbnails(pictures: NDArray[np.generic]) -> Grey:
    n, size = pictures.shape[:2]
    means = pictures.astype(np.float64).reshape(n, 16, size // 16, 16, size // 16).mean((2, 4))
    return np.floor(means + 0.5).astype(np.uint8).reshape(n, 256)


def rounded(picture: NDArray[np.floating]) -> Grey:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def jpeg(picture: Grey, quality: int) -> Grey:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


CHANGES: dict[str, Callable[[Grey], Grey]] = {
    "turned": np.rot90,
    "flipped": lambda p: p[:, ::-1],
    "transposed": lambda p: p.T,
    "JPEG 50": lambda p: jpeg(p, 50),
    "turned, then JPEG 75": lambda p: jpeg(np.ascontiguousarray(np.rot90(p, 3)), 75),
    "brighter": lambda p: rounded(p * 1.05),
    "darker": lambda p: rounded(p * 0.95),
    "noisy": lambda p: rounded(p + np.random.default_rng(5).normal(0, 5, p.shape)),
    "moved by 2 px": lambda p: rounded(shift(p.astype(float), (0, 2), mode="reflect")),
    "flipped and moved": lambda p: rounded(shift(p[::-1].astype(float), (-2, 2), mode="reflect")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_follows_its_original(name: str) -> None:
    pictures = textured(40, seed=1)
    copies = np.stack([CHANGES[name](picture) for picture in pictures])
    leader = near_duplicates(np.concatenate([thumbnails(pictures), thumbnails(copies)]))
    np.testing.assert_array_equal(leader[:40], np.arange(40))
    assert (leader[40:] == np.arange(40)).mean() >= 0.95


def test_different_tiles_lead_themselves() -> None:
    np.testing.assert_array_equal(near_duplicates(thumbnails(textured(200, seed=2))), np.arange(200))


def test_smooth_and_blank_tiles_are_never_copies() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:64, :64] / 64
    slopes = rng.normal(0, 40, (200, 2, 1, 1))
    gradients = 110 + slopes[:, 0] * x + slopes[:, 1] * y
    sea = 60 + rng.normal(0, 2, (200, 64, 64))
    glint = 80 + rng.uniform(20, 40, (200, 1, 1)) * (x - 0.5) ** 2
    blank = np.full((50, 64, 64), 30.0)
    tiles = thumbnails(rounded(np.concatenate([gradients, sea, glint, blank])))
    np.testing.assert_array_equal(near_duplicates(tiles), np.arange(650))


def test_two_sides_of_one_edge_are_not_enough() -> None:
    rng = np.random.default_rng(4)
    fields = (
        100
        + 30 * (np.mgrid[:128, :128][1] > 64)
        + np.stack([gaussian_filter(rng.normal(size=(128, 128)), 6) * 250 for _ in range(100)])
    )
    np.testing.assert_array_equal(near_duplicates(thumbnails(rounded(fields))), np.arange(100))


def test_a_leader_leads_itself_comes_first_and_owns_a_crowd_larger_than_the_search() -> None:
    original = textured(1, seed=6)[0]
    rng = np.random.default_rng(7)
    crowd = np.stack([rounded(np.rot90(original, i) + rng.normal(0, 4, original.shape)) for i in range(150)])
    leader = near_duplicates(np.concatenate([thumbnails(textured(30, seed=8)), thumbnails(crowd)]), n_neighbours=8)
    np.testing.assert_array_equal(leader[leader], leader)
    assert (leader <= np.arange(180)).all()
    np.testing.assert_array_equal(leader[30:], np.full(150, 30))


def test_many_equal_thumbnails_have_one_leader() -> None:
    thumbnail = thumbnails(textured(1, seed=9)).reshape(16, 16)
    equal = np.stack([np.rot90(thumbnail if i % 2 else thumbnail.T, i).ravel() for i in range(400)])
    np.testing.assert_array_equal(near_duplicates(equal), np.zeros(400, np.int64))


def test_embeddings_that_disagree_forbid_a_pair() -> None:
    pictures = thumbnails(textured(20, seed=10))
    both = np.concatenate([pictures, pictures])
    vectors = np.random.default_rng(11).normal(size=(20, 32)).astype(np.float32)
    agreeing, disagreeing = np.concatenate([vectors, vectors]), np.concatenate([vectors, -vectors])
    np.testing.assert_array_equal(near_duplicates(both, embeddings=agreeing)[20:], np.arange(20))
    np.testing.assert_array_equal(near_duplicates(both, embeddings=disagreeing), np.arange(40))


def test_a_lower_threshold_never_finds_fewer() -> None:
    pictures = textured(100, seed=12)
    copies = np.stack([jpeg(p, 10 + i % 40) for i, p in enumerate(pictures)])
    tiles = np.concatenate([thumbnails(pictures), thumbnails(copies)])
    found = [int((near_duplicates(tiles, correlation=c) != np.arange(200)).sum()) for c in (0.999, 0.97, 0.9)]
    assert found == sorted(found) and found[0] < found[-1]


def test_the_description_in_the_index_knows_no_turn() -> None:
    tiles = thumbnails(textured(20, seed=13)).reshape(-1, 16, 16)
    expected = turn_free(tiles.reshape(-1, 256))
    for turned in (np.rot90(tiles, 1, (1, 2)), tiles[:, ::-1], tiles.transpose(0, 2, 1)):
        np.testing.assert_allclose(turn_free(np.ascontiguousarray(turned).reshape(-1, 256)), expected, atol=1e-6)


def test_detail_is_what_a_surface_leaves() -> None:
    y, x = np.mgrid[:16, :16]
    surface = (20 + 3 * x + 2 * y + 0.25 * x * y).astype(np.uint8).ravel()
    checks = (100 + 10 * (-1.0) ** (x + y)).astype(np.uint8).ravel()
    assert tones(np.stack([surface, checks]))[1] == pytest.approx([0.29, 10], abs=0.1)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_tiles(n: int) -> None:
    np.testing.assert_array_equal(near_duplicates(thumbnails(textured(2, seed=14))[:n]), np.arange(n))


def test_workers_do_not_show() -> None:
    pictures = textured(60, seed=15)
    tiles = thumbnails(np.concatenate([pictures, np.stack([jpeg(p, 60) for p in pictures])]))
    np.testing.assert_array_equal(near_duplicates(tiles), near_duplicates(tiles, workers=3))


def test_the_forecast_of_memory_is_what_the_search_holds_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what compiled code allocates is traced: that is the index, a description a tile."""
    monkeypatch.setattr(thumbnail_index, "BLOCK", 64)  # so that what a block holds is little beside the tiles
    coarse = np.random.default_rng(0).integers(60, 190, (3000, 4, 4))
    pictures = np.kron(coarse, np.ones((1, 4, 4))).astype(np.uint8).reshape(-1, 256)
    near_duplicates(pictures[:300])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    near_duplicates(pictures)
    traced = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    held = (pictures.nbytes + turn_free(pictures).nbytes + traced) / len(pictures)
    assert 0.7 * RESIDENT_BYTES_PER_TILE < held <= RESIDENT_BYTES_PER_TILE
