"""Training images: seeded order and turns, central squares, and the memory of decoded tiles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusion_runs import OPTIONS, small_tiles, write_tiles
from PIL import Image

from rsprune_dagster.diffusion.tile_set import epoch_order, squared, tile_set, turned


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [
        epoch_order(np.arange(epoch * 30, (epoch + 1) * 30), n_tiles=30, seed=seed).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert sorted(orders[3]) == list(range(30)) != orders[3]


def test_each_image_is_turned_by_seed_and_number(tmp_path: Path) -> None:
    tile = small_tiles(tmp_path, n=1)  # the order is always the same
    image = tile.images([0])[0]
    turns = {turned(image[None], np.array([turn])).tobytes(): turn for turn in range(8)}

    def drawn(seed: int) -> list[list[int]]:
        stream = tile.batches(start=0, end=64, batch_size=32, seed=seed)
        return [[turns[each.tobytes()] for each in batch.images] for batch in stream]

    first, other = drawn(0), drawn(1)
    assert first == drawn(0) and first != other and first[0] != first[1]
    assert {*first[0], *first[1]} == set(range(8))


def test_a_turn_is_a_quarter_counter_clockwise_and_from_four_on_of_the_mirror_image() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    a, b, c, d = image.reshape(4, 3).tolist()
    seen = {turn: turned(image, np.array([turn]))[0].reshape(4, 3).tolist() for turn in (0, 1, 4)}
    assert seen == {0: [a, b, c, d], 1: [b, d, a, c], 4: [b, a, d, c]}


@pytest.mark.parametrize(("shape", "rows", "columns"), [((3, 7), (0, 3), (2, 5)), ((8, 3), (2, 5), (0, 3))])
def test_the_central_square_is_kept(shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    middle = image[slice(*rows), slice(*columns)]
    assert np.array_equal(squared(image, 3), middle)
    resized = Image.fromarray(middle).resize((5, 5), Image.Resampling.LANCZOS)
    assert np.array_equal(squared(image, 5), np.asarray(resized))


def test_decoded_tiles_are_kept_up_to_the_limit(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path)
    tiles.images([3, 1, 3])
    assert sorted(tiles.memory) == [1, 3]
    tight = replace(tiles, memory={}, memory_limit_bytes=2 * 16 * 16 * 3)
    tight.images(range(5))
    assert sorted(tight.memory) == [0, 1]


def test_scenes_are_numbered_by_name(tmp_path: Path) -> None:
    tiles = tile_set(write_tiles(tmp_path, 3), OPTIONS, image_size_px=16)
    assert (tiles.scene_names, tiles.scene_ids.tolist()) == (("field", "sea"), [0, 1, 0])
    assert tiles.labelled([1, 2])[1].tolist() == [1, 0]


def test_the_fingerprint_knows_what_changes_the_pixels(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path)
    others = [
        replace(tiles, options=replace(tiles.options, bands=(3, 2, 1))),
        replace(tiles, options=replace(tiles.options, value_range=(0.0, 10_000.0))),
        replace(tiles, image_size_px=8),
        replace(tiles, scene_names=(*tiles.scene_names, "another")),
        replace(tiles, scene_ids=tiles.scene_ids + 1),
        replace(tiles, table=tiles.table.slice(1), scene_ids=tiles.scene_ids[1:]),
    ]
    assert len({each.fingerprint() for each in (tiles, *others)}) == 1 + len(others)
    assert replace(tiles, options=replace(tiles.options, min_valid_fraction=0.1)).fingerprint() == tiles.fingerprint()
