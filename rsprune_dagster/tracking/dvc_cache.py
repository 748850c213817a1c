"""DVC's cache: every version of every asset, by content.

The layout is DVC 3's: `files/md5/ab/cdef…` holds the file whose md5 is abcdef…, and `….dir` the listing of a folder.
dvc-data, the part of DVC that can be imported beside Dagster, links files into the cache and out of it: a clone of the
blocks, else a hard link, else a copy. It makes a file read-only once it is whole, so one that a killed process left
half-written is known by its mode. It never hashes a read-only file again; `damages` does.
"""

import configparser
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rsprune_dagster.tracking.content import Entry, Tree, md5_of
from rsprune_dagster.utils.errors import RunError

if TYPE_CHECKING:
    from dvc_data.hashfile.db.local import LocalHashFileDB


@dataclass(frozen=True)
class Damage:
    """A file of a kept version: its path in it (`listing`: the list of its files), where it lies, what is wrong."""

    relpath: str
    path: Path
    is_missing: bool

    def __str__(self) -> str:
        return f"{self.relpath} {'is missing' if self.is_missing else f'({self.path}) has changed'}"


@dataclass(frozen=True)
class DvcCache:
    """Files and folder listings by md5, below `root` (`.dvc/cache/files/md5`)."""

    root: Path

    @classmethod
    def of(cls, project: Path) -> "DvcCache":
        """The cache of a DVC project: `cache.dir` of its configuration, else `.dvc/cache`."""
        config = configparser.ConfigParser(interpolation=None, strict=False)
        config.read([project / ".dvc" / "config", project / ".dvc" / "config.local"])
        folder = config.get("cache", "dir", fallback="cache")
        return cls((project / ".dvc" / folder).resolve() / "files" / "md5")

    def path(self, md5: str) -> Path:
        """Where the content with this md5 lies, or would lie."""
        return self.root / md5[:2] / md5[2:]

    def files(self, digest: str) -> dict[str, str]:
        """The md5 of each file of a kept folder, by path; empty where its listing is missing or damaged."""
        try:
            return {row["relpath"]: row["md5"] for row in json.loads(self.path(digest).read_text())}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def file(self, digest: str, relpath: str) -> Path | None:
        """Where a file of a kept folder lies; None where the version is not at hand, or has no such file."""
        md5 = self.files(digest).get(relpath)
        return self.path(md5) if md5 and self.path(md5).exists() else None

    def tree(self, digest: str) -> Tree | None:
        """The listing of a kept folder; none where the listing or one of its files is missing."""
        try:
            rows = json.loads(self.path(digest).read_text())
            return Tree(tuple(Entry(row["relpath"], row["md5"], self.path(row["md5"]).stat().st_size) for row in rows))
        except FileNotFoundError:
            return None

    def keep(self, folder: Path, tree: Tree) -> None:
        """Keep a folder's content. Its files become read-only where they share their blocks with the cache.

        Raises:
            OSError: the disk is full or not writable.
        """
        from dvc_objects.fs.local import localfs

        kept = self._dvc()
        files = {entry.md5: str(folder / entry.relpath) for entry in tree.entries}
        lacking = sorted(files.keys() - set(kept.oids_exist(list(files))))
        kept.add([files[md5] for md5 in lacking], localfs, lacking, hardlink=True)
        if tree.digest not in kept.oids_exist([tree.digest]):
            kept.add_bytes(tree.digest, tree.listing())
            kept.protect(str(self.path(tree.digest)))

    def place(self, digest: str, folder: Path) -> Tree:
        """Fill the empty `folder` with a kept version.

        Raises:
            RunError: the version is not in the cache, or not whole.
        """
        from dvc_objects.fs.generic import transfer
        from dvc_objects.fs.local import localfs

        tree = self.tree(digest)
        if tree is None:
            raise RunError(f"{digest} is not in DVC's cache {self.root}: `dvc fetch` brings what a remote holds")
        for parent in {(folder / entry.relpath).parent for entry in tree.entries}:
            parent.mkdir(parents=True, exist_ok=True)
        sources = [str(self.path(entry.md5)) for entry in tree.entries]
        transfer(localfs, sources, localfs, [str(folder / entry.relpath) for entry in tree.entries], hardlink=True)
        return tree

    def damages(self, digest: str) -> list[Damage]:
        """What is wrong with a kept version; nothing where all its files are there and hash to their names.

        Every file is read in full.
        """
        listing = self._damages({"listing": digest})
        return listing or self._damages(self.files(digest))

    def _damages(self, files: dict[str, str]) -> list[Damage]:
        places = {relpath: (md5.removesuffix(".dir"), self.path(md5)) for relpath, md5 in files.items()}
        return [
            Damage(relpath, path, is_missing=not path.exists())
            for relpath, (md5, path) in places.items()
            if not path.exists() or md5_of(path) != md5
        ]

    def _dvc(self) -> "LocalHashFileDB":
        from dvc_data.hashfile.db.local import LocalHashFileDB
        from dvc_objects.fs.local import localfs

        return LocalHashFileDB(localfs, str(self.root))
