"""A folder of generated files: written whole, kept while what it was made from stays the same, replaced otherwise."""

import tempfile
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.utils.errors import RunError, UsageError


@dataclass(frozen=True)
class Generated:
    """What a generated folder holds, and what it was made with."""

    name: str
    """Its name in error messages."""
    marker: str
    """The file that is written last."""
    made_with: str
    """Everything that the bytes depend on: the content of the marker."""
    entries: Set[str]
    """All that may lie in the folder; one with anything else is not replaced."""


def write_once(folder: Path, generated: Generated, write: Callable[[Path], None]) -> None:
    """Write the folder if it is not there, or was made with something else.

    It is written to a temporary folder, then renamed into place.

    Args:
        write: writes all of it, and the marker last, into a folder that is not there yet.

    Raises:
        UsageError: the folder holds anything else.
        RunError: writing fails.
    """
    folder = folder.absolute()
    try:
        if not is_complete(folder, generated):
            _replace(folder, write)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"cannot write the {generated.name} to {folder}: {reason}; free space or name another folder"
        ) from error


def is_complete(folder: Path, generated: Generated) -> bool:
    """Whether the folder holds what would be written. Raises UsageError if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    foreign = sorted({path.name for path in folder.iterdir()} - generated.entries) if folder.is_dir() else [folder.name]
    marker = folder / generated.marker
    if foreign or not marker.is_file():
        found = foreign[0] if foreign else f"no {generated.marker}"
        raise UsageError(f"{folder} is no {generated.name} ({found}): name a new or empty folder for it")
    return marker.read_text() == generated.made_with


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        new = Path(beside) / "new"
        write(new)
        if folder.exists():
            folder.rename(Path(beside) / "old")
        new.rename(folder)
