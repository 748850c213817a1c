"""DVC's cache: every version of every asset, by content.

The layout is DVC 3's: `files/md5/ab/cdef…` holds the file whose md5 is abcdef…, and `….dir` the listing of a folder. A
version is kept by linking its files there, so it costs no second read and, where the file system can, no disk. DVC's
own command would take 0.5 s an asset and read everything again, and DVC cannot be imported beside Dagster, as it needs
another antlr. A test holds that DVC finds what is kept here.
"""

import configparser
import fcntl
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.errors import RunError
from rsprune_dagster.resources.content import Entry, Tree

_FICLONE = 0x40049409
"""Linux ioctl_ficlone(2): the copy shares its blocks with the original until one of them is written."""


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
        for entry in tree.entries:
            kept = self.path(entry.md5)
            if not kept.exists():
                _link(folder / entry.relpath, kept)
                kept.chmod(0o444)
        listing = self.path(tree.digest)
        if not listing.exists():
            listing.parent.mkdir(parents=True, exist_ok=True)
            draft = listing.with_name(f".{listing.name}.{uuid.uuid4().hex[:8]}")
            draft.write_bytes(tree.listing())
            draft.chmod(0o444)
            os.replace(draft, listing)

    def place(self, digest: str, folder: Path) -> Tree:
        """Fill the empty `folder` with a kept version.

        Raises:
            RunError: the version is not in the cache, or not whole.
        """
        tree = self.tree(digest)
        if tree is None:
            raise RunError(f"{digest} is not in DVC's cache {self.root}: `dvc fetch` brings what a remote holds")
        for entry in tree.entries:
            _link(self.path(entry.md5), folder / entry.relpath)
        return tree


def _link(source: Path, target: Path) -> None:
    """The same content at `target`, whole or not at all: a clone of the blocks, else a hard link, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        if not _cloned(source, draft):
            _hard_linked_or_copied(source, draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _cloned(source: Path, target: Path) -> bool:
    try:
        with source.open("rb") as original, target.open("xb") as copy:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    shutil.copystat(source, target)
    return True


def _hard_linked_or_copied(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
