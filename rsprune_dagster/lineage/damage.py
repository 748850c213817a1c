"""Bit rot: what of a kept version is gone from DVC's cache, or no longer has the content that its name says."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.resources.dvc_cache import DvcCache


@dataclass(frozen=True)
class Damage:
    """A file of a kept version: its path in it (`listing`: the list of its files), where it lies, what is wrong."""

    relpath: str
    path: Path
    is_missing: bool

    def __str__(self) -> str:
        return f"{self.relpath} {'is missing' if self.is_missing else f'({self.path}) has changed'}"


def damages(cache: DvcCache, digest: str) -> list[Damage]:
    """What is wrong with a version in the cache; nothing where all its files are there and hash to their names.

    Every file is read in full.
    """
    listing = _damage(cache, "listing", digest)
    if listing:
        return [listing]
    rows = json.loads(cache.path(digest).read_text())
    found = (_damage(cache, row["relpath"], row["md5"]) for row in rows)
    return [damage for damage in found if damage]


def changed_files(cache: DvcCache, digest: str, folder: Path) -> Iterator[str]:
    """The files, by path, in which a folder differs from a kept version whose listing is sound."""
    rows = json.loads(cache.path(digest).read_text())
    wanted = {row["relpath"]: row["md5"] for row in rows}
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for relpath in sorted(wanted.keys() | present.keys()):
        if relpath not in present:
            yield f"{relpath} is missing"
        elif relpath not in wanted:
            yield f"{relpath} is new"
        elif _md5(present[relpath]) != wanted[relpath]:
            yield f"{relpath} has changed"


def _damage(cache: DvcCache, relpath: str, md5: str) -> Damage | None:
    path = cache.path(md5)
    if not path.exists():
        return Damage(relpath, path, is_missing=True)
    return None if _md5(path) == md5.removesuffix(".dir") else Damage(relpath, path, is_missing=False)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
