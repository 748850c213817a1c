"""Folders and files, on local disk or behind any fsspec URL, seen through the few questions a corpus asks.

A local uri is an absolute path; everything else is a URL (`s3://bucket/key`, `memory://name`). In the tables of a
project a path inside the project is relative to it, so that a clone elsewhere has the same tables and finds its tiles.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

MISSING = "missing"
"""The stamp of a broken link, and of a file that vanished while it was listed."""


class Entry(NamedTuple):
    """A child of a folder."""

    name: str
    uri: str
    is_folder: bool


def is_remote(uri: str) -> bool:
    """Whether the uri is a URL that fsspec reads."""
    return "://" in uri


def absolute(source: str) -> str:
    """The uri of a source as the user wrote it: `file://` and relative paths become absolute local paths."""
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    return source.rstrip("/") if is_remote(source) else os.path.abspath(os.path.expanduser(source))


def located(uri: str, base: str) -> str:
    """The uri where a table's one is relative to the folder `base`."""
    return uri if is_remote(uri) else os.path.join(base, uri)


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path in it."""
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


def is_folder(uri: str) -> bool:
    """Whether the uri is a folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not is_remote(uri):
        return stat.S_ISDIR(Path(uri).stat().st_mode)
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # what a long-lived process saw there before does not count
    return bool(fs.info(path)["type"] == "directory")


def entries(uri: str) -> list[Entry]:
    """The children of a folder, sorted by name. Links are followed; a broken one counts as a file."""
    if not is_remote(uri):
        with os.scandir(uri) as found:
            return sorted(Entry(each.name, each.path, each.is_dir()) for each in found)
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    children = [(info["name"].rstrip("/"), info["type"] == "directory") for info in fs.ls(path, detail=True)]
    own = path.rstrip("/")  # S3 keeps an empty object for a folder, which lists itself
    return sorted(
        Entry(name.rsplit("/", 1)[-1], fs.unstrip_protocol(name), folder) for name, folder in children if name != own
    )


def stamps(uri: str) -> list[tuple[str, str]]:
    """Name and stamp (as `size_and_stamp`) of the files in a folder, sorted; one request where it is far away."""
    if not is_remote(uri):
        with os.scandir(uri) as found:
            return sorted((each.name, size_and_stamp(each.path)[1]) for each in found if not each.is_dir())
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    files = [info for info in fs.ls(path, detail=True) if info["type"] != "directory"]
    return sorted((info["name"].rsplit("/", 1)[-1], f"{info['size']}-{_version(info)}") for info in files)


def real_path(uri: str) -> str:
    """What a folder truly is, to notice links that lead in a circle."""
    return uri if is_remote(uri) else os.path.realpath(uri)


def size_and_stamp(uri: str) -> tuple[int | None, str]:
    """Bytes of a file, and a text that changes when they do: size with modification time, or with etag."""
    try:
        if not is_remote(uri):
            status = os.stat(uri)
            return status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
        fs, path = filesystem(uri)
        info = fs.info(path)
        return info["size"], f"{info['size']}-{_version(info)}"
    except FileNotFoundError:
        return None, MISSING


def _version(info: Mapping[str, Any]) -> str:
    names = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
    return next((str(info[name]).strip('"') for name in names if info.get(name)), "")


def open_binary(uri: str) -> IO[bytes]:
    """A seekable binary file, read from the start to the end in large pieces where it is far away."""
    if not is_remote(uri):
        return Path(uri).open("rb")
    fs, path = filesystem(uri)
    handle: IO[bytes] = fs.open(path, "rb", cache_type="readahead", block_size=4 << 20)
    return handle
