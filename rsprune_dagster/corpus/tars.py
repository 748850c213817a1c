"""Tar archives read in place: where each member's bytes lie, found from the headers alone.

Plain (USTAR), GNU (long names) and pax archives are understood by Python's own `tarfile`. Nothing is extracted.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from rsprune_dagster.corpus.storage import open_binary


class Member(NamedTuple):
    """A file in a tar; without `offset` it cannot be read in place, without `name` the tar is damaged there."""

    name: str
    offset: int | None
    length: int | None
    mtime: float


def tar_members(uri: str) -> Iterator[Member]:
    """The files of an uncompressed tar, in their order there; hard links last, as the files they lead to.

    A tar that is damaged or cut off ends in a member without name and offset, so that the loss is seen.
    """
    links: list[tarfile.TarInfo] = []
    with open_binary(uri) as handle:
        try:
            with tarfile.open(fileobj=handle, mode="r:") as archive:
                for info in archive:
                    archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header in memory
                    if info.islnk():
                        links.append(info)
                    elif info.isreg():
                        yield _member(info)
        except tarfile.TarError:
            yield Member("", None, None, 0.0)
    if links:
        yield from _linked(uri, links)


def _member(info: tarfile.TarInfo) -> Member:
    offset = None if info.issparse() else info.offset_data
    return Member(info.name.removeprefix("./"), offset, info.size, info.mtime)


def _linked(uri: str, links: list[tarfile.TarInfo]) -> Iterator[Member]:
    wanted = {link.linkname.removeprefix("./") for link in links}
    found = {}
    with open_binary(uri) as handle, tarfile.open(fileobj=handle, mode="r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]
            if info.isreg() and info.name.removeprefix("./") in wanted:
                found[info.name.removeprefix("./")] = _member(info)
    for link in links:
        target = found.get(link.linkname.removeprefix("./"), Member("", None, None, 0.0))
        yield target._replace(name=link.name.removeprefix("./"))


def named_once(members: Iterator[Member]) -> Iterator[tuple[str, Member]]:
    """The members, each with an id of its own: tars may repeat names, whose second and third ids end in `~2`, `~3`."""
    seen: Counter[str] = Counter()
    for member in members:
        seen[member.name] += 1
        again = seen[member.name]
        yield member.name if again == 1 else f"{member.name}~{again}", member
