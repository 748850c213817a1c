"""Laws of the synthetic pairs: every run gives the same bytes, and an image shows what its mask says."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rsprune_dagster.config.params import load
from rsprune_dagster.corpus.synthetic import COLOURS, SCENES, paint, pairs, write_pairs
from rsprune_dagster.corpus.synthetic.generated import is_complete
from rsprune_dagster.corpus.synthetic.pairs import N_PAIRS_PER_PLACE, PLACES, SIZE_PX
from rsprune_dagster.utils.errors import RunError, UsageError

CLASSES = tuple(COLOURS.values())
RGB = {name: tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour, name in COLOURS.items()}
EVEN = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "demo"
    write_pairs(folder)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair per place."""
    monkeypatch.setattr(pairs, "N_PAIRS_PER_PLACE", dict.fromkeys(PLACES, 1))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def image_and_mask(folder: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    for mask in sorted(folder.glob("*/*/masks/*.png")):
        yield read(mask.parents[1] / "images" / mask.name), read(mask)


def where(mask: NDArray[np.uint8], name: str) -> NDArray[np.bool_]:
    return np.asarray((mask == RGB[name]).all(axis=2))


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def uniform(name: str, size_px: int = 64) -> NDArray[np.intp]:
    return np.full((size_px, size_px), CLASSES.index(name))


def test_every_place_has_images_and_masks_of_the_same_names(folder: Path) -> None:
    assert names(folder) == ["held_out_pairs", "pairs", "pairs.json"]
    for part, places in PLACES.items():
        assert names(folder / part) == sorted(places)
        numbered = [f"{index:03d}.png" for index in range(N_PAIRS_PER_PLACE[part])]
        for place in places:
            assert {kind: names(folder / part / place / kind) for kind in names(folder / part / place)} == {
                "images": numbered,
                "masks": numbered,
            }


def test_images_and_masks_have_the_same_size(folder: Path) -> None:
    assert {each.shape for pair in image_and_mask(folder) for each in pair} == {(SIZE_PX, SIZE_PX, 3)}


def test_every_pixel_of_a_mask_has_the_colour_of_a_class(folder: Path) -> None:
    for _, mask in image_and_mask(folder):
        assert np.logical_or.reduce([where(mask, name) for name in CLASSES]).all()


def test_classes_are_scenes_of_distinct_colours() -> None:
    assert set(CLASSES) <= set(SCENES)
    assert len(set(CLASSES)) == len(set(RGB.values())) == len(COLOURS)


def test_masks_show_two_to_four_classes_each_and_every_class_often(folder: Path) -> None:
    masks = [mask for _, mask in image_and_mask(folder)]
    shares = np.array([[where(mask, name).mean() for name in CLASSES] for mask in masks])
    per_mask = Counter((shares > 0).sum(axis=1).tolist())
    assert set(per_mask) == {2, 3, 4} and min(per_mask.values()) > len(masks) / 5
    assert shares.mean(axis=0).min() > 0.1
    assert (shares > 0).mean(axis=0).min() > 0.4


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_no_class_of_a_mask_is_a_sliver(n_classes: int) -> None:
    for seed in range(60):
        cover = pairs.land_cover(np.random.default_rng(seed), 48, n_classes=n_classes)
        _, counts = np.unique(cover, return_counts=True)
        assert len(counts) == n_classes and counts.min() > 0.07 * 48**2


def test_regions_are_large(folder: Path) -> None:
    """Few neighbouring pixels differ in class: a border is a few times the side long, not a scatter of pixels."""
    for _, mask in image_and_mask(folder):
        down, across = ((np.diff(mask.astype(int), axis=axis) != 0).any(axis=2) for axis in (0, 1))
        assert (down.mean() + across.mean()) / 2 < 0.06


def test_images_follow_their_masks(folder: Path) -> None:
    """Class by class, over the pixels that a mask gives it: water is blue and dark, desert is red and bright."""
    seen: dict[str, list[NDArray[np.float64]]] = {name: [] for name in CLASSES}
    for image, mask in image_and_mask(folder):
        for name in CLASSES:
            if (here := where(mask, name)).any():
                seen[name].append(image[here].mean(axis=0))
    assert all(blue > red for red, _, blue in seen["water"])
    assert all(red > blue for red, _, blue in seen["desert"])
    mean = {name: np.mean(colours, axis=0) for name, colours in seen.items()}
    brightness = {name: colour.mean() for name, colour in mean.items()}
    assert max(brightness["water"], brightness["forest"]) < 0.8 * min(brightness["fields"], brightness["city"])
    assert max(brightness.values()) == brightness["desert"]
    assert mean["forest"].argmax() == 1


@pytest.mark.parametrize("name", CLASSES)
def test_an_image_of_one_class_is_a_tile_of_its_scene(name: str) -> None:
    image = pairs.pictured(uniform(name), rng=np.random.default_rng(5), light=EVEN)
    assert np.array_equal(image, paint(name, rng=np.random.default_rng(5), size_px=64))


def test_the_light_of_a_place_scales_its_colours() -> None:
    dim, plain = (
        pairs.pictured(uniform("forest"), rng=np.random.default_rng(2), light=light).astype(float).mean(axis=(0, 1))
        for light in ((0.8, 1.0, 1.2), EVEN)
    )
    assert dim / plain == pytest.approx([0.8, 1.0, 1.2], rel=0.02)


def test_images_of_a_place_have_its_light(
    tmp_path: Path, folder: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "PLACES", {part: dict.fromkeys(places, EVEN) for part, places in PLACES.items()})
    write_pairs(tmp_path / "even")
    for part, places in PLACES.items():
        for place, light in places.items():
            first = Path(part, place, "images", "000.png")
            lit, even = (read(at / first).astype(float) for at in (folder, tmp_path / "even"))
            unclipped = (lit < 255).all(axis=2) & (even < 255).all(axis=2)
            assert lit[unclipped].mean(axis=0) / even[unclipped].mean(axis=0) == pytest.approx(light, rel=0.01)


def test_no_two_places_share_a_light() -> None:
    lights = [light for places in PLACES.values() for light in places.values()]
    assert len(set(lights)) == len(lights)


def test_held_out_pairs_differ_from_training_pairs_and_no_two_pairs_are_alike(folder: Path) -> None:
    for kind in ("images", "masks"):
        files = [p.read_bytes() for p in folder.glob(f"*/*/{kind}/*.png")]
        assert len(set(files)) == len(files) == sum(len(PLACES[part]) * n for part, n in N_PAIRS_PER_PLACE.items())


def test_every_run_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_complete_pairs_are_left_alone(folder: Path) -> None:
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*")}
    write_pairs(folder)
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*")} == before


def test_pairs_of_another_version_are_replaced_and_nothing_is_left_beside_them(
    tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "demo")
    expected = contents(tmp_path / "demo")
    (tmp_path / "demo" / "pairs" / "stale.png").write_bytes(b"old")
    monkeypatch.setattr(pairs, "PAIRS_VERSION", pairs.PAIRS_VERSION + 1)
    write_pairs(tmp_path / "demo")
    assert names(tmp_path) == ["demo"]
    replaced = contents(tmp_path / "demo")
    assert replaced.pop("pairs.json") != expected.pop("pairs.json")
    assert replaced == expected


@pytest.mark.parametrize(
    "constant",
    ["COLOURS", "PLACES", "N_PAIRS_PER_PLACE", "SIZE_PX", "N_CLASSES", "PAINTING_VERSION"],
)
def test_other_constants_are_another_version(folder: Path, constant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {
        "COLOURS": dict(reversed(COLOURS.items())),
        "PLACES": {**PLACES, "held_out_pairs": {"island": EVEN}},
        "N_PAIRS_PER_PLACE": dict.fromkeys(PLACES, 1),
        "SIZE_PX": SIZE_PX * 2,
        "N_CLASSES": (2,),
        "PAINTING_VERSION": 0,
    }
    assert is_complete(folder, pairs.generated())
    monkeypatch.setattr(pairs, constant, other[constant])
    assert not is_complete(folder, pairs.generated())


def test_an_empty_folder_is_filled(tmp_path: Path, few: None) -> None:
    (tmp_path / "demo").mkdir()
    write_pairs(tmp_path / "demo")
    assert (tmp_path / "demo" / "pairs.json").is_file()


def test_an_interrupted_run_leaves_nothing_and_the_next_run_completes(
    tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupting(label: str, total: int) -> Iterator[Callable[[int], None]]:
        def interrupt(n: int) -> None:
            raise KeyboardInterrupt

        yield interrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(tmp_path / "below" / "demo", progress=interrupting)
    assert names(tmp_path / "below") == []
    write_pairs(tmp_path / "below" / "demo")
    assert names(tmp_path / "below") == ["demo"]
    assert is_complete(tmp_path / "below" / "demo", pairs.generated())


def test_a_failed_write_leaves_the_last_pairs(tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path / "demo")
    before = contents(tmp_path / "demo")
    monkeypatch.setattr(pairs, "PAIRS_VERSION", pairs.PAIRS_VERSION + 1)
    monkeypatch.setattr(pairs, "pictured", full_disk)
    with pytest.raises(RunError, match="No space left"):
        write_pairs(tmp_path / "demo")
    assert contents(tmp_path / "demo") == before
    assert names(tmp_path) == ["demo"]


@pytest.mark.parametrize("foreign", ["photo.jpg", "plan.json", "pairs"])
def test_a_folder_of_the_users_is_refused_untouched(tmp_path: Path, foreign: str) -> None:
    (tmp_path / foreign).write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"photo\.jpg|plan\.json|no pairs\.json"):
        write_pairs(tmp_path)
    assert contents(tmp_path) == {foreign: b"mine"}


def test_a_users_file_beside_complete_pairs_is_not_replaced(
    tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "demo")
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    monkeypatch.setattr(pairs, "PAIRS_VERSION", pairs.PAIRS_VERSION + 1)
    with pytest.raises(UsageError, match=r"notes\.txt"):
        write_pairs(tmp_path / "demo")
    assert (tmp_path / "demo" / "notes.txt").read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(UsageError, match="demo is no folder of synthetic pairs"):
        write_pairs(tmp_path / "demo")
    assert (tmp_path / "demo").read_text() == "mine"


def test_progress_ends_at_its_total(tmp_path: Path, few: None) -> None:
    said: list[int] = []

    @contextmanager
    def counting(label: str, total: int) -> Iterator[Callable[[int], None]]:
        said.append(-total)
        yield said.append

    write_pairs(tmp_path / "demo", progress=counting)
    assert said[0] < 0 and sum(said) == 0


def test_params_yaml_has_a_class_for_each_colour_of_the_masks() -> None:
    params = load(Path(__file__).resolve().parents[1] / "params.yaml")
    assert params.semantic_synthesis.classes == tuple(f"{colour} {name}" for colour, name in COLOURS.items())
