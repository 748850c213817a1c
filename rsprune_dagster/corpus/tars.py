"""Tar archives read in place: the byte range of each member, from the headers only.

Python's `tarfile` reads USTAR, GNU (long names) and pax archives. Nothing is extracted.
"""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

from rsprune_dagster.corpus.storage import open_binary

MOST_HEADER_BYTES = 1 << 20
"""A longer extended header counts as damage: on Linux, attributes take 64 KiB at most, a path 4 KiB."""
MOST_DIGITS = 255
"""A longer run of digits in an extended header counts as damage: Python's tarfile takes quadratic time for it."""


class Member(NamedTuple):
    """A file in a tar. Without `offset` it cannot be read in place; without `length` it has no data.

    Without both, and without a name, it marks damage of the tar.
    """

    name: str
    offset: int | None
    length: int | None
    mtime: float


DAMAGE = Member("", None, None, 0.0)


def tar_members(uri: str) -> Iterator[Member]:
    """The files of an uncompressed tar in archive order; hard links last, as the files that they point to.

    Symbolic links, pipes, devices and broken hard links have an offset but no length. A damaged or truncated tar ends
    in the member DAMAGE, so that the loss is reported.
    """
    links: list[tarfile.TarInfo] = []
    whole = True
    for info in _headers(uri):
        if info is None:
            whole = False
        elif info.islnk():
            links.append(info)
        elif not info.isdir():
            yield _member(info)
    if links:
        yield from _linked(uri, links)
    if not whole:
        yield DAMAGE


def _headers(uri: str) -> Iterator[tarfile.TarInfo | None]:
    """The headers of a tar in archive order; a final None if it is damaged or truncated."""
    with open_binary(uri) as handle:
        guard = _Headers(handle)
        try:
            with tarfile.open(fileobj=guard, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]
                while (info := archive.next()) is not None:
                    archive.members = []  # otherwise tarfile keeps every header in memory
                    if not (0 <= info.offset_data <= archive.offset and 0 <= info.size < 2**63):
                        raise tarfile.ReadError("a size that cannot be")
                    yield info
                guard.seek(archive.offset)
                if any(guard.read(tarfile.BLOCKSIZE)):
                    raise tarfile.ReadError("no header where one should be")
        except OSError:
            raise
        except Exception:  # tarfile's parser raises many exception types: ValueError, RecursionError, ...
            yield None


class _Headers:
    """A guarded file for tarfile: it allows reading headers only, forward and inside the file.

    tarfile trusts headers, such as names of 3 GB or a size that makes it seek backwards.
    """

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._size = handle.seek(0, io.SEEK_END)
        self._furthest = handle.seek(0)

    def tell(self) -> int:
        return self._handle.tell()

    def seek(self, position: int) -> int:
        """Raises tarfile.ReadError for a position that no valid tar uses."""
        if not self._furthest - tarfile.BLOCKSIZE <= position <= self._size:
            raise tarfile.ReadError(f"byte {position} of {self._size}")
        self._furthest = max(self._furthest, position)
        return self._handle.seek(position)

    def read(self, n_bytes: int) -> bytes:
        """Raises tarfile.ReadError for a header of an impossible length."""
        if not 0 <= n_bytes <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {n_bytes} bytes")
        data = self._handle.read(n_bytes)
        if n_bytes > tarfile.BLOCKSIZE and any(len(run) > MOST_DIGITS for run in re.findall(rb"\d+", data)):
            raise tarfile.ReadError("a number too long")
        return data


def _member(info: tarfile.TarInfo) -> Member:
    name = info.name.removeprefix("./")
    if not info.isreg():
        return Member(name, info.offset_data, None, info.mtime)
    return Member(name, None if info.issparse() else info.offset_data, info.size, info.mtime)


def _linked(uri: str, links: list[tarfile.TarInfo]) -> Iterator[Member]:
    wanted = {link.linkname.removeprefix("./") for link in links}
    found = {
        info.name.removeprefix("./"): _member(info)
        for info in _headers(uri)
        if info is not None and info.isreg() and info.name.removeprefix("./") in wanted
    }
    for link in links:
        nowhere = Member("", link.offset_data, None, link.mtime)
        yield found.get(link.linkname.removeprefix("./"), nowhere)._replace(name=link.name.removeprefix("./"))


def named_once(members: Iterator[Member]) -> Iterator[tuple[str, Member]]:
    """The members with unique ids: the second and third member of one name get the endings `~2`, `~3`."""
    seen: Counter[str] = Counter()
    for member in members:
        own_id = member.name
        while own_id in seen:
            seen[member.name] += 1
            own_id = f"{member.name}~{seen[member.name]}"
        seen[own_id] += 1
        yield own_id, member
