"""The one identity of a folder, and DVC's cache that keeps folders by it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.tracking.asset_store import replaced
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.utils.sealed_files import KEY, UNSEALED, sealed

FILES = {"b.txt": b"one", "a/c.parquet": b"two", "a-b": b"", ".hidden": b"three", "a/é ü": b"one"}


def filled(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_digest_is_the_one_that_dvc_writes(tmp_path: Path, dvc: str) -> None:
    filled(tmp_path / "data", {**FILES, "a/__pycache__/c.pyc": b"compiled"})
    (tmp_path / ".dvcignore").write_text("__pycache__\n")
    subprocess.run([dvc, "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    subprocess.run([dvc, "add", "--quiet", "data"], cwd=tmp_path, check=True)
    tree = tree_of(tmp_path / "data")
    assert f"md5: {tree.digest}" in (tmp_path / "data.dvc").read_text()
    assert f"size: {tree.size_bytes}" in (tmp_path / "data.dvc").read_text()
    assert f"nfiles: {tree.n_files}" in (tmp_path / "data.dvc").read_text()
    assert DvcCache.of(tmp_path).path(tree.digest).read_bytes() == tree.listing()


@given(st.permutations(sorted(FILES)))
def test_the_order_of_writing_does_not_matter(tmp_path_factory: pytest.TempPathFactory, order: list[str]) -> None:
    one = filled(tmp_path_factory.mktemp("one"))
    other = filled(tmp_path_factory.mktemp("other"), {name: FILES[name] for name in order})
    assert tree_of(one).digest == tree_of(other).digest


@pytest.mark.parametrize("change", [{"b.txt": b"other"}, {"new": b""}, {"a/c.parquet": b"two "}])
def test_any_change_changes_the_digest(tmp_path: Path, change: dict[str, bytes]) -> None:
    before = tree_of(filled(tmp_path)).digest
    assert tree_of(filled(tmp_path, change)).digest != before


def test_with_a_memory_only_changed_files_are_read(tmp_path: Path) -> None:
    folder, memory = filled(tmp_path / "data"), tmp_path / "memory.json"
    first = tree_of(folder, memory=memory)
    doctored = {**dict.fromkeys(json.loads(memory.read_text()), "f" * 32), KEY: UNSEALED}
    memory.write_bytes(sealed(json.dumps(doctored).encode()))
    assert {entry.md5 for entry in tree_of(folder, memory=memory).entries} == {"f" * 32}  # nothing was read
    (folder / "b.txt").write_bytes(b"changed")
    read = [entry.relpath for entry in tree_of(folder, memory=memory).entries if entry.md5 != "f" * 32]
    assert read == ["b.txt"]
    filled(folder)
    flipped = memory.read_bytes().replace(b"f" * 32, b"f" * 31 + b"e", 1)
    for damaged in (b"not JSON", b"", flipped):
        memory.write_bytes(damaged)
        assert tree_of(folder, memory=memory) == first


def test_what_is_kept_can_be_placed_again(tmp_path: Path) -> None:
    folder, cache = filled(tmp_path / "data"), DvcCache(tmp_path / "cache")
    tree = tree_of(folder)
    cache.keep(folder, tree)
    cache.keep(folder, tree)  # again: nothing to do
    assert cache.place(tree.digest, tmp_path / "placed") == tree == tree_of(tmp_path / "placed")
    assert cache.tree(tree.digest) == tree


def test_cache_and_asset_share_their_disk(tmp_path: Path) -> None:
    folder, cache = filled(tmp_path / "data"), DvcCache(tmp_path / "cache")
    tree = tree_of(folder)
    cache.keep(folder, tree)
    entry = next(entry for entry in tree.entries if entry.relpath == "a/c.parquet")
    kept, used = cache.path(entry.md5).stat(), (folder / entry.relpath).stat()
    assert kept.st_ino == used.st_ino or kept.st_nlink == 1  # a hard link, or a clone where the file system has them


def test_a_rewrite_of_the_asset_never_touches_the_kept_version(tmp_path: Path) -> None:
    layout, cache = Layout.of_project(tmp_path), DvcCache(tmp_path / "cache")
    with replaced(layout, "raw_corpus") as folder:
        filled(folder)
    old = tree_of(layout.folder("raw_corpus"))
    cache.keep(layout.folder("raw_corpus"), old)
    with replaced(layout, "raw_corpus") as folder:
        filled(folder, {"b.txt": b"the next version"})
    cache.place(old.digest, tmp_path / "old")
    assert tree_of(tmp_path / "old") == old


def test_a_version_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder, cache = filled(tmp_path / "data"), DvcCache(tmp_path / "cache")
    tree = tree_of(folder)
    cache.keep(folder, tree)
    cache.path(tree.entries[0].md5).unlink()
    assert cache.tree(tree.digest) is None
    with pytest.raises(RunError, match=r"is not in DVC's cache .* `dvc fetch`"):
        cache.place(tree.digest, tmp_path / "placed")


def test_what_a_killed_process_left_half_written_is_kept_anew(tmp_path: Path) -> None:
    folder, cache = filled(tmp_path / "data"), DvcCache(tmp_path / "cache")
    tree = tree_of(folder)
    for md5 in (tree.digest, *(entry.md5 for entry in tree.entries)):
        cache.path(md5).parent.mkdir(parents=True, exist_ok=True)
        cache.path(md5).write_bytes(b"o")
    cache.keep(folder, tree)
    assert cache.damages(tree.digest) == []
    assert cache.tree(tree.digest) == tree


def test_the_configured_cache_is_used(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(
        "['remote \"far\"']\n    url = s3://bucket\n[cache]\n    dir = ../shared\n"
    )
    assert DvcCache.of(tmp_path).root == tmp_path / "shared" / "files" / "md5"


def test_kept_files_are_read_only(tmp_path: Path) -> None:
    folder, cache = filled(tmp_path / "data"), DvcCache(tmp_path / "cache")
    tree = tree_of(folder)
    cache.keep(folder, tree)
    modes = {os.stat(cache.path(entry.md5)).st_mode & 0o777 for entry in tree.entries}
    assert modes == {0o444}
