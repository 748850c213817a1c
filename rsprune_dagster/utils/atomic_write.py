"""Files that are written whole or not at all."""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rsprune_dagster.utils.errors import RunError, UsageError


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """A temporary path, renamed to `target` if the block succeeds and removed if it fails.

    File and folder are flushed to disk (fsync), so that a crash of the machine leaves no empty file.

    Raises:
        RunError: the disk is full or not writable; an existing file is unchanged.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        _flush(draft)
        os.replace(draft, target)
        with suppress(OSError):  # the file is renamed already; some file systems cannot flush a folder
            _flush(target.parent)
    except OSError as error:
        raise RunError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another place, "
            "then run again: finished work is kept"
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def check_output(source: Path, target: Path, suffixes: Sequence[str]) -> None:
    """Before the work: UsageError if there is no file `source`, or its result cannot be written to `target`.

    Args:
        suffixes: of `target`, of which it must have one.
    """
    if not source.is_file():
        raise UsageError(f"{source} is no file")
    if target.resolve() == source.resolve():
        raise UsageError(f"{target} is the input itself: name another file")
    if target.suffix.lower() not in suffixes or target.is_dir():
        raise UsageError(f"{target} cannot be the output: expected a file that ends in {', '.join(suffixes)}")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent} to write {target.name} into")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_drafts(root: Path) -> int:
    """Remove temporary files of killed processes of this machine below `root`; returns their number."""
    gone = 0
    for draft in root.rglob(".*.draft"):
        pid = draft.name.rsplit(".", 2)[1].split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            draft.unlink(missing_ok=True)
            gone += 1
    return gone
