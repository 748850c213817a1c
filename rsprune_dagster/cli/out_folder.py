"""The output folder of `rsprune prune`: its results, and files that other commands derive from them."""

import hashlib
import json
import shutil
from contextlib import ExitStack
from pathlib import Path

from rsprune_dagster.config.layout import LEDGER, TILES, WORK
from rsprune_dagster.utils.errors import UsageError

RESULTS = (TILES, LEDGER)

_BESIDE = "beside.json"
"""File in WORK with the sha256 of each derived file in the output folder."""


def check_writable(out: Path) -> None:
    """Raise UsageError where `out` cannot be written."""
    try:
        work = out / WORK
        work.mkdir(parents=True, exist_ok=True)
        probe = work / ".probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another prune may have removed its own
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written: {error.strerror}; give a folder this user may write to"
        ) from None


def publish(subset: Path, out: Path) -> list[str]:
    """Copy the results; both copies are complete before the first is renamed into place.

    Returns:
        The names of removed files that were derived from an earlier subset. A file that the user changed since is kept.
    """
    from rsprune_dagster.utils.atomic_write import atomic_write

    before = [_sha256(out / name) for name in RESULTS]
    with ExitStack() as stack:
        for name in RESULTS:
            shutil.copyfile(subset / name, stack.enter_context(atomic_write(out / name)))
    return _remove_stale(out) if before != [_sha256(out / name) for name in RESULTS] else []


def note_beside(out: Path, target: Path) -> None:
    """Record that `target` is derived from the results in `out`; files outside `out` are not recorded."""
    if target.resolve().parent == out.resolve():
        _write(out, {**_read(out), target.name: _sha256(target)})


def _remove_stale(out: Path) -> list[str]:
    ours = [name for name, sha256 in _read(out).items() if sha256 and _sha256(out / name) == sha256]
    for name in ours:
        (out / name).unlink()
    _write(out, {})
    return ours


def _read(out: Path) -> dict[str, str]:
    """The recorded files with their sha256. A damaged record counts as empty, so that no file is removed."""
    path = out / WORK / _BESIDE
    try:
        beside = dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError):
        return {}
    return {name: sha256 for name, sha256 in beside.items() if Path(name).name == name}


def _write(out: Path, beside: dict[str, str]) -> None:
    from rsprune_dagster.utils.atomic_write import atomic_write

    with atomic_write(out / WORK / _BESIDE) as draft:
        draft.write_text(json.dumps(beside))


def _sha256(path: Path) -> str:
    """The hash of a file; empty if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
