"""Laws of the synthetic corpus: the same plan gives the same bytes, and the truth is what was written."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.sources import list_corpus
from rsprune_dagster.corpus.sources import members as listed
from rsprune_dagster.corpus.synthetic import SCENES, SyntheticPlan, paint, write_corpus
from rsprune_dagster.corpus.synthetic.corpus import WAYS
from rsprune_dagster.corpus.synthetic.plan import CONTAINERS, lay_out
from rsprune_dagster.utils.errors import RunError, TileError, UsageError

PLAN = SyntheticPlan(
    n_tiles=250,
    imbalance=5,
    n_scene_files=2,
    scene_file_px=256,
    window_px=128,
    n_broken=9,
    n_reference_per_scene=12,
    n_held_out_per_scene=4,
    seed=3,
)
SMALL = SyntheticPlan(
    n_tiles=60, imbalance=2, n_scene_files=0, n_broken=0, n_reference_per_scene=1, n_held_out_per_scene=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "demo"
    write_corpus(folder, PLAN)
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> list[dict[str, str | None]]:
    rows: list[dict[str, str | None]] = pq.read_table(folder / "truth.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def encoded(folder: Path) -> dict[str, bytes]:
    """Every member of the corpus other than the windows, by tile_id."""
    return dict(members(folder / "corpus"))


def members(corpus: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(p for p in corpus.rglob("*") if p.is_file()):
        name = path.relative_to(corpus).as_posix()
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                yield from ((f"{name}/{m.name}", tar.extractfile(m).read()) for m in tar)  # type: ignore[union-attr]
        elif path.suffix == ".parquet":
            images = pq.read_table(path)["image"].to_pylist()
            yield from ((f"{name}/{row}", image["bytes"]) for row, image in enumerate(images))
        elif path.parent.name != "scenes":
            yield name, path.read_bytes()


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def entropy_bits(tile: NDArray[np.uint8]) -> float:
    grey = np.asarray(Image.fromarray(tile).convert("L"))
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): md5(p.read_bytes()).hexdigest() for p in files}


def drawn(scene: str, seed: int, size_px: int = 64) -> NDArray[np.uint8]:
    return paint(scene, rng=np.random.default_rng(seed), size_px=size_px)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("size_px", [16, 64, 257])
def test_a_painting_depends_on_its_generator_only(scene: str, size_px: int) -> None:
    tile = drawn(scene, 5, size_px)
    assert tile.shape == (size_px, size_px, 3)
    assert tile.dtype == np.uint8
    assert np.array_equal(tile, drawn(scene, 5, size_px))
    assert not np.array_equal(tile, drawn(scene, 6, size_px))


def test_busier_scenes_have_more_entropy() -> None:
    mean = {scene: np.mean([entropy_bits(drawn(scene, seed)) for seed in range(25)]) for scene in SCENES}
    assert mean["water"] < mean["fields"] < mean["city"]
    assert mean["water"] == min(mean.values())


def test_the_same_plan_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "again", PLAN)
    assert digests(tmp_path / "again") == digests(folder)


def test_another_seed_paints_other_tiles(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a", SMALL)
    write_corpus(tmp_path / "b", replace(SMALL, seed=4))
    one, other = ({data for _, data in members(tmp_path / name / "corpus") if len(data) > 1000} for name in "ab")
    assert len(one) > 30 and one.isdisjoint(other)


def test_a_folder_with_the_same_plan_is_left_alone(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    write_corpus(folder, PLAN)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_another_plan_replaces_the_corpus_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", SMALL)
    write_corpus(tmp_path / "corpus", replace(SMALL, n_tiles=70))
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]
    assert pq.read_table(tmp_path / "corpus" / "truth.parquet").num_rows == 70


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    said: list[int] = []

    @contextmanager
    def counting(label: str, total: int) -> Iterator[Callable[[int], None]]:
        said.append(-total)
        yield said.append

    write_corpus(tmp_path / "corpus", SMALL, progress=counting)
    assert said[0] < 0 and sum(said) == 0


def test_a_folder_of_the_users_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"photo\.jpg"):
        write_corpus(tmp_path, PLAN)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_failed_write_leaves_the_last_corpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(folder)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rsprune_dagster.corpus.synthetic.corpus._write_labelled", full)
    with pytest.raises(RunError, match="No space left"):
        write_corpus(folder, replace(SMALL, seed=9))
    assert digests(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "wrong",
    [{"n_tiles": 5}, {"imbalance": 0.5}, {"blank_share": 0.95}, {"noise_share": -0.1}, {"size_px": 8},
     {"window_px": 100}, {"n_broken": -1}, {"seed": -1}],
)  # fmt: skip
def test_a_plan_that_cannot_be_laid_out_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"got|tiles leave"):
        SyntheticPlan(**wrong)  # type: ignore[arg-type]


def test_the_truth_covers_exactly_what_was_written(
    truth: list[dict[str, str | None]], encoded: dict[str, bytes], folder: Path
) -> None:
    ids = [str(row["tile_id"]) for row in truth]
    assert ids == sorted(set(ids))
    assert {i for i in ids if "#" not in i} == encoded.keys()
    scenes = {i.split("#")[0] for i in ids if "#" in i}
    assert scenes == {f"scenes/{p.name}" for p in (folder / "corpus" / "scenes").iterdir()}


def test_kinds_and_scenes_are_as_planned(truth: list[dict[str, str | None]]) -> None:
    planted = [row for row in truth if "#" not in str(row["tile_id"])]
    kinds = Counter(row["kind"] for row in planted)
    assert kinds == {"tile": 201, "blank": 12, "exact_copy": 12, "near_duplicate": 20, "noise": 5, "broken": 9}
    scenes = Counter(row["scene"] for row in planted if row["kind"] == "tile")
    assert [scenes[scene] for scene in SCENES] == list(PLAN.scene_counts)
    assert scenes["fields"] / scenes["cloud"] == pytest.approx(PLAN.imbalance, rel=0.12)
    assert {row["scene"] for row in truth if row["kind"] in ("blank", "noise", "broken")} == {None}


def test_names_do_not_tell_the_scene(truth: list[dict[str, str | None]]) -> None:
    assert not any(scene in str(row["tile_id"]) for scene in SCENES for row in truth)


def test_places_do_not_tell_the_scene() -> None:
    """In each container, and in each half of its names, scenes have the shares that they have in the corpus."""
    plan = SyntheticPlan(n_tiles=20_000)
    tiles = [item for item in lay_out(plan, ways=WAYS) if item.kind == "tile"]
    for prefix, (share, _) in CONTAINERS.items():
        inside = [item.name for item in tiles if item.container.startswith(prefix)]
        assert len(inside) / len(tiles) == pytest.approx(share, abs=0.02)
        for half in (inside[: len(inside) // 2], inside[len(inside) // 2 :]):
            shares = [half.count(scene) / len(half) for scene in SCENES]
            assert shares == pytest.approx(plan.scene_weights.tolist(), abs=0.05)


def test_copies_are_their_originals(truth: list[dict[str, str | None]], encoded: dict[str, bytes]) -> None:
    by_id = {row["tile_id"]: row for row in truth}
    for row in truth:
        if row["copy_of"] is None:
            assert row["kind"] not in ("exact_copy", "near_duplicate")
            continue
        original = by_id[row["copy_of"]]
        assert (original["kind"], original["scene"]) == ("tile", row["scene"])
        same = encoded[str(row["tile_id"])] == encoded[str(row["copy_of"])]
        assert same == (row["kind"] == "exact_copy")


def test_near_duplicates_look_like_their_originals(
    truth: list[dict[str, str | None]], encoded: dict[str, bytes]
) -> None:
    """Under the best of eight rotations and flips, far nearer than another tile of the scene would be."""
    rows = [row for row in truth if row["kind"] == "near_duplicate"]
    assert {row["way"] for row in rows} == {"turned", "recompressed", "brighter", "noisier", "shifted"}
    for row in rows:
        copy, original = (coarse(encoded[str(row[key])]) for key in ("tile_id", "copy_of"))
        turned = [np.rot90(o, k) for o in (original, original[::-1]) for k in range(4)]
        assert min(np.abs(copy - t).mean() for t in turned) < 16


def coarse(data: bytes) -> NDArray[np.float64]:
    """16 x 16 cell means."""
    return pixels(data).astype(float).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))


def test_distinct_tiles_are_distinct(truth: list[dict[str, str | None]], encoded: dict[str, bytes]) -> None:
    ids = [str(row["tile_id"]) for row in truth if row["kind"] == "tile" and "#" not in str(row["tile_id"])]
    assert len({encoded[i] for i in ids}) == len(ids)


def test_blanks_are_under_a_bit_and_noise_is_not(truth: list[dict[str, str | None]], encoded: dict[str, bytes]) -> None:
    bits = {
        i: entropy_bits(pixels(encoded[str(i)]))
        for i in (r["tile_id"] for r in truth if r["kind"] in ("blank", "noise"))
    }
    blanks = [bits[row["tile_id"]] for row in truth if row["kind"] == "blank"]
    assert max(blanks) < 1
    assert min(bits[row["tile_id"]] for row in truth if row["kind"] == "noise") > 5


@pytest.mark.parametrize(("part", "n"), [("reference", 12), ("held_out", 4)])
def test_a_labelled_part_is_balanced_and_disjoint(folder: Path, encoded: dict[str, bytes], part: str, n: int) -> None:
    files = [p for p in (folder / part).rglob("*") if p.is_file()]
    assert Counter(p.parent.name for p in files) == dict.fromkeys(SCENES, n)
    assert {p.suffix for p in files} == {".jpg", ".png"}
    others = {p.read_bytes() for p in folder.rglob("*.*g") if p.is_file() and part not in p.parts}
    assert {p.read_bytes() for p in files}.isdisjoint({*encoded.values(), *others})


def test_held_out_tiles_leave_the_other_parts_as_they_are(tmp_path: Path) -> None:
    write_corpus(tmp_path / "with", SMALL)
    write_corpus(tmp_path / "without", replace(SMALL, n_held_out_per_scene=0))
    with_them, without = digests(tmp_path / "with"), digests(tmp_path / "without")
    ours = {name: md5 for name, md5 in with_them.items() if not name.startswith(("held_out", "plan.json"))}
    assert ours == {name: md5 for name, md5 in without.items() if name != "plan.json"}


def test_broken_files_do_not_decode(truth: list[dict[str, str | None]], encoded: dict[str, bytes]) -> None:
    broken = {str(row["tile_id"]): row["way"] for row in truth if row["kind"] == "broken"}
    assert set(broken.values()) == {"truncated", "zero_bytes", "text", "lfs_pointer", "complex", "ds_store", "readme"}
    for tile_id, way in broken.items():
        if way == "complex":
            with rasterio.MemoryFile(encoded[tile_id]) as memory, memory.open() as dataset:
                assert dataset.dtypes == ("complex64",)
        else:
            with pytest.raises(OSError, match=r"truncated|cannot identify"):
                pixels(encoded[tile_id])


def test_scene_files_are_georeferenced_and_their_windows_show_several_scenes(
    truth: list[dict[str, str | None]], folder: Path
) -> None:
    windows = [str(row["tile_id"]) for row in truth if "#" in str(row["tile_id"])]
    for path in (folder / "corpus" / "scenes").iterdir():
        with rasterio.open(path) as dataset:
            assert (dataset.count, dataset.shape, dataset.nodata) == (4, (256, 256), 0)
            assert set(dataset.dtypes) == {"uint16"}
            assert dataset.crs.is_projected
            valid = dataset.dataset_mask() > 0
        assert 0 < (~valid).mean() < 0.5
        for x, y, w, h in (map(int, i.split("#")[1].split(",")) for i in windows if path.name in i):
            assert valid[y : y + h, x : x + w].mean() >= 0.5
    assert len({row["scene"] for row in truth if "#" in str(row["tile_id"])}) > 1


def test_the_corpus_reader_finds_what_the_truth_says(truth: list[dict[str, str | None]], folder: Path) -> None:
    options = ReadOptions(tile_size_px=PLAN.window_px)
    containers = list_corpus([str(folder / "corpus")]).containers
    rows = [row for each in containers for table in listed(each, options=options) for row in table.to_pylist()]
    beside = {row["tile_id"] for row in truth if row["way"] in ("readme", "ds_store")}
    assert sorted(row["tile_id"] for row in rows) == sorted({row["tile_id"] for row in truth} - beside)
    broken = {row["tile_id"] for row in truth if row["kind"] == "broken"} - beside
    with TileReader(options) as reader:
        assert {row["tile_id"] for row in rows if not readable(reader, row)} == broken


def readable(reader: TileReader, row: dict[str, object]) -> bool:
    try:
        reader.read_grey(row)
    except TileError:
        return False
    return True


def test_scenes_can_be_told_apart(truth: list[dict[str, str | None]], folder: Path, encoded: dict[str, bytes]) -> None:
    """The nearest reference tile in simple colour and texture names most scenes: neither hopeless nor given."""
    files = sorted(p for p in (folder / "reference").rglob("*") if p.is_file())
    tiles = [row for row in truth if row["kind"] == "tile" and "#" not in str(row["tile_id"])]
    known = np.stack([looks(p.read_bytes()) for p in files])
    asked = np.stack([looks(encoded[str(row["tile_id"])]) for row in tiles])
    nearest = np.square((asked[:, None] - known[None]) / known.std(axis=0)).sum(axis=2).argmin(axis=1)
    hits = np.array([files[at].parent.name == row["scene"] for at, row in zip(nearest, tiles, strict=True)])
    assert 0.7 < hits.mean() < 1


def looks(data: bytes) -> NDArray[np.float64]:
    """Colour means and deviations, and how much neighbours at four distances differ."""
    tile = pixels(data).astype(float) / 255
    grey = tile.mean(axis=2)
    steps = [
        np.log(np.abs(grey[d:] - grey[:-d]).mean() + np.abs(grey[:, d:] - grey[:, :-d]).mean()) for d in (1, 2, 4, 8)
    ]
    return np.concatenate([tile.mean(axis=(0, 1)), tile.std(axis=(0, 1)), steps])
