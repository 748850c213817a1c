"""A folder per asset, replaced as a whole: readers see the old version or the new one, never half."""

import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.utils.errors import RunError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


_STAGING = ".staging"


@contextmanager
def replaced(layout: Layout, asset: str, *, before: Callable[[Path], object] = lambda _: None) -> Iterator[Path]:
    """An empty folder to fill; it takes the asset's place when the block ends well, and vanishes when it does not.

    Args:
        before: told of the filled folder just before it takes the asset's place.

    Raises:
        RunError: the disk is full or not writable; the old version is untouched.
    """
    staging = layout.assets / _STAGING / f"{asset}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    target = layout.assets / asset
    try:
        staging.mkdir(parents=True)
        yield staging
        before(staging)
        install(staging, target)
    except OSError as error:
        raise RunError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another place, then run "
            "again: finished work is kept"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_staging(layout: Layout) -> None:
    """Remove the drafts of processes that are gone."""
    for staging in (layout.assets / _STAGING).glob("*-*-*"):
        if not Path(f"/proc/{staging.name.split('-')[-2]}").exists():
            shutil.rmtree(staging, ignore_errors=True)


def install(staging: Path, target: Path) -> None:
    """Put the folder `staging` in the place of `target`; what was there is left at `staging`."""
    _flush(staging)
    if not target.exists():
        os.rename(staging, target)
    elif not _exchange(staging, target):
        _two_renames(staging, target)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one system call (Linux renameat2); false where the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    done: bool = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
    if not done and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return done


def _two_renames(staging: Path, target: Path) -> None:
    aside = staging.with_name(staging.name + ".old")
    os.rename(target, aside)
    os.rename(staging, target)
    os.rename(aside, staging)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
