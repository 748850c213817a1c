"""Known tiles stay in their shard; new ones cost only themselves; results never show how tiles were grouped."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rsprune_dagster.corpus import shards as shards_module
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.shards import Shard, ShardCache
from rsprune_dagster.corpus.sources import list_corpus
from rsprune_dagster.stages.raw_corpus import Scanner, ScanReport, scan
from rsprune_dagster.utils.atomic_write import atomic_write, remove_drafts
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.utils.progress import silent
from rsprune_dagster.utils.sealed_files import is_sealed


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number:03d}.png").write_bytes(png(number))
    return folder


def scanner(tmp_path: Path, *, shard_size: int = 8, workers: int = 1) -> Scanner:
    return Scanner(ReadOptions(), shard_size, ShardCache(tmp_path / "cache"), workers, silent)


def run(sources: list[str], folder: Path, scan_with: Scanner) -> ScanReport:
    folder.mkdir(parents=True)
    return scan(sources, folder, scan_with, labelled=False, label="test")


def keys(tmp_path: Path, corpus: Path) -> list[str]:
    shards, _ = scanner(tmp_path).shards(list_corpus([str(corpus)]), labelled=False)
    return [shard.key for shard in shards]


def test_every_tile_is_in_one_shard(tmp_path: Path, corpus: Path) -> None:
    shards, _ = scanner(tmp_path).shards(list_corpus([str(corpus)]), labelled=False)
    ids = [tile_id for shard in shards for tile_id in shard.rows().column("tile_id").to_pylist()]
    assert sorted(ids) == [f"{number:03d}.png" for number in range(50)]
    assert max(shard.n_tiles for shard in shards) == 8


def test_new_files_go_to_new_shards(tmp_path: Path, corpus: Path) -> None:
    before = keys(tmp_path, corpus)
    for number in range(5):
        (corpus / f"{number:03d}-new.png").write_bytes(png(100 + number))  # between the old names
    after = keys(tmp_path, corpus)
    assert set(before) < set(after)
    assert len(after) == len(before) + 1


def test_a_second_scan_computes_nothing_and_new_files_only_themselves(tmp_path: Path, corpus: Path) -> None:
    first = run([str(corpus)], tmp_path / "one", scanner(tmp_path))
    again = run([str(corpus)], tmp_path / "two", scanner(tmp_path))
    (corpus / "new.png").write_bytes(png(1000))
    more = run([str(corpus)], tmp_path / "three", scanner(tmp_path))
    assert (first.n_shards_computed, again.n_shards_computed, more.n_shards_computed) == (7, 0, 1)
    assert (first.n_tiles, again.n_tiles, more.n_tiles) == (50, 50, 51)


def test_a_changed_file_is_read_again(tmp_path: Path, corpus: Path) -> None:
    run([str(corpus)], tmp_path / "one", scanner(tmp_path))
    (corpus / "007.png").write_bytes(png(77))
    run([str(corpus)], tmp_path / "two", scanner(tmp_path))
    assert md5_of(tmp_path / "one", "007.png") != md5_of(tmp_path / "two", "007.png")
    assert md5_of(tmp_path / "one", "008.png") == md5_of(tmp_path / "two", "008.png")


def test_a_vanished_file_is_gone(tmp_path: Path, corpus: Path) -> None:
    run([str(corpus)], tmp_path / "one", scanner(tmp_path))
    (corpus / "007.png").unlink()
    assert run([str(corpus)], tmp_path / "two", scanner(tmp_path)).n_tiles == 49


def write_tar(path: Path, seeds: list[int]) -> None:
    """All members look the same from outside: the same length of name, no mtime."""
    with tarfile.open(path, "w") as tar:
        for position, seed in enumerate(seeds):
            data = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(data).save(encoded, "BMP")
            member = tarfile.TarInfo(f"{position:03d}.bmp")
            member.size = len(encoded.getvalue())
            encoded.seek(0)
            tar.addfile(member, encoded)


def test_a_tar_rewritten_with_equal_headers_is_noticed(tmp_path: Path) -> None:
    tar = tmp_path / "tiles.tar"
    write_tar(tar, list(range(20)))
    run([str(tar)], tmp_path / "one", scanner(tmp_path))
    write_tar(tar, [*range(10), 99, *range(11, 20)])
    os.utime(tar, ns=(1, 1))
    second = run([str(tar)], tmp_path / "two", scanner(tmp_path))
    assert md5_of(tmp_path / "one", "tiles.tar/010.bmp") != md5_of(tmp_path / "two", "tiles.tar/010.bmp")
    assert second.n_shards_computed == 1


def test_members_appended_to_a_tar_cost_only_themselves(tmp_path: Path) -> None:
    tar = tmp_path / "tiles.tar"
    write_tar(tar, list(range(20)))
    run([str(tar)], tmp_path / "one", scanner(tmp_path))
    write_tar(tar, list(range(24)))
    assert run([str(tar)], tmp_path / "two", scanner(tmp_path)).n_shards_computed == 1


@pytest.mark.parametrize(("shard_size", "workers"), [(1, 1), (7, 2), (64, 1)])
def test_grouping_and_threads_do_not_show(tmp_path: Path, corpus: Path, shard_size: int, workers: int) -> None:
    run([str(corpus)], tmp_path / "one", scanner(tmp_path))
    other = scanner(tmp_path / "elsewhere", shard_size=shard_size, workers=workers)
    run([str(corpus)], tmp_path / "two", other)
    for name in ("manifest.parquet", "quarantine.parquet", "corpus.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_count_of_ignored_files_survives_the_cache(tmp_path: Path) -> None:
    tar = tmp_path / "tiles.tar"
    write_tar(tar, list(range(3)))
    with tarfile.open(tar, "a") as archive:
        archive.addfile(tarfile.TarInfo("notes.txt"))
    reports = [run([str(tar)], tmp_path / name, scanner(tmp_path)) for name in ("one", "two")]
    assert [report.n_ignored for report in reports] == [1, 1]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "file"
    with atomic_write(target) as draft:
        draft.write_text("old")
    with pytest.raises(ValueError, match="boom"), atomic_write(target) as draft:
        draft.write_text("half")
        raise ValueError("boom")
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    replace, fsync = os.replace, os.fsync

    def replaced(draft: Path, target: Path) -> None:
        calls.append(("replace", target.name))
        replace(draft, target)

    def synced(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".draft")[1]))
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "fsync", synced)
    with atomic_write(tmp_path / "file") as draft:
        draft.write_text("new")
    assert calls == [("fsync", ".draft"), ("replace", "file"), ("fsync", "")]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No space left on device; free some space"), atomic_write(tmp_path / "file"):
        raise OSError(28, "No space left on device")


def test_drafts_of_the_dead_are_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    dead = tmp_path / ".file.999999999-ab.draft"
    living = tmp_path / f".file.{os.getpid()}-ab.draft"
    dead.touch()
    living.touch()
    assert remove_drafts(tmp_path) == 1
    assert living.exists()


@pytest.mark.parametrize("sources", ["folder", "tar"])
@pytest.mark.parametrize("kept", ["layout", "shards", "work/scan"])
def test_damaged_work_is_done_again_to_the_same_bytes(
    tmp_path: Path, corpus: Path, sources: str, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut off, emptied, overwritten with zeros, or with a single bit flipped."""
    if sources == "tar":
        write_tar(tmp_path / "tiles.tar", list(range(20)))
    source = str(corpus if sources == "folder" else tmp_path / "tiles.tar")
    run([source], tmp_path / "before", scanner(tmp_path))
    path = next(path for path in sorted((tmp_path / "cache" / kept).rglob("*")) if path.is_file())
    whole = path.read_bytes()
    middle, last = len(whole) // 2, len(whole) - 1
    for number, damaged in enumerate(
        (whole[:middle], b"", bytes(len(whole)), flipped(whole, 0), flipped(whole, middle), flipped(whole, last))
    ):
        path.write_bytes(damaged)
        caplog.clear()
        report = run([source], tmp_path / f"after-{number}", scanner(tmp_path))
        assert report.n_shards_computed == (kept == "work/scan")
        assert [record.getMessage() for record in caplog.records] == [f"{path} is damaged: its work is done again"]
        assert path.read_bytes() == whole
        for name in ("manifest.parquet", "quarantine.parquet", "corpus.json"):
            assert (tmp_path / "before" / name).read_bytes() == (tmp_path / f"after-{number}" / name).read_bytes()


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path, corpus: Path) -> None:
    run([str(corpus)], tmp_path / "one", scanner(tmp_path))
    for kept in ("layout", "shards", "work/scan"):
        path = next(path for path in (tmp_path / "cache" / kept).rglob("*") if path.is_file())
        whole = path.read_bytes()
        assert is_sealed(whole)
        assert not [bit for bit in range(0, 8 * len(whole), 61) if is_sealed(flipped(whole, bit // 8, bit % 8))]


def flipped(data: bytes, byte: int, bit: int = 0) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


def test_a_shard_is_its_rows(tmp_path: Path, corpus: Path) -> None:
    shards, _ = scanner(tmp_path).shards(list_corpus([str(corpus)]), labelled=False)
    shard: Shard = shards[0]
    assert shard.rows().num_rows == shard.n_tiles
    assert shards_module.digest({"b": 1, "a": [1.5]}) == shards_module.digest({"a": [1.5], "b": 1})


def md5_of(folder: Path, tile_id: str) -> str:
    table = pq.read_table(folder / "manifest.parquet", filters=[("tile_id", "=", tile_id)])
    return str(table.column("content_md5")[0])
