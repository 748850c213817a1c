"""Pictures are small, readable by an image library, the same each time, and take whatever a corpus throws at them."""

import base64
import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from rsprune_dagster.report.entropy import entropy_histogram
from rsprune_dagster.report.map import MAX_POINTS, embedding_map, principal_plane, spread_out
from rsprune_dagster.report.markdown import image, table
from rsprune_dagster.report.montage import Row, gallery, montage
from rsprune_dagster.report.quotas import quota_table
from rsprune_dagster.report.scenes import kept_by_scene
from rsprune_dagster.report.style import MAX_BYTES

RNG = np.random.default_rng(0)
BITS = RNG.normal(5, 1.5, 500).clip(0, 8)
NOISE = RNG.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
VECTORS = RNG.normal(size=(MAX_POINTS + 700, 16))
KEEP = RNG.random(len(VECTORS)) < 0.2
SCENES = [f"scene {i % 13}" for i in range(len(VECTORS))]
MANY = [f"scene {i:03d}" for i in range(90)]

PICTURES: dict[str, Callable[[], bytes]] = {
    "entropy": lambda: entropy_histogram(BITS, 2.0, {"sea": BITS[:40] / 4, "city": BITS[40:], "none": BITS[:0]}),
    "entropy, no reference": lambda: entropy_histogram(BITS, 7.9),
    "entropy, many scenes": lambda: entropy_histogram(BITS, 0.0, dict.fromkeys(MANY, BITS[:5])),
    "entropy, no tiles": lambda: entropy_histogram(BITS[:0], 1.0),
    "scenes": lambda: kept_by_scene(["a", "b", "c"], [10, 1_000_000, 0], [10, 5_000, 0]),
    "scenes, many": lambda: kept_by_scene(MANY[:60], range(60), [1] * 60),
    "scenes, none": lambda: kept_by_scene([], [], []),
    "map": lambda: embedding_map(VECTORS, KEEP, SCENES, thumbnails=NOISE[:1, :4, :4].repeat(len(VECTORS), 0)),
    "map, grey thumbnails": lambda: embedding_map(VECTORS[:9], KEEP[:9], SCENES[:9], thumbnails=NOISE[:9, :16, :16, 0]),
    "map, one tile": lambda: embedding_map(VECTORS[:1], KEEP[:1], SCENES[:1]),
    "map, no tiles": lambda: embedding_map(VECTORS[:0], KEEP[:0], []),
    "map, one dimension": lambda: embedding_map(VECTORS[:9, :1], KEEP[:9], SCENES[:9]),
    "montage": lambda: montage(list(NOISE), columns=8, captions=[f"{i} bits" for i in range(40)]),
    "montage, odd tiles": lambda: montage([NOISE[0, :9], NOISE[0, :16, :16, 0], NOISE[0, :, :, :1]], columns=2),
    "montage, no tiles": lambda: montage([], columns=4),
    "gallery": lambda: gallery([Row("city", list(NOISE[:9]), [True] * 3 + [False] * 6)] * 12, legend="kept"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_the_same_each_time(name: str) -> None:
    picture = PICTURES[name]()
    assert len(picture) <= MAX_BYTES
    Image.open(io.BytesIO(picture)).load()
    assert PICTURES[name]() == picture


def test_a_framed_tile_differs_from_an_unframed_one_only_in_its_frame() -> None:
    grey = [np.full((8, 8), 128, np.uint8)]
    plain, framed = (
        np.asarray(Image.open(io.BytesIO(gallery([Row("", grey, [kept])], tile_px=64))), np.int16)
        for kept in (False, True)
    )
    changed = np.abs(plain - framed).max(2) > 60
    inside = np.zeros_like(changed)
    inside[16:68, 16:68] = True
    assert changed.any() and not (changed & inside).any()


def test_captions_come_one_per_tile() -> None:
    with pytest.raises(ValueError, match="2 captions came for 3 tiles"):
        montage(list(NOISE[:3]), columns=3, captions=["a", "b"])


def test_an_image_carries_its_bytes_and_its_kind() -> None:
    for name, kind in (("scenes", "png"), ("gallery", "jpeg")):
        picture = PICTURES[name]()
        found = re.fullmatch(r"!\[a \\\[b\\\]\]\(data:image/(\w+);base64,(.+)\)", image(picture, "a [b]"))
        assert found and found[1] == kind and base64.b64decode(found[2]) == picture


def test_numbers_align_right_and_have_separators() -> None:
    lines = table(["name", "n", "x"], [["a|b", 12345, 0.12345], ["c\nd", None, 1e6]]).splitlines()
    assert lines == [
        "| name | n | x |",
        "| :--- | ---: | ---: |",
        "| a\\|b | 12,345 | 0.123 |",
        "| c d |  | 1,000,000 |",
    ]
    with pytest.raises(ValueError, match="1 cells came for 2 columns"):
        table(["a", "b"], [["only"]])


def test_quotas_add_up_below_and_start_with_the_largest_scene() -> None:
    lines = quota_table(["sea", "city"], [10, 90], [8, 80], [1, 3], [5, 10]).splitlines()
    assert lines[1] == "| :--- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| city | 90 | 80 | 3 | 10 | 11.1")
    assert lines[-1].startswith("| all | 100 | 88 |  | 15 | 15.0")


def test_the_plane_keeps_what_varies_most_and_its_sign() -> None:
    vectors = RNG.normal(size=(300, 6)) * [1, 9, 1, 4, 1, 1]
    points, explained = principal_plane(vectors)
    assert abs(np.corrcoef(points[:, 0], vectors[:, 1])[0, 1]) > 0.95
    assert abs(np.corrcoef(points[:, 1], vectors[:, 3])[0, 1]) > 0.9
    assert explained[0] > explained[1] > 0 and explained.sum() <= 1
    np.testing.assert_allclose(np.abs(points).max(0), points.max(0))


def test_shown_tiles_are_far_apart_and_never_twice() -> None:
    points = RNG.normal(size=(200, 2))
    chosen = spread_out(points, 20)
    gaps = np.linalg.norm(points[chosen][:, None] - points[chosen][None], axis=2)[np.triu_indices(20, 1)]
    others = np.linalg.norm(points[:20, None] - points[None, :20], axis=2)[np.triu_indices(20, 1)]
    assert len(set(chosen)) == 20 and gaps.min() > 2 * others.min()
    assert len(spread_out(np.zeros((5, 2)), 3)) == 1
