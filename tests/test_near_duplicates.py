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
from rsprune_dagster.pruning.near_duplicates import _explained, _shift_columns, compared, near_duplicates
from rsprune_dagster.pruning.thumbnail_detail import tones, tones_agree
from rsprune_dagster.pruning.thumbnail_index import candidate_pairs, turn_free
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


def are_copies(one: Grey, other: Grey, correlation: float = 0.94) -> bool:
    """Whether two thumbnails are near-duplicates; both orders agree."""
    both = np.stack([one.ravel(), other.ravel()])
    evidence = both, *tones(both), np.zeros((0, 0), np.float32), correlation, 0.0
    there, back = compared(np.array([[0, 1], [1, 0]]), evidence, 1)
    assert there == back
    return bool(there)


def test_each_of_two_copies_explains_the_other() -> None:
    """A bright point explains its own second derivative; a point with that added does not explain the point."""
    point, mixed = np.full((2, 16, 16), 100, np.uint8)
    point[5, 8] = 200
    mixed[4:7, 7:10] = [[145, 100, 55], [100, 160, 100], [55, 100, 145]]
    assert _explained(point.ravel().astype(float), mixed.ravel().astype(float)) > 0.99
    assert _explained(mixed.ravel().astype(float), point.ravel().astype(float)) < 0.8
    assert not are_copies(point, mixed)
    assert are_copies(point, point) and are_copies(mixed, mixed)


@pytest.mark.parametrize(("degrees", "copies"), [(55, True), (65, False)])
def test_tiles_whose_detail_correlates_by_less_than_a_half_before_a_shift_are_no_copies(
    degrees: float, copies: bool
) -> None:
    """A plane wave explains itself at every phase; half a turn of the tile turns the phase, here to the opposite."""
    y, x = np.mgrid[:16, :16] - 7.5
    lag = np.deg2rad(degrees)
    one, other = (rounded(110 + 50 * np.cos(1.2 * x + 0.5 * y + np.pi / 2 + s * lag / 2)) for s in (-1, 1))
    assert _explained(one.ravel().astype(float), other.ravel().astype(float)) > 0.97
    assert are_copies(one, other) is copies


def test_thumbnails_with_one_key_are_equal_only_if_their_pixels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = thumbnails(textured(3, seed=16))
    both = np.concatenate([tiles, tiles[:1].reshape(16, 16).T.reshape(1, 256)])
    assert thumbnail_index.first_equal_row(both, np.arange(4)).tolist() == [0, 1, 2, 0]
    monkeypatch.setattr(thumbnail_index, "_keys", lambda thumbnails, rows: np.zeros(len(rows), np.uint64))
    assert thumbnail_index.first_equal_row(both, np.arange(4)).tolist() == [0, 1, 2, 0]


def test_shifts_are_undone_by_central_differences_up_to_the_second_order() -> None:
    picture = np.random.default_rng(0).normal(size=(16, 16))

    def at(y: int, x: int) -> NDArray[np.float64]:
        return picture[1 + y : 15 + y, 1 + x : 15 + x].ravel()

    expected = [
        at(0, 0),
        at(0, 1) - at(0, -1),
        at(1, 0) - at(-1, 0),
        at(0, 1) - 2 * at(0, 0) + at(0, -1),
        at(1, 0) - 2 * at(0, 0) + at(-1, 0),
        at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1),
    ]
    np.testing.assert_allclose(_shift_columns(picture.ravel()), expected)


def test_what_is_explained_is_the_multiple_correlation_beyond_a_quadratic_surface() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 256))
    y, x = np.mgrid[:14, :14]
    surface = np.stack([np.ones((14, 14)), x, y, x * x, x * y, y * y]).reshape(6, -1)
    columns = np.concatenate([surface, _shift_columns(one)]).T
    target = other.reshape(16, 16)[1:-1, 1:-1].ravel()

    def left(basis: NDArray[np.float64]) -> float:
        return float(np.sum((target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0]) ** 2))

    assert _explained(one, other) == pytest.approx(np.sqrt(1 - left(columns) / left(surface.T.astype(float))))
    assert _explained(one, np.full(256, 7.0)) == 0


def faint(detail: float) -> Grey:
    """A random thumbnail whose detail is nearly `detail` grey levels."""
    noise = np.random.default_rng(2).normal(size=(16, 16))
    found = [rounded(100 + noise * scale) for scale in np.linspace(0.1, 4, 800)]
    return found[int(np.abs(tones(np.stack(found).reshape(-1, 256))[1] - detail).argmin())]


@pytest.mark.parametrize(("detail", "n_leaders"), [(1.4, 2), (1.6, 1)])
def test_thumbnails_need_a_detail_of_a_grey_level_and_a_half(detail: float, n_leaders: int) -> None:
    assert len(set(near_duplicates(np.stack([faint(detail).ravel()] * 2)))) == n_leaders


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ((100, 10), (92.1, 10), True),
        ((100, 10), (91.9, 10), False),
        ((10, 10), (12.9, 10), True),
        ((10, 10), (13.1, 10), False),
        ((100, 10), (100, 12.4), True),
        ((100, 10), (100, 12.6), False),
    ],
)
def test_tones_differ_by_8_percent_or_3_levels_of_brightness_and_a_quarter_of_contrast_at_most(
    one: tuple[float, float], other: tuple[float, float], agree: bool
) -> None:
    assert tones_agree(*one, *other) is agree
    assert tones_agree(*other, *one) is agree


@pytest.mark.parametrize(("correlation", "copies"), [(0.93, False), (0.95, True)])
def test_two_tiles_are_copies_from_a_correlation_of_094(correlation: float, copies: bool) -> None:
    """Noise that is added to a picture leaves it this correlation with the picture."""
    picture, noise = np.random.default_rng(3).normal(size=(2, 40, 256))
    share = np.sqrt(1 - correlation**2)
    tiles = rounded(100 + 20 * np.concatenate([picture, correlation * picture + share * noise]))
    evidence = tiles, *tones(tiles), np.zeros((0, 0), np.float32), 0.94, 0.0
    pairs = np.stack([np.arange(40), np.arange(40, 80)], axis=1)
    assert bool(compared(pairs, evidence, 1).mean() > 0.5) is copies
    assert bool(np.mean(near_duplicates(tiles)[40:] == np.arange(40)) > 0.5) is copies


def test_the_feature_of_the_index_has_no_brightness_and_no_contrast_but_noise_stays_small() -> None:
    pattern = np.random.default_rng(4).integers(-20, 21, (16, 16)) * 2
    feature = turn_free((110 + pattern).astype(np.uint8).reshape(1, 256))[0]
    for tile in (100 + pattern, 110 + 2 * pattern, 110 + pattern // 2):
        np.testing.assert_allclose(turn_free(tile.astype(np.uint8).reshape(1, 256))[0], feature, atol=1e-6)
    y = np.arange(16)
    wave = np.tile(np.cos(np.pi * (2 * y + 1) * 5 / 32)[:, None], (1, 16))
    for amplitude, length in ((80.0, 1.0), (4.0, 4 * np.sqrt(128) / 128)):
        tile = rounded(110 + amplitude * wave).reshape(1, 256)
        assert np.linalg.norm(turn_free(tile)) == pytest.approx(length, rel=0.06)
    too_fine = np.tile(np.cos(np.pi * (2 * y + 1) * 6 / 32)[:, None], (1, 16))
    assert np.linalg.norm(turn_free(rounded(110 + 80 * too_fine).reshape(1, 256))) < 0.05


def test_the_index_finds_the_pairs_within_its_radius_that_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(5)
    coarse = rng.normal(size=(60, 4, 4)).repeat(5, axis=0) + 0.12 * rng.normal(size=(300, 4, 4))
    tiles = rounded(110 + 25 * np.kron(coarse, np.ones((1, 4, 4)))).reshape(-1, 256)[rng.permutation(300)]
    means, details = tones(tiles)
    feature = turn_free(tiles).astype(np.float64)
    apart = np.linalg.norm(feature[:, None] - feature[None], axis=2)
    agree = [[tones_agree(means[i], details[i], means[j], details[j]) for j in range(300)] for i in range(300)]
    near = {(int(i), int(j)) for j, i in np.argwhere((apart < 0.25) & np.array(agree)) if i < j}
    found = {(int(i), int(j)) for i, j in candidate_pairs(tiles, (means, details), np.arange(300), n_neighbours=300)}
    assert found <= near
    assert len(found) > 0.97 * len(near) > 300


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
