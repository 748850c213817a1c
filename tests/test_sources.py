"""Listing: every tile once, under an id that does not depend on order or place."""

import io
import os
import pickle
import random
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
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

from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.sources import Listing, list_corpus, members, suffix_of, wrapping_folders
from rsprune_dagster.corpus.tiles import KINDS, LOCATION
from rsprune_dagster.errors import TileError, UsageError

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
    others = dict.fromkeys(("readme.txt", "sub/notes.txt", ".DS_Store", "sub/._c.jpg", "LICENCE", ".git/x.png"), b"x")
    listing = list_corpus([str(write_tree(tmp_path, {**images, **others}))])
    assert [row["tile_id"] for row in rows_of(listing)] == [".DS_Store", "a.JPEG", "b.jpg", "sub/deep/c.jpg"]
    assert listing.ignored == {".txt": 2, "(hidden)": 1, "(no suffix)": 1}


def test_a_note_of_macos_beside_images_is_quarantined_and_alone_it_is_ignored(tmp_path: Path) -> None:
    note = b"\0\0\0\x01Bud1" + bytes(100)
    root = write_tree(tmp_path, {"a.jpg": jpeg(1), ".DS_Store": note, "empty/.DS_Store": note})
    listing = list_corpus([str(root)])
    rows = {row["tile_id"]: row for row in rows_of(listing)}
    assert sorted(rows) == [".DS_Store", "a.jpg"]
    assert "folder note of macOS" in refusal(rows[".DS_Store"])
    assert listing.ignored == {".DS_Store": 1}


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
    rows = rows_of(list_corpus([str(tmp_path)]))
    assert [row["tile_id"] for row in rows] == ["a/1.jpg", "a/gone.jpg"]
    assert "vanished" in refusal(rows[1])


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
    assert ignored == {".json": 1, "(hidden)": 1}


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
    assert {row["tile_id"] for row in rows} == set(names)
    assert {row["label"] for row in rows} == {"For\\nest", "For est", "For\\test"}
    assert len(md5s(rows)) == 4


def test_a_folder_of_tars_is_labelled_by_their_names(tmp_path: Path) -> None:
    for scene in ("Forest", "River"):
        write_tar(tmp_path / f"{scene}.tar", [("1.jpg", jpeg(1))])
    assert [row["label"] for row in rows_of(list_corpus([str(tmp_path)]), labelled=True)] == ["Forest", "River"]


@given(st.sets(st.lists(st.sampled_from("abc"), max_size=3).map(tuple), min_size=1))
def test_wrapping_never_takes_a_folder_that_tells_images_apart(folders: set[tuple[str, ...]]) -> None:
    wrapping = wrapping_folders(folders)
    assert len({folder[:wrapping] for folder in folders}) == 1
    assert wrapping_folders({("wrap", *folder) for folder in folders}) >= wrapping
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
    ("name", "suffix"), [("A.JPG", ".jpg"), (".DS_Store", "(hidden)"), ("LICENCE", "(no suffix)"), ("a.tar.gz", ".gz")]
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
