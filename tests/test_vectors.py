"""Laws of the vector file: what was written comes back, whatever the order; the parts are plain safetensors."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rsprune_dagster.pruning.encoders import vectors
from rsprune_dagster.pruning.encoders.vectors import create_vectors, open_vectors
from rsprune_dagster.utils.errors import RunError


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts without much data."""
    monkeypatch.setattr(vectors, "ROWS_PER_PART", 16)


def unit_vectors(n_rows: int, dimension: int = 5) -> np.ndarray:
    values = np.random.default_rng(n_rows).normal(size=(n_rows, dimension)).astype(np.float32)
    units: np.ndarray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return units


def write_shuffled(folder: Path, values: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    file = create_vectors(folder, *values.shape)
    for rows in np.array_split(rng.permutation(len(values)), 7):
        file.write_rows(rows, values[rows])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("n_rows", [0, 1, 15, 16, 17, 100])
def test_round_trip_is_the_rounding_to_half(tmp_path: Path, n_rows: int) -> None:
    values = unit_vectors(n_rows)
    write_shuffled(tmp_path / "v", values, seed=0)
    file = open_vectors(tmp_path / "v")
    assert (file.n_rows, file.dimension) == values.shape
    assert np.array_equal(file.read(0, n_rows), values.astype(np.float16).astype(np.float32))


def test_norms_stay_within_the_promise(tmp_path: Path) -> None:
    values = unit_vectors(100, dimension=64)
    write_shuffled(tmp_path / "v", values, seed=0)
    norms = np.linalg.norm(open_vectors(tmp_path / "v").read(0, 100), axis=1)
    assert np.abs(norms - 1).max() <= 2**-10


def test_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    values = unit_vectors(61)
    for seed in (1, 2):
        write_shuffled(tmp_path / str(seed), values, seed)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_writing_what_was_read_gives_the_same_bytes(tmp_path: Path) -> None:
    write_shuffled(tmp_path / "a", unit_vectors(40), seed=0)
    write_shuffled(tmp_path / "b", open_vectors(tmp_path / "a").read(0, 40), seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_safetensors_library_loads_the_parts(tmp_path: Path) -> None:
    values = unit_vectors(37)
    write_shuffled(tmp_path / "v", values, seed=0)
    parts = [load_file(path)["vectors"] for path in sorted((tmp_path / "v").iterdir())]
    assert [len(part) for part in parts] == [16, 16, 5]
    assert np.array_equal(np.concatenate(parts), values.astype(np.float16))


def test_any_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    write_shuffled(tmp_path / "v", unit_vectors(80), seed=0)
    file = open_vectors(tmp_path / "v")
    rows = np.flatnonzero(np.random.default_rng(5).random(80) < 0.6)
    assert np.array_equal(file.read_rows(rows), file.read(0, 80)[rows])
    assert np.array_equal(file.read(9, 41), file.read(0, 80)[9:41])


@pytest.mark.parametrize("dense", [0, 1, 16])
def test_reading_row_by_row_and_in_spans_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: int
) -> None:
    write_shuffled(tmp_path / "v", unit_vectors(80), seed=0)
    file = open_vectors(tmp_path / "v")
    monkeypatch.setattr(vectors, "DENSE", dense)
    monkeypatch.setattr(vectors, "SPAN_ROWS", 3)
    for rows in (np.arange(1, 80, 5), np.array([7]), np.array([0, 15, 16, 31, 79]), np.arange(80)):
        assert np.array_equal(file.read_rows(rows), unit_vectors(80).astype(np.float16).astype(np.float32)[rows])


def test_safetensors_part_with_real_size_is_aligned() -> None:
    for n_rows, dimension in ((1, 1), (65536, 1280), (999, 320)):
        assert len(vectors.header(n_rows, dimension)) % 8 == 0


def test_wrong_rows_and_values_are_refused(tmp_path: Path) -> None:
    file = create_vectors(tmp_path / "v", 20, 5)
    values = unit_vectors(2)
    with pytest.raises(IndexError, match="20"):
        file.write_rows(np.array([3, 20]), values)
    with pytest.raises(ValueError, match="twice"):
        file.write_rows(np.array([3, 3]), values)
    with pytest.raises(ValueError, match="finite"):
        file.write_rows(np.array([3, 4]), values * np.nan)
    with pytest.raises(ValueError, match="5 components"):
        file.write_rows(np.array([3, 4, 5]), values)
    with pytest.raises(ValueError, match="rise"):
        file.read_rows(np.array([4, 3]))


@pytest.mark.parametrize("damage", ["cut", "gone", "foreign", "empty"])
def test_damaged_parts_are_refused(tmp_path: Path, damage: str) -> None:
    write_shuffled(tmp_path / "v", unit_vectors(40), seed=0)
    part = tmp_path / "v" / "part-00001.safetensors"
    if damage == "gone":
        part.unlink()
    else:
        part.write_bytes({"cut": part.read_bytes()[:-1], "foreign": b"version https://git-lfs", "empty": b""}[damage])
    with pytest.raises(RunError, match="make the embeddings again"):
        open_vectors(tmp_path / "v")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no vectors"):
        open_vectors(tmp_path)
