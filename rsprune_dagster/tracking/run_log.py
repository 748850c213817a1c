"""The run log: a record per materialization, on local disk, written before anything else hears of it.

MLflow gets its runs from here (`mlflow_sync`), so a server that is down loses nothing; a process that was killed
leaves a record that tells what it was about to do.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rsprune_dagster.utils.atomic_write import atomic_write

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
RECORD = "record.json"
ENDED = "ended"
PICTURES = "pictures"
DAMAGED = ".damaged"
"""Behind the name of a record that cannot be read."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What one materialization of an asset was made from, and what came out. All values are plain JSON."""

    run_id: str
    """Dagster's run. One record per run and asset: a retried step goes on with its record."""
    asset: str
    status: Status
    started_at: float
    """Seconds since 1970, as `ended_at`."""
    process: str
    """The process that writes the asset (`this_process`)."""
    attempt: int = 1
    ended_at: float | None = None
    code_version: str = ""
    git_commit: str = ""
    """Empty outside a git checkout."""
    git_dirty: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)
    """In effect, by `section.key` of params.yaml."""
    departures: Mapping[str, Any] = field(default_factory=dict)
    """What params.yaml says of the values that this run changed, by `section.key`."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Upstream assets and the data versions that were read."""
    data_version: str = ""
    """The hash of what was written; set just before it takes the asset's place, so also in a record cut short."""
    n_files: int = 0
    size_bytes: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What later versions are compared with, such as the kept tiles of each scene."""
    stage: Mapping[str, Any] = field(default_factory=dict)
    """The stage's entry for dvc.lock: cmd, deps, params, outs."""
    versioned: bool = False
    """Whether dvc.lock holds this version."""
    versioned_note: str = ""
    """Why not, in a sentence."""
    dvc_lock_md5: str = ""
    """md5 of dvc.lock after this materialization."""
    message: str = ""
    """Why it failed, or that it was recovered by a later run."""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """For an evaluation: which checkpoint is the champion now, and why (`champion.Verdict`)."""

    @property
    def name(self) -> str:
        """Its folder's name in the run log, and its identity in MLflow."""
        return f"{self.run_id}-{self.asset}"


@dataclass(frozen=True)
class RunLog:
    """A folder of records: `ROOT/records/RUN-ASSET/record.json`, with pictures beside it."""

    root: Path

    def folder(self, record: Record) -> Path:
        return self.root / "records" / record.name

    def write(self, record: Record) -> None:
        """Write a record, or write it anew.

        Raises:
            RunError: the disk is full or not writable; the earlier state of the record stays.
        """
        with atomic_write(self.folder(record) / RECORD) as draft:
            draft.write_text(json.dumps(dataclasses.asdict(record), indent=1))

    def read(self, run_id: str, asset: str) -> Record | None:
        """The record of an asset in a run, if there is one."""
        return _load(self.root / "records" / f"{run_id}-{asset}" / RECORD)

    def records(self) -> list[Record]:
        """All records, oldest first."""
        return sorted(self._all(), key=lambda record: (record.started_at, record.name))

    def end_run(self, run_id: str) -> None:
        """Note that a Dagster run makes no more assets."""
        (self.root / ENDED).mkdir(parents=True, exist_ok=True)
        (self.root / ENDED / run_id).touch()

    def has_ended(self, run_id: str) -> bool:
        """Whether `end_run` was called."""
        return (self.root / ENDED / run_id).exists()

    def pictures(self, record: Record) -> list[Path]:
        return sorted((self.folder(record) / PICTURES).glob("*"))

    def add_picture(self, record: Record, title: str, picture: bytes | str) -> None:
        """Keep a picture (SVG or JPEG bytes) or a Markdown table beside the record."""
        folder = self.folder(record) / PICTURES
        folder.mkdir(parents=True, exist_ok=True)
        stem = "".join(letter if letter.isalnum() else "_" for letter in title)
        if isinstance(picture, str):
            (folder / f"{stem}.md").write_text(picture, encoding="utf-8")
        else:
            (folder / (stem + (".jpg" if picture.startswith(b"\xff\xd8") else ".svg"))).write_bytes(picture)

    def memory(self, asset: str) -> Path:
        """The file that remembers the hashes of an asset's files."""
        return self.root / "content" / f"{asset}.json"

    def _all(self) -> Iterator[Record]:
        for path in (self.root / "records").glob(f"*/{RECORD}"):
            if record := _load(path):
                yield record


def this_process() -> str:
    """This process, told from a later one with the same number: boot, number, start time.

    Source: Linux proc(5), /proc/PID/stat field 22; elsewhere only the number.
    """
    return _process(os.getpid())


def is_alive(process: str) -> bool:
    """Whether the process that `this_process` named still runs on this machine."""
    return _process(int(process.split(":")[1])) == process


def _process(pid: int) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f":{pid}:" if not Path("/proc").is_dir() and _signalled(pid) else f"gone:{pid}:"
    return f"{boot}:{pid}:{fields[18]}" if state not in "ZX" else f"gone:{pid}:"


def _signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _load(path: Path) -> Record | None:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        values = None
    if isinstance(values, dict):
        return Record(**values)
    _set_aside(path)
    return None


def _set_aside(path: Path) -> None:
    """Rename a damaged record, so that the run log goes on without it and says so once."""
    aside = path.with_name(path.name + DAMAGED)
    with suppress(OSError):
        os.replace(path, aside)
    _log.warning("%s was damaged and is set aside as %s: what it said of one materialization is lost", path, aside.name)
