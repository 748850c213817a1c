"""Listing: every tile once, under an id that does not depend on order or place."""

import hashlib
import io
import os
import pickle
import random
import socket
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsprune_dagster.corpus import storage, tars
from rsprune_dagster.corpus.decode import MOST_TILE_BYTES, TileReader
from rsprune_dagster.corpus.fingerprint import fingerprint_of
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.sources import Listing, list_corpus, members, n_shared_folders, suffix_of
from rsprune_dagster.corpus.tiles import KINDS, LOCATION
from rsprune_dagster.utils.errors import TileError, UsageError

OPTIONS = ReadOptions()


def jpeg(seed: int, edge_px: int = 32) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (edge_px, edge_px, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG")
    return out.getvalue()


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def rows_of(listing: Listing, *, labelled: bool = False, options: ReadOptions = OPTIONS) -> list[dict[str, Any]]:
    tables = [table for each in listing.containers for table in members(each, options=options, labelled=labelled)]
    assert all(table.schema == LOCATION for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["tile_id"] for row in rows}) == len(rows), "ids must be unique"
    assert {row["kind"] for row in rows} <= set(KINDS)
    return rows


def md5s(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    with TileReader(OPTIONS) as reader:
        return {row["tile_id"]: reader.read_grey(row).content_md5 for row in rows}


def refusal(row: Mapping[str, Any]) -> str:
    with TileReader(OPTIONS) as reader, pytest.raises(TileError) as caught:
        reader.read_grey(row)
    return str(caught.value)


def test_a_folder_lists_images_and_counts_the_rest(tmp_path: Path) -> None:
    images = {name: jpeg(1) for name in ("b.jpg", "a.JPEG", "sub/deep/c.jpg")}
    others = dict.fromkeys(("readme.txt", "sub/notes.txt", ".hidden.png", "LICENCE", ".git/x.png", "c.jp2"), b"x")
    listing = list_corpus([str(write_tree(tmp_path, {**images, **others}))])
    assert [row["tile_id"] for row in rows_of(listing)] == ["a.JPEG", "b.jpg", "sub/deep/c.jpg"]
    assert listing.ignored == {".txt": 2, "(hidden)": 1, "(no suffix)": 1, ".jp2": 1}


def test_what_desktops_leave_is_housekeeping_in_folders_and_tars(tmp_path: Path) -> None:
    left = (".DS_Store", "Thumbs.db", "desktop.ini", "._a.jpg", "__MACOSX/b.jpg")
    files = {"a.jpg": jpeg(1), **dict.fromkeys(left, b"x")}
    listing = list_corpus([str(write_tree(tmp_path / "folder", files))])
    assert [row["tile_id"] for row in rows_of(listing)] == ["a.jpg"]
    assert listing.ignored == {"(housekeeping)": 4}
    assert fingerprint_of([str(tmp_path / "folder")]).n_files == 1
    (tar,) = list_corpus([str(write_tar(tmp_path / "t.tar", list(files.items())))]).containers
    ignored: Counter[str] = Counter()
    assert sum(table.num_rows for table in members(tar, options=OPTIONS, ignored=ignored)) == 1
    assert ignored == {"(housekeeping)": 5}


ODD_NAMES = (
    b"caf\xe9.jpg",
    b"two\nlines.jpg",
    b"back\\x41.jpg",
    "\u2028\x85\x1b[31m.jpg".encode(),
    b"x" * 251 + b".jpg",
)


@given(st.binary(max_size=12) | st.text(alphabet="\\x5cfa0\n\u2028\xe9", max_size=12).map(str.encode))
def test_every_name_is_spelled_on_a_line_and_found_again(name: bytes) -> None:
    true = name.decode("utf-8", "surrogateescape")
    text = storage.escaped_name(true)
    assert text.encode() is not None and text.splitlines() == [text][: len(text)]
    assert storage.unescaped_name(text) == true
    assert storage.located(text, "") == true


@given(
    st.text(alphabet=st.characters(exclude_categories=("C", "Z")), max_size=12).filter(lambda name: "\\x" not in name)
)
def test_an_ordinary_name_is_spelled_as_it_is(name: str) -> None:
    assert storage.escaped_name(name) == name


def test_names_that_are_no_text_are_tiles_in_folders_tars_and_parquet(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in ODD_NAMES]
    files = {name: jpeg(number) for number, name in enumerate(names)}
    folder = write_tree(tmp_path / "folder", files)
    write_tree(folder / os.fsdecode(b"b\xe9"), {"deep.jpg": jpeg(9)})
    own = pa.array(ODD_NAMES[:3], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"image": list(files.values())[:3], "filename": own}), tmp_path / "p.parquet")
    tar = write_tar(tmp_path / "t.tar", list(files.items()), tarfile.PAX_FORMAT)
    listed = {source: md5s(rows_of(list_corpus([str(source)]))) for source in (folder, tar, tmp_path / "p.parquet")}
    spelled = {storage.escaped_name(name): hashlib.md5(data).hexdigest() for name, data in files.items()}
    assert listed.pop(folder) == {**spelled, "b\\xe9/deep.jpg": hashlib.md5(jpeg(9)).hexdigest()}
    assert listed[tar] == {f"t.tar/{name}": content for name, content in spelled.items()}
    assert listed[tmp_path / "p.parquet"] == {f"p.parquet/{name}": spelled[name] for name in list(spelled)[:3]}
    assert "caf\\xe9.jpg" in spelled and "back\\x5cx41.jpg" in spelled
    assert fingerprint_of([str(folder)]).n_files == len(files) + 1


def test_a_scene_file_whose_name_is_no_text_is_cut_into_windows(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "width": 100, "height": 80, "count": 1, "dtype": "uint8", "crs": "EPSG:32632"}
    with rasterio.open(tmp_path / "s.tif", "w", transform=Affine(10, 0, 5e5, 0, -10, 5e6), **profile) as scene:
        scene.write(np.arange(8000, dtype=np.uint8).reshape(1, 80, 100))
    plain = md5s(rows_of(list_corpus([str(tmp_path)])))
    (tmp_path / "s.tif").rename(tmp_path / os.fsdecode(b"s\xe9.tif"))
    odd = md5s(rows_of(list_corpus([str(tmp_path)])))
    assert odd == {"s\\xe9.tif#0,0,100,80": plain["s.tif#0,0,100,80"]}


@pytest.mark.parametrize("name", ["p.jpg", "p.tif", "p.tar", "p.parquet"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: socket.socket(socket.AF_UNIX).bind(path)])
def test_a_pipe_or_socket_is_a_reason_and_nothing_waits_for_it(
    name: str, make: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, {"a.jpg": jpeg(1)})
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(name)
    Path(f"link-{name}").symlink_to(name)
    rows = {row["tile_id"]: row for row in rows_of(list_corpus([str(tmp_path)]))}
    assert sorted(rows) == ["a.jpg", f"link-{name}", name]
    for odd in (rows[name], rows[f"link-{name}"]):
        assert "not a regular file" in refusal(odd)
        assert "not a regular file" in refusal({**odd, "kind": "window", "x": 0, "y": 0, "w": 8, "h": 8})
        assert "not a regular file" in refusal({**odd, "kind": "tar", "offset": 0, "length": 1})
        assert "not a regular file" in refusal({**odd, "kind": "parquet", "offset": 0})
    (alone,) = rows_of(list_corpus([str(tmp_path / name)]))
    assert alone["tile_id"] == name and "not a regular file" in refusal(alone)
    assert fingerprint_of([str(tmp_path)]).n_files == 3


def test_the_order_of_files_on_disk_does_not_matter(tmp_path: Path) -> None:
    names = [f"{folder}/{number}.jpg" for folder in "abc" for number in range(5)]
    trees = []
    for turn in range(2):
        random.Random(turn).shuffle(names)
        trees.append(rows_of(list_corpus([str(write_tree(tmp_path / str(turn), {name: jpeg(0) for name in names}))])))
    assert [row["tile_id"] for row in trees[0]] == [row["tile_id"] for row in trees[1]] == sorted(names)


def test_the_order_of_sources_does_not_matter(tmp_path: Path) -> None:
    sources = [str(write_tree(tmp_path / name, {"1.jpg": jpeg(0)})) for name in ("north/pool", "south/pool", "east")]
    ids = [row["tile_id"] for row in rows_of(list_corpus(sources))]
    assert ids == [row["tile_id"] for row in rows_of(list_corpus(sources[::-1]))]
    assert sorted(ids) == sorted(["north/pool/1.jpg", "south/pool/1.jpg", f"{tmp_path.name}/east/1.jpg"])


def test_a_single_file_is_called_by_its_name(tmp_path: Path) -> None:
    write_tree(tmp_path, {"only.jpg": jpeg(0)})
    assert [row["tile_id"] for row in rows_of(list_corpus([str(tmp_path / "only.jpg")]))] == ["only.jpg"]


def test_links_in_a_circle_end_and_broken_links_are_quarantined(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/1.jpg": jpeg(1)})
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for name in ("self.jpg", "self.tif", "self.tar", "self.parquet"):
        (tmp_path / "a" / name).symlink_to(name)
    rows = {row["tile_id"]: row for row in rows_of(list_corpus([str(tmp_path)]))}
    assert sorted(rows) == [
        f"a/{name}" for name in ("1.jpg", "gone.jpg", "self.jpg", "self.parquet", "self.tar", "self.tif")
    ]
    assert all("vanished" in refusal(row) for tile_id, row in rows.items() if tile_id != "a/1.jpg")


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_gives_the_same_content_as_the_folder(tmp_path: Path, tar_format: int) -> None:
    long = "x" * 90 + "/" + ("y" * 60 if tar_format == tarfile.USTAR_FORMAT else "é" * 60 + "/" + "z" * 60)
    files = {f"{folder}/{number}.jpg": jpeg(number) for number in range(3) for folder in ("pool", long)}
    folder = rows_of(list_corpus([str(write_tree(tmp_path / "folder", files))]))
    tar = rows_of(list_corpus([str(write_tar(tmp_path / "name.tar", list(files.items()), tar_format))]))
    assert md5s(tar) == {f"name.tar/{tile_id}": content for tile_id, content in md5s(folder).items()}


def test_a_tar_counts_what_is_no_image_and_keeps_repeated_names(tmp_path: Path) -> None:
    files = [("a~1.jpg", jpeg(1)), ("a~1.jpg", jpeg(2)), ("a.json", b"{}"), ("._a.jpg", b"junk")]
    (container,) = list_corpus([str(write_tar(tmp_path / "t.tar", files))]).containers
    ignored: Counter[str] = Counter()
    rows = [row for table in members(container, options=OPTIONS, ignored=ignored) for row in table.to_pylist()]
    assert [row["tile_id"] for row in rows] == ["t.tar/a~1.jpg", "t.tar/a~1.jpg~2"]
    assert len(set(md5s(rows).values())) == 2
    assert ignored == {".json": 1, "(housekeeping)": 1}


@pytest.mark.parametrize("names", [["a.jpg", "a.jpg", "a.jpg~2"], ["a.jpg~2", "a.jpg", "a.jpg"], ["a.jpg"] * 3])
def test_repeated_names_never_meet_a_name_that_ends_alike(names: list[str]) -> None:
    ids = [own_id for own_id, _ in tars.named_once(tars.Member(name, 0, 0, 0) for name in names)]
    assert len(set(ids)) == 3
    assert ids[0] == names[0]


def test_a_hard_link_in_a_tar_is_the_file_it_leads_to(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(jpeg(1))
        archive.addfile(info, io.BytesIO(jpeg(1)))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        archive.addfile(link)
    contents = md5s(rows_of(list_corpus([str(tmp_path / "t.tar")])))
    assert contents["t.tar/a.jpg"] == contents["t.tar/b.jpg"]


def test_a_tar_that_is_cut_off_keeps_its_head_and_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [(f"{number}.jpg", jpeg(number)) for number in range(3)])
    whole = rows_of(list_corpus([str(path)]))
    path.write_bytes(path.read_bytes()[: whole[2]["offset"] + 100])
    rows = rows_of(list_corpus([str(path)]))
    assert md5s(rows[:2]) == {
        row["tile_id"]: content for row, content in zip(rows, md5s(rows[:2]).values(), strict=False)
    }
    assert "truncated" in refusal(rows[2])
    assert rows[3]["tile_id"] == "t.tar"
    assert "damaged or cut off" in refusal(rows[3])


def member(name: str, data: bytes = b"", size: int | None = None, **values: Any) -> bytes:
    """A member of a GNU tar, with a header that may declare another size; without the padding if it lies."""
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    for key, value in values.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


END = bytes(1024)


@pytest.mark.parametrize("size", [-1, -512, -1024, -(2**40), 3 << 30, 2**62, 2**80])
def test_a_size_that_lies_is_damage_and_costs_no_memory(size: int, tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(member("a.jpg", jpeg(1)) + member("b.jpg", jpeg(2), size) + END)
    tracemalloc.start()
    rows = {row["tile_id"]: row for row in rows_of(list_corpus([str(tmp_path / "t.tar")]))}
    assert sorted(rows) in (["t.tar", "t.tar/a.jpg"], ["t.tar", "t.tar/a.jpg", "t.tar/b.jpg"])
    assert list(md5s([rows.pop("t.tar/a.jpg")]).values()) == [hashlib.md5(jpeg(1)).hexdigest()]
    assert "damaged or cut off" in refusal(rows.pop("t.tar"))
    assert all(("oversized" if size > MOST_TILE_BYTES else "truncated") in refusal(row) for row in rows.values())
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_declares_gigabytes_is_damage_and_costs_no_memory(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(member("a.jpg", jpeg(1)) + member("long", b"", 3 << 30, type=kind))
    os.truncate(path, 4 << 30)  # the bytes are there: zeros that take no place on disk
    tracemalloc.start()
    rows = rows_of(list_corpus([str(path)]))
    assert [row["tile_id"] for row in rows] == ["t.tar/a.jpg", "t.tar"]
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_header_full_of_digits_or_within_a_thousand_others_is_damage(tmp_path: Path) -> None:
    digits = member("pax", b"9" * 60_000, type=tarfile.XHDTYPE) + member("b.jpg", jpeg(1))
    nested = member("long", b"x", type=tarfile.GNUTYPE_LONGNAME) * 5000 + member("b.jpg", jpeg(1))
    for number, after in enumerate((digits, nested)):
        path = write_tree(tmp_path, {f"{number}.tar": member("a.jpg", jpeg(1)) + after + END}) / f"{number}.tar"
        assert [row["tile_id"] for row in rows_of(list_corpus([str(path)]))] == [f"{number}.tar/a.jpg", f"{number}.tar"]


def test_a_header_that_is_damaged_between_two_members_is_seen(tmp_path: Path) -> None:
    headers = [member(f"{number}.jpg", jpeg(number)) for number in range(3)]
    (tmp_path / "t.tar").write_bytes(headers[0] + b"?" + headers[1][1:] + headers[2] + END)
    assert [row["tile_id"] for row in rows_of(list_corpus([str(tmp_path / "t.tar")]))] == ["t.tar/0.jpg", "t.tar"]


def test_links_in_a_tar_that_lead_nowhere_are_quarantined_and_a_cut_does_not_hide_them(tmp_path: Path) -> None:
    link = {"type": tarfile.LNKTYPE}
    path = tmp_path / "t.tar"
    path.write_bytes(
        member("a.jpg", jpeg(1))
        + member("b.jpg", linkname="a.jpg", **link)
        + member("c.jpg", linkname="gone.jpg", **link)
        + member("d.jpg", linkname="a.jpg", type=tarfile.SYMTYPE)
        + member("e.jpg", type=tarfile.FIFOTYPE)
        + member("f.jpg", jpeg(2))[:700]
    )
    rows = {row["tile_id"].removeprefix("t.tar/"): row for row in rows_of(list_corpus([str(path)]))}
    assert sorted(rows) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "t.tar"]
    assert len(set(md5s([rows["a.jpg"], rows["b.jpg"]]).values())) == 1
    assert all("no bytes of its own" in refusal(rows[name]) for name in ("c.jpg", "d.jpg", "e.jpg"))
    assert "truncated" in refusal(rows["f.jpg"]) and "damaged or cut off" in refusal(rows["t.tar"])


@pytest.mark.parametrize("name", ["t.tar", "p.parquet"])
def test_an_archive_that_is_an_lfs_pointer_says_so(tmp_path: Path, name: str) -> None:
    write_tree(tmp_path, {name: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n"})
    (row,) = rows_of(list_corpus([str(tmp_path)]))
    assert row["tile_id"] == name
    assert "git lfs pull" in refusal(row)


def test_a_compressed_tar_says_what_to_do(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as archive:
        archive.add(write_tree(tmp_path, {"a.jpg": jpeg(1)}) / "a.jpg", "a.jpg")
    rows = rows_of(list_corpus([str(tmp_path / "t.tar.gz")]))
    assert [row["tile_id"] for row in rows] == ["t.tar.gz"]
    assert "decompress" in refusal(rows[0])


def test_appending_to_a_tar_changes_no_older_row(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2))])
    before = rows_of(list_corpus([str(path)]))
    with tarfile.open(path, "a") as archive:
        archive.add(write_tree(tmp_path, {"3.jpg": jpeg(3)}) / "3.jpg", "3.jpg")
    assert rows_of(list_corpus([str(path)]))[:2] == before


def test_parquet_rows_with_plain_bytes_and_hugging_face_structs(tmp_path: Path) -> None:
    images = [jpeg(number) for number in range(5)]
    plain = pa.table({"jpg": images, "filename": [f"{number}.jpg" for number in range(5)]})
    pq.write_table(plain, tmp_path / "plain.parquet", row_group_size=2)
    structs = pa.table({"image": [{"bytes": image, "path": None} for image in images], "label": [0, 1, 0, 1, 0]})
    features = b'{"info": {"features": {"label": {"names": ["sea", "city"]}}}}'
    pq.write_table(structs.replace_schema_metadata({b"huggingface": features}), tmp_path / "hf.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "metadata.parquet")
    listing = list_corpus([str(tmp_path)])
    rows = rows_of(listing, labelled=True)
    assert listing.ignored == {".parquet without image bytes": 1}
    assert [row["tile_id"] for row in rows] == [
        *(f"hf.parquet/{number}" for number in range(5)),
        *(f"plain.parquet/{number}.jpg" for number in range(5)),
    ]
    assert [row["label"] for row in rows[:5]] == ["sea", "city", "sea", "city", "sea"]
    contents = list(md5s(rows).values())
    assert contents[:5] == contents[5:]
    assert len(set(contents)) == 5


def test_parquet_rows_are_read_in_any_order(tmp_path: Path) -> None:
    images = [jpeg(number, 8) for number in range(300)]
    pq.write_table(pa.table({"image": images}), tmp_path / "p.parquet", row_group_size=140)
    rows = rows_of(list_corpus([str(tmp_path / "p.parquet")]))
    order = list(range(300)) + random.Random(0).sample(range(300), 40)
    with TileReader(OPTIONS) as reader:
        assert [reader.read_bytes(rows[number]) for number in order] == [images[number] for number in order]


def test_repeated_names_in_parquet_fall_back_to_row_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(1), jpeg(2)], "filename": ["a", "a"]}), tmp_path / "p.parquet")
    rows = rows_of(list_corpus([str(tmp_path / "p.parquet")]))
    assert [row["tile_id"] for row in rows] == ["p.parquet/0", "p.parquet/1"]


def test_a_damaged_parquet_and_a_null_row_are_quarantined(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    pq.write_table(pa.table({"image": pa.array([None], pa.binary())}), tmp_path / "null.parquet")
    rows = rows_of(list_corpus([str(tmp_path)]))
    assert [row["tile_id"] for row in rows] == ["bad.parquet", "null.parquet/0"]
    assert "damaged" in refusal(rows[0])
    assert "zero bytes" in refusal(rows[1])


def test_a_parquet_file_with_any_damaged_byte_is_rows_or_reasons(tmp_path: Path) -> None:
    images = [jpeg(number, 8) for number in range(4)]
    pq.write_table(pa.table({"image": images, "label": list("abca")}), tmp_path / "p.parquet")
    data = (tmp_path / "p.parquet").read_bytes()
    for at in range(len(data) - 250, len(data)):
        (tmp_path / "p.parquet").write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        for row in listed_or_told(tmp_path / "p.parquet"):
            with TileReader(OPTIONS) as reader, suppress(TileError):
                reader.read_grey(row)


def listed_or_told(path: Path) -> list[dict[str, Any]]:
    try:
        return rows_of(list_corpus([str(path)]), labelled=True)
    except UsageError as error:
        assert "\n" not in str(error)
        return []


IMAGES = [jpeg(number, 8) for number in range(2)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a"], ["b"]]),
        pa.array([{"x": 1}, None]),
        pa.array([b"\xff", b"\xfe"], pa.binary()).cast(pa.string(), safe=False),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([True, False]),
        pa.array([1.5, None]),
        pa.nulls(2),
        pa.array(["two\nlines", "b"]),
    ],
    ids=["list", "struct", "not-utf8", "dictionary", "bool", "float", "null", "lines"],
)
@pytest.mark.parametrize("name", ["label", "path", "x.jpg"])
def test_a_parquet_column_of_any_type_beside_the_images(name: str, column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({name: column, "img.jpg": IMAGES}), tmp_path / "p.parquet")
    rows = rows_of(list_corpus([str(tmp_path / "p.parquet")]), labelled=True)
    assert list(md5s(rows).values()) == [hashlib.md5(image).hexdigest() for image in IMAGES]
    assert all(text.splitlines() == [text] for row in rows for text in (row["tile_id"], row["label"] or "-"))


def columns(*names: str) -> pa.Table:
    return pa.table({name: [jpeg(len(name), 8)] for name in names})


@pytest.mark.parametrize(
    ("names", "wanted", "read"),
    [
        (["mask", "image"], [], "image"),
        (["thumbnail", "image_bytes"], [], "image_bytes"),
        (["thumb"], [], "thumb"),
        (["image", "msi"], ["msi"], "msi"),
        (["image", "rgb"], ["nir", "rgb"], "rgb"),
    ],
)
def test_which_of_several_parquet_columns_is_read(
    names: list[str], wanted: list[str], read: str, tmp_path: Path
) -> None:
    pq.write_table(columns(*names), tmp_path / "p.parquet")
    options = ReadOptions(image_columns=tuple(wanted))
    (container,) = list_corpus([str(tmp_path / "p.parquet")]).containers
    ignored: Counter[str] = Counter()
    (row,) = (row for table in members(container, options=options, ignored=ignored) for row in table.to_pylist())
    with TileReader(options) as reader:
        assert reader.read_bytes(row) == columns(read).column(read)[0].as_py()
    assert ignored == {f".parquet column {name}": 1 for name in names if name != read}


@pytest.mark.parametrize(
    ("names", "wanted", "said"),
    [
        (["mask", "rgb"], [], "mask, rgb"),
        (["tif", "png"], [], "tif, png"),
        (["image", "mask"], ["imgae"], "image, mask"),
    ],
)
def test_a_parquet_file_that_leaves_its_images_open_is_refused_with_its_columns(
    names: list[str], wanted: list[str], said: str, tmp_path: Path
) -> None:
    pq.write_table(columns(*names), tmp_path / "p.parquet")
    with pytest.raises(UsageError, match=rf"p\.parquet .* are {said}; name the one to read in corpus\.image_columns"):
        rows_of(list_corpus([str(tmp_path)]), options=ReadOptions(image_columns=tuple(wanted)))


@pytest.mark.parametrize(
    "beside",
    [
        {"cls": b"3\n"},
        {"cls": b"3", "json": b'{"label": "other"}'},
        {"json": b'{"label": 3}'},
        {"json": b'{"x": 0, "class": "3"}'},
    ],
)
@pytest.mark.parametrize("folder", ["", "train/"])
def test_a_webdataset_is_labelled_by_what_stands_beside_an_image(
    folder: str, beside: dict[str, bytes], tmp_path: Path
) -> None:
    sample = [(f"{folder}0.{kind}", data) for kind, data in {"jpg": jpeg(0), **beside}.items()]
    plain = [(f"{folder}1.rgb.jpg", jpeg(1)), (f"{folder}1.cls", b"sea"), (f"{folder}2.jpg", jpeg(2))]
    write_tar(tmp_path / "ref-000000.tar", [*sample, *plain])
    rows = rows_of(list_corpus([str(tmp_path / "ref-000000.tar")], labelled=True), labelled=True)
    assert [row["label"] for row in rows] == ["3", "sea", None]
    assert [row["label"] for row in rows_of(list_corpus([str(tmp_path / "ref-000000.tar")]))] == [None] * 3


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b'{"label": null}', b"\xff", b'{"label": [1]}', b" "])
def test_a_shard_without_labels_is_no_reference(content: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "ref-000000.tar", [("0.jpg", jpeg(0)), ("0.json", content), ("other.cls", b"3")])
    with pytest.raises(UsageError, match=r"no labels in the reference .*ref-000000\.tar: expected KEY\.cls"):
        rows_of(list_corpus([str(tmp_path)], labelled=True), labelled=True)


@pytest.mark.parametrize("wrap", ["", "labelled/", "one/two/"])
def test_labels_with_and_without_wrapping_folders(tmp_path: Path, wrap: str) -> None:
    files = {f"{wrap}{scene}/{year}/1.jpg": jpeg(1) for scene in ("Forest", "River") for year in (2019, 2020)}
    tree = rows_of(list_corpus([str(write_tree(tmp_path / "ref", files))], labelled=True), labelled=True)
    tar = rows_of(list_corpus([str(write_tar(tmp_path / "ref.tar", list(files.items())))]), labelled=True)
    assert [row["label"] for row in tree] == [row["label"] for row in tar] == ["Forest"] * 2 + ["River"] * 2


def test_names_with_line_breaks_stay_apart_and_their_scenes_can_be_drawn(tmp_path: Path) -> None:
    names = ["For\nest/1\n2.jpg", "For\nest/1 2.jpg", "For est/1\x012.jpg", "For\test/12.jpg"]
    listing = list_corpus([str(write_tree(tmp_path, {name: jpeg(1) for name in names}))], labelled=True)
    rows = rows_of(listing, labelled=True)
    assert {row["tile_id"] for row in rows} == {storage.escaped_name(name) for name in names}
    assert {row["label"] for row in rows} == {r"For\x0aest", "For est", r"For\x09est"}
    assert len(md5s(rows)) == 4


def test_a_folder_of_tars_is_labelled_by_their_names(tmp_path: Path) -> None:
    for scene in ("Forest", "River"):
        write_tar(tmp_path / f"{scene}.tar", [("1.jpg", jpeg(1))])
    assert [row["label"] for row in rows_of(list_corpus([str(tmp_path)]), labelled=True)] == ["Forest", "River"]


@given(st.sets(st.lists(st.sampled_from("abc"), max_size=3).map(tuple), min_size=1))
def test_wrapping_never_takes_a_folder_that_tells_images_apart(folders: set[tuple[str, ...]]) -> None:
    wrapping = n_shared_folders(folders)
    assert len({folder[:wrapping] for folder in folders}) == 1
    assert n_shared_folders({("wrap", *folder) for folder in folders}) >= wrapping
    assert all(len(folder) > wrapping for folder in folders) or wrapping == 0


def test_an_unlabelled_container_has_no_labels(tmp_path: Path) -> None:
    listing = list_corpus([str(write_tree(tmp_path, {"a/1.jpg": jpeg(1), "b/1.jpg": jpeg(2)}))])
    assert [row["label"] for row in rows_of(listing)] == [None, None]


def test_one_line_for_every_usage_error(tmp_path: Path) -> None:
    empty = write_tree(tmp_path / "empty", {"readme.txt": b"x"})
    flat = write_tree(tmp_path / "flat", {"1.jpg": jpeg(1)})
    pq.write_table(pa.table({"x": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(UsageError, match="no such file or folder"):
        list_corpus([str(tmp_path / "missing")])
    with pytest.raises(UsageError, match=r"empty corpus.*1 x \.txt"):
        list_corpus([str(empty)])
    with pytest.raises(UsageError, match="empty corpus: no source"):
        list_corpus([])
    with pytest.raises(UsageError, match="no corpus"):
        list_corpus([str(empty / "readme.txt")])
    with pytest.raises(UsageError, match="no image bytes"):
        list_corpus([str(tmp_path / "numbers.parquet")])
    with pytest.raises(UsageError, match="cannot read nosuch://x"):
        list_corpus(["nosuch://x"])
    with pytest.raises(UsageError, match="given twice"):
        list_corpus([str(flat), str(flat)])
    with pytest.raises(UsageError, match="one folder per scene"):
        list_corpus([str(flat)], labelled=True)


@pytest.mark.parametrize("name", ["e.tar", "e.parquet", "e.jpg"])
def test_an_empty_file_is_a_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    (row,) = rows_of(list_corpus([str(tmp_path / name)]))
    assert row["tile_id"] == name
    assert any(word in refusal(row) for word in ("damaged", "zero bytes"))


def test_a_changed_file_changes_its_stamp_only(tmp_path: Path) -> None:
    write_tree(tmp_path, {"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    before = rows_of(list_corpus([str(tmp_path)]))
    os.utime(tmp_path / "2.jpg", ns=(1, 1))
    after = rows_of(list_corpus([str(tmp_path)]))
    assert after[0] == before[0]
    assert {key for key in after[1] if after[1][key] != before[1][key]} == {"stamp"}


def test_containers_cross_process_borders() -> None:
    with fsspec.open("memory://crossing/1.jpg", "wb") as file:
        file.write(jpeg(1))
    (container,) = list_corpus(["memory://crossing"]).containers
    assert pickle.loads(pickle.dumps((container, OPTIONS))) == (container, OPTIONS)


def test_any_fsspec_url_gives_what_the_disk_gives(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "disk", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2), "notes.txt": b"x"})
    write_tar(tree / "t.tar", [("3.jpg", jpeg(3)), ("4.jpg", jpeg(4))])
    pq.write_table(pa.table({"image": [jpeg(5)]}), tree / "p.parquet")
    profile = {"driver": "GTiff", "width": 100, "height": 80, "count": 1, "dtype": "uint8"}
    with rasterio.open(
        tree / "s.tif", "w", crs="EPSG:32632", transform=Affine(10, 0, 5e5, 0, -10, 5e6), **profile
    ) as scene:
        scene.write(np.arange(8000, dtype=np.uint8).reshape(1, 80, 100))
    fsspec.filesystem("memory").put(str(tree), "/far", recursive=True)
    here, far = (list_corpus([source]) for source in (f"file://{tree}", "memory://far"))
    assert here.ignored == far.ignored == {".txt": 1}
    assert md5s(rows_of(here)) == md5s(rows_of(far))
    assert len(rows_of(far)) == 6


def test_s3_gives_what_the_disk_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fs = fsspec.filesystem("s3", skip_instance_cache=False)
        tree = write_tree(tmp_path / "disk", {"a/1.jpg": jpeg(1)})
        write_tar(tree / "t.tar", [("3.jpg", jpeg(3))])
        fs.mkdir("bucket")
        fs.put(str(tree), "bucket/far", recursive=True)
        here, far = (rows_of(list_corpus([source])) for source in (str(tree), "s3://bucket/far"))
        assert md5s(here) == md5s(far)
        assert all(row["uri"].startswith("s3://bucket/far/") for row in far)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("A.JPG", ".jpg"),
        (".DS_Store", "(housekeeping)"),
        (".a.jpg", "(hidden)"),
        ("LICENCE", "(no suffix)"),
        ("a.tar.gz", ".gz"),
    ],
)
def test_suffixes(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_every_member_of_the_real_pool_is_listed_and_decodes(shared_data: Path) -> None:
    rows = rows_of(list_corpus([str(shared_data / "eurosat" / "pool.tar")]))
    assert len(rows) == 15606
    assert rows[0]["tile_id"] == "pool.tar/pool/000000.jpg"
    contents = md5s(rows)
    assert len(set(contents.values())) == 15300


def test_the_real_reference_has_its_ten_scenes(shared_data: Path) -> None:
    folder = rows_of(list_corpus([str(shared_data / "eurosat" / "reference")], labelled=True), labelled=True)
    tar = rows_of(list_corpus([str(shared_data / "eurosat" / "labelled.tar")]), labelled=True)
    assert set(Counter(row["label"] for row in folder).values()) == {200}
    assert {row["label"] for row in folder} == {row["label"] for row in tar}
    assert (len(folder), len(tar)) == (2000, 7700)
