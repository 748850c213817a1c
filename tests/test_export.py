"""The exported subset holds the tiles' own bytes, whatever the tiles are called, or nothing is written."""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.export import FORMS, Names, export_subset
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.storage import escaped_name
from rsprune_dagster.corpus.tiles import LOCATION
from rsprune_dagster.diffusion.tile_set import tile_set
from rsprune_dagster.utils.errors import RunError, TileError, UsageError

SCHEMA = pa.schema(
    [*LOCATION, pa.field("content_md5", pa.string()), pa.field("rank", pa.int64()), pa.field("scene", pa.string())]
)
TILES = {
    "a/b.jpg": b"\xff\xd8\xffone",
    "pool.tar/../../escape.jpg": b"\xff\xd8\xfftwo",
    "/etc/passwd": b"\x89PNGthree",
    "A/B.jpg": b"\xff\xd8\xfffour",
    "a": b"II*\0five",
    "wrong.name.png": b"\xff\xd8\xffsix",
    "CON": b"raw",
    "nested/..": b"\x89PNGseven",
    "subset.jsonl": b'{"not": "ours"}',
    "x" * 300 + ".jpg": b"\xff\xd8\xffeight",
}


def table(tiles: dict[str, bytes]) -> pa.Table:
    rows = [
        {
            "tile_id": name,
            "uri": f"/corpus/{name}",
            "kind": "file",
            "stamp": "1",
            "content_md5": hashlib.md5(data).hexdigest(),
            "rank": rank,
            "scene": "forest",
        }
        for rank, (name, data) in enumerate(tiles.items())
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def reader(tiles: dict[str, bytes]) -> Callable[[dict[str, Any]], bytes]:
    return lambda row: tiles[row["tile_id"]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tar_samples(folder: Path) -> dict[str, bytes]:
    samples = {}
    for path in sorted(folder.glob("subset-*.tar")):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m) for m in tar.getmembers()}
            read = {name: file.read() for name, file in members.items() if file}
        facts = {name.split(".")[0]: json.loads(data) for name, data in read.items() if name.endswith(".json")}
        samples |= {
            facts[name.split(".")[0]]["tile_id"]: data for name, data in read.items() if not name.endswith(".json")
        }
    return samples


def test_webdataset_gives_every_tile_its_own_bytes(tmp_path: Path) -> None:
    export_subset(table(TILES), tmp_path / "out", form="webdataset", read_bytes=reader(TILES), samples_per_tar=3)
    assert tar_samples(tmp_path / "out") == TILES
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [f"subset-{i:06d}.tar" for i in range(4)]


def test_webdataset_keys_have_no_dots_keep_samples_together_and_follow_the_rank(tmp_path: Path) -> None:
    export_subset(table(TILES), tmp_path / "out", form="webdataset", read_bytes=reader(TILES))
    with tarfile.open(tmp_path / "out" / "subset-000000.tar") as tar:
        members = tar.getmembers()
    keys = [member.name.split(".")[0] for member in members]
    assert keys == sorted(keys) and len(keys) == 2 * len(TILES)
    assert all(member.name.count(".") == 1 and member.mtime == 0 for member in members)
    assert [m.name for m in members][10:12] == ["000000005.jpg", "000000005.json"], (
        "the bytes name the format, not the path"
    )


def test_folder_gives_every_tile_its_own_bytes_inside_the_target(tmp_path: Path) -> None:
    export_subset(table(TILES), tmp_path / "deep" / "out", form="folder", read_bytes=reader(TILES))
    out = tmp_path / "deep" / "out"
    index = [json.loads(line) for line in (out / "subset.jsonl").read_text().splitlines()]
    assert {row["tile_id"]: (out / row["file"]).read_bytes() for row in index} == TILES
    assert set(contents(tmp_path)) == {f"deep/out/{name}" for name in [*(row["file"] for row in index), "subset.jsonl"]}


def test_list_has_a_line_per_tile_in_the_order_of_rank_and_reads_nothing(tmp_path: Path) -> None:
    def refuse(row: dict[str, Any]) -> bytes:
        raise AssertionError("read")

    export_subset(table(TILES).take(list(range(len(TILES)))[::-1]), tmp_path / "out", form="list", read_bytes=refuse)
    assert (tmp_path / "out" / "subset.txt").read_text().splitlines() == [f"/corpus/{name}" for name in TILES]


def test_an_odd_name_is_read_listed_as_it_is_on_disk_and_trained_on(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").rename(path).read_bytes()
    subset = table({"caf\\xe9.png": data}).set_column(1, "uri", pa.array([escaped_name(str(path))]))
    with TileReader(ReadOptions()) as tiles:
        for form in ("list", "folder", "webdataset"):
            export_subset(subset, tmp_path / form, form=form, read_bytes=tiles.read_bytes)
    assert (tmp_path / "list" / "subset.txt").read_bytes() == os.fsencode(path) + b"\n"
    assert contents(tmp_path / "folder")["caf_xe9.png"] == data
    assert tar_samples(tmp_path / "webdataset")["caf\\xe9.png"] == data
    images = tile_set(subset, ReadOptions(), image_size_px=8).images([0])
    assert np.array_equal(images[0].ravel(), np.arange(192))


def test_list_refuses_a_name_of_two_lines(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="one line"):
        export_subset(table({"a\nb": b"x"}), tmp_path / "out", form="list", read_bytes=reader({}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_same_subset_gives_the_same_bytes_whatever_the_order_of_rows(tmp_path: Path, form: str) -> None:
    export_subset(table(TILES), tmp_path / "one", form=form, read_bytes=reader(TILES))
    export_subset(
        table(TILES).take([3, 1, 0, 2, *range(9, 3, -1)]), tmp_path / "two", form=form, read_bytes=reader(TILES)
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != {}


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_subset_and_an_empty_target_are_fine(tmp_path: Path, form: str) -> None:
    (tmp_path / "out").mkdir()
    export_subset(table({}), tmp_path / "out", form=form, read_bytes=reader({}))
    assert (tmp_path / "out").is_dir() and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("form", ["webdataset", "folder"])
def test_a_changed_tile_stops_the_export_by_its_name_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    changed = TILES | {"a/b.jpg": b"\xff\xd8\xffother"}
    with pytest.raises(RunError, match=r"a/b\.jpg has changed"):
        export_subset(table(TILES), tmp_path / "out", form=form, read_bytes=reader(changed))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), TileError("truncated JPEG")])
def test_an_unreadable_tile_is_named(tmp_path: Path, error: Exception) -> None:
    def gone(row: dict[str, Any]) -> bytes:
        raise error

    with pytest.raises(RunError, match=r"cannot read tile a/b\.jpg: (No such file|truncated)"):
        export_subset(table(TILES), tmp_path / "out", form="folder", read_bytes=gone)
    assert list(tmp_path.iterdir()) == []


def test_a_target_with_something_in_it_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        export_subset(table(TILES), tmp_path / "out", form="folder", read_bytes=reader(TILES))
    assert contents(tmp_path) == {"out/precious": b"mine"}


def test_a_target_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the export to"):
        export_subset(table(TILES), tmp_path / "file" / "out", form="folder", read_bytes=reader(TILES))


def test_unknown_forms_and_missing_columns_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="webdataset, folder, list"):
        export_subset(table(TILES), tmp_path / "out", form="zip", read_bytes=reader(TILES))
    with pytest.raises(UsageError, match="no column rank"):
        export_subset(table(TILES).drop_columns("rank"), tmp_path / "out", form="list", read_bytes=reader(TILES))


@given(
    st.lists(
        st.text(st.characters(), min_size=1, max_size=12) | st.sampled_from([*TILES, "s.tif#0,0,64,64"]), unique=True
    )
)
def test_safe_names_stay_inside_never_meet_and_suit_every_file_system(tile_ids: list[str]) -> None:
    names = Names()
    paths = [names.safe(tile_id, "jpg") for tile_id in tile_ids]
    blind = {str(path).casefold() for path in paths}
    assert len(blind) == len(paths)
    assert not blind & {str(up).casefold() for path in paths for up in path.parents}
    for path in paths:
        assert not path.is_absolute() and not {"..", "."} & set(path.parts)
        assert not set('<>:"\\|?*#\0\n') & set(str(path))
        assert all(len(part.encode()) <= 255 and not part.endswith((".", " ")) for part in path.parts)


def test_a_window_is_named_after_its_scene() -> None:
    assert Names().safe("scenes/s.tif#0,256,128,128", "png") == PurePosixPath("scenes/s.tif_0-256-128-128.png")
