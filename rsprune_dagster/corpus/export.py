"""Export of the subset for training loaders: WebDataset tars, a folder of images, or a list of paths.

An export is written to a temporary folder and renamed at the end, so the target is complete or absent. The same
subset gives the same bytes. No tile id can cause a write outside the target.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from rsprune_dagster.corpus.storage import unescaped_name
from rsprune_dagster.utils.errors import RunError, TileError, UsageError
from rsprune_dagster.utils.progress import Progress, silent

Row = dict[str, Any]
"""A row of the subset: tile_id, uri, content_md5, rank, scene and its location (`corpus.tiles.LOCATION`)."""
ReadBytes = Callable[[Row], bytes]
"""Gives a row's encoded image: the tile's own bytes, or for a window of a scene file its encoded pixels."""

COLUMNS = ("tile_id", "uri", "content_md5", "rank", "scene", "kind")
INDEX = "subset.jsonl"
LIST = "subset.txt"
BATCH = 1_000
"""Rows converted to Python objects at a time."""
MAX_NAME_BYTES = 200
"""Most file systems limit names to 255 bytes; the remainder is for a digest and a suffix."""
MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"II+\0", "tif"),
    (b"MM\0+", "tif"),
)
SUFFIXES = {"jpg": (".jpg", ".jpeg"), "png": (".png",), "tif": (".tif", ".tiff")}
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Device names reserved by Windows."""


@dataclass(frozen=True)
class Job:
    """An export: the rows by rank, the target folder, and the function that reads their bytes."""

    subset: pa.Table
    folder: Path
    read_bytes: ReadBytes
    samples_per_tar: int
    advance: Callable[[int], None]

    def rows(self) -> Iterator[Row]:
        """The rows, best first; advances the progress after each."""
        for batch in self.subset.to_batches(max_chunksize=BATCH):
            for row in batch.to_pylist():
                yield row
                self.advance(1)


def export_subset(
    subset: pa.Table,
    out: Path,
    *,
    form: str,
    read_bytes: ReadBytes,
    samples_per_tar: int = 1000,
    progress: Progress = silent,
) -> None:
    """Write the kept tiles to the folder `out` as `form`: webdataset, folder or list.

    subset: one row per kept tile with COLUMNS and its location, in any order; it is written by rank. Raises UsageError
    if the form is unknown, a column is missing or `out` is not empty; RunError if a tile cannot be read, has changed
    since it was pruned, or writing fails.
    """
    out = out.absolute()
    _check(subset, out, form, samples_per_tar)
    with _staged(out) as folder, progress("export", subset.num_rows) as advance:
        FORMS[form](Job(subset.sort_by("rank"), folder, read_bytes, samples_per_tar, advance))


def write_webdataset(job: Job) -> None:
    """Tars of `samples_per_tar` samples, an image and a JSON file each (naming: github.com/webdataset/webdataset).

    The key is the rank: it sorts best first and has no dots, at which WebDataset splits names.
    """
    with ExitStack() as tars:
        for i, row in enumerate(job.rows()):
            if i % job.samples_per_tar == 0:
                tars.close()
                path = job.folder / f"subset-{i // job.samples_per_tar:06d}.tar"
                tar = tars.enter_context(tarfile.open(path, "w", format=tarfile.USTAR_FORMAT))
            data, key = _checked_bytes(row, job.read_bytes), f"{row['rank']:09d}"
            _add(tar, f"{key}.{_extension(row, data)}", data)
            _add(tar, f"{key}.json", json.dumps(_facts(row), sort_keys=True).encode())


def write_folder(job: Job) -> None:
    """Each image under its tile id as a safe relative path, and an index from file to tile."""
    names = Names()
    with open(job.folder / INDEX, "x", encoding="utf-8", newline="\n") as index:
        for row in job.rows():
            data = _checked_bytes(row, job.read_bytes)
            path = names.safe(row["tile_id"], _extension(row, data))
            (job.folder / path).parent.mkdir(parents=True, exist_ok=True)
            with open(job.folder / path, "xb") as file:
                file.write(data)
            index.write(json.dumps({"file": str(path), **_facts(row)}, sort_keys=True) + "\n")


def write_list(job: Job) -> None:
    """One line per tile, best first: the URI of a file, or the tile id of a container's member. Reads no images.

    A path that is not UTF-8 is written as its original bytes, so that it can be opened.
    """
    with open(job.folder / LIST, "x", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for row in job.rows():
            line = unescaped_name(row["uri"]) if row["kind"] == "file" else row["tile_id"]
            if line.splitlines() != [line]:
                raise RunError(f"{line!r} does not fit on one line: rename the tile, or export as webdataset or folder")
            file.write(line + "\n")


FORMS: dict[str, Callable[[Job], None]] = {"webdataset": write_webdataset, "folder": write_folder, "list": write_list}


def _check(subset: pa.Table, out: Path, form: str, samples_per_tar: int) -> None:
    if form not in FORMS:
        raise UsageError(f"unknown export form {form!r}: choose one of {', '.join(FORMS)}")
    missing = [name for name in COLUMNS if name not in subset.column_names]
    if missing:
        raise UsageError(
            f"the subset has no column {', '.join(missing)}: give the subset joined with its tiles' locations"
        )
    if samples_per_tar < 1:
        raise UsageError(f"samples_per_tar is {samples_per_tar}: give 1 or more")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(f"{out} exists and is not an empty folder: name a new one, or remove it first")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to `out` on success and removed on failure."""
    staging = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        os.rename(staging, out)
    except OSError as error:
        raise RunError(f"cannot write the export to {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _checked_bytes(row: Row, read_bytes: ReadBytes) -> bytes:
    """The tile's bytes, checked against their md5. A window's md5 is of its pixels, so its reader checks it."""
    try:
        data = read_bytes(row)
    except OSError as error:
        raise RunError(f"cannot read tile {row['tile_id']}: {error.strerror or error}") from error
    except TileError as error:
        raise RunError(f"cannot read tile {row['tile_id']}: {error}") from error
    if row["kind"] != "window" and hashlib.md5(data, usedforsecurity=False).hexdigest() != row["content_md5"]:
        raise RunError(f"tile {row['tile_id']} has changed since it was pruned (other md5): prune again, then export")
    return data


def _facts(row: Row) -> Row:
    return {"tile_id": row["tile_id"], "scene": row["scene"], "content_md5": row["content_md5"], "rank": row["rank"]}


def _extension(row: Row, data: bytes) -> str:
    """jpg, png or tif by the first bytes; else the suffix of the name; else bin."""
    for magic, extension in MAGIC:
        if data.startswith(magic):
            return extension
    suffix = PurePosixPath(row["tile_id"]).suffix.lower().lstrip(".")
    return suffix if re.fullmatch(r"[a-z0-9]{1,8}", suffix) else "bin"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member with constant owner, mode and time, so that the same subset gives the same tar."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(data), 0, 0o644
    tar.addfile(entry, io.BytesIO(data))


@dataclass(frozen=True)
class Names:
    """Assigns each tile a unique path that is valid on all common file systems, also case-insensitive ones."""

    files: set[str] = field(default_factory=lambda: {INDEX})
    folders: set[str] = field(default_factory=set)

    def safe(self, tile_id: str, extension: str) -> PurePosixPath:
        """The tile id as a safe relative path; a digest of the id if that path is taken."""
        parts = [_safe_part(part) for part in tile_id.split("/") if part not in ("", ".")] or ["_"]
        if not parts[-1].lower().endswith(SUFFIXES.get(extension, (f".{extension}",))):
            parts[-1] += f".{extension}"
        path = PurePosixPath(*parts)
        if self._is_taken(path):
            digest = hashlib.md5(tile_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
            path = PurePosixPath(f"{digest}.{extension}")
        self.files.add(_blind(path))
        self.folders.update(map(_blind, path.parents))
        return path

    def _is_taken(self, path: PurePosixPath) -> bool:
        within = any(_blind(parent) in self.files for parent in path.parents)
        return within or _blind(path) in self.files or _blind(path) in self.folders


def _blind(path: PurePosixPath) -> str:
    """The path as compared by file systems that ignore case and Unicode normalization."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _safe_part(part: str) -> str:
    """A safe file name of limited length: no path, drive or device syntax, no trailing dot or space."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"\\|?*#\ud800-\udfff]', "_", part).replace(",", "-")
    name = re.sub(r"[. ]+$", "_", name)
    if DEVICES.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".") if len(name.rpartition(".")[2]) <= 8 else (name, "", "")
    digest = hashlib.md5(part.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    return f"{stem.encode()[:120].decode(errors='ignore')}-{digest}{dot}{suffix}"
