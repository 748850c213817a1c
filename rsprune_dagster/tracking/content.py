"""The identity of a folder: the hash that DVC writes in dvc.lock, computed in one read.

The memory of md5s goes by inode, size and modification time, as a version is hashed in a staging folder and read again
at another path. DVC's own (`dvc_data.hashfile.state`) goes by path, and carries no checksum of itself.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.sealed_files import KEY, UNSEALED, is_sealed, sealed

IGNORED = "__pycache__"
"""A folder that `.dvcignore` has DVC pass over."""


@dataclass(frozen=True)
class Entry:
    """A file of a folder: its path relative to it, with forward slashes, its md5 and its size."""

    relpath: str
    md5: str
    size_bytes: int


@dataclass(frozen=True)
class Tree:
    """What a folder holds, in the order of the paths."""

    entries: tuple[Entry, ...]

    def listing(self) -> bytes:
        """The folder as DVC's cache keeps it: JSON, a list of md5 and path of each file."""
        rows = [{"md5": entry.md5, "relpath": entry.relpath} for entry in self.entries]
        return json.dumps(rows, sort_keys=True).encode()

    @property
    def digest(self) -> str:
        """The md5 of the listing with `.dir` behind it: dvc.lock's hash, Dagster's data version, MLflow's digest."""
        return hashlib.md5(self.listing()).hexdigest() + ".dir"

    @property
    def n_files(self) -> int:
        return len(self.entries)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)


def tree_of(folder: Path, *, memory: Path | None = None) -> Tree:
    """Read `folder`; with a `memory`, only the files that changed since it was written.

    Hidden files count, IGNORED does not; nor does the order in which files are listed.

    Args:
        memory: a JSON file of md5s by device, inode, size and modification time, written anew where it changes.

    Raises:
        OSError: a file cannot be read.
    """
    known = _read_memory(memory)
    seen: dict[str, str] = {}
    entries = []
    for relpath, path in sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*")):
        if path.is_file() and IGNORED not in path.parts:
            stat = path.stat()
            signature = f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
            seen[signature] = known.get(signature) or md5_of(path)
            entries.append(Entry(relpath, seen[signature], stat.st_size))
    if memory is not None and seen != known:
        with atomic_write(memory) as draft:
            draft.write_bytes(sealed(json.dumps({**seen, KEY: UNSEALED}).encode()))
    return Tree(tuple(entries))


def md5_of(path: Path) -> str:
    """The md5 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _read_memory(memory: Path | None) -> dict[str, str]:
    """What an earlier reading left; nothing where the file is missing or damaged."""
    try:
        data = memory.read_bytes() if memory else b""
    except OSError:
        return {}
    known: dict[str, str] = json.loads(data) if is_sealed(data) else {}
    known.pop(KEY, None)
    return known
