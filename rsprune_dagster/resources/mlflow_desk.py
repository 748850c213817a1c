"""What of the journal waits to go to MLflow: the records as they are to be there, and the notes of what has arrived.

Notes lie beside each record, and for each Dagster run in JOURNAL/runs. One that is lost costs a second delivery, which
changes nothing.
"""

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from rsprune_dagster.corpus.shards import written_whole
from rsprune_dagster.errors import RunError
from rsprune_dagster.resources.journal import PICTURES, RECORD, Journal, Record, Status, is_alive
from rsprune_dagster.resources.mlflow_store import Tracking, public

STATE = "delivery.json"


@dataclass(frozen=True)
class State:
    """Where a record or a Dagster run lies in MLflow, and which content of it has arrived."""

    tracking_uri: str = ""
    experiment: str = ""
    experiment_id: str = ""
    experiment_created: int = 0
    mlflow_run_id: str = ""
    tracked: str = ""
    """Arrived but for the artifacts."""
    delivered: str = ""

    @classmethod
    def load(cls, path: Path) -> "State":
        """What `save` left; an empty one where the file is missing or damaged: the run is then searched for."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        with written_whole(path) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1))


@dataclass(frozen=True)
class Parcel:
    """A record as it is to be in MLflow: RUNNING only while its process lives."""

    record: Record
    status: Status
    content: str
    """The status, with a hash of the record and of its pictures' names, sizes and times."""
    state_path: Path


@dataclass(frozen=True)
class Seen:
    """A record as it was read, and by what to tell that it was written anew."""

    stamp: tuple[int, ...]
    record: Record
    content: str
    state_path: Path


@dataclass(frozen=True)
class Ending:
    """How a Dagster run stands, and since when: RUNNING while an asset is, then as bad as the worst of them."""

    status: Status
    ended_at: float | None

    @classmethod
    def of(cls, children: Sequence[Parcel], linger_s: float) -> "Ending":
        """For `linger_s` after its last asset ended a run counts as RUNNING: the next asset may be on its way."""
        statuses = {parcel.status for parcel in children}
        ends = [parcel.record.ended_at or 0.0 for parcel in children]
        if "RUNNING" in statuses or 0 <= time.time() - max(ends) < linger_s:
            return cls("RUNNING", None)
        worst: Status = "FAILED" if "FAILED" in statuses else "KILLED" if "KILLED" in statuses else "FINISHED"
        return cls(worst, max(ends) if all(ends) else None)


@dataclass(frozen=True)
class Desk:
    """A journal and where it goes. It remembers what it saw: a record that did not change costs two `stat`s a look."""

    journal: Journal
    tracking_uri: str
    experiment: str
    seen: dict[str, Seen] = field(default_factory=dict)
    states: dict[Path, State] = field(default_factory=dict)
    project: Path | None = None
    """Whose DVC cache holds the versions: checkpoints are registered from there."""

    def parcels(self, run_id: str = "") -> list[Parcel]:
        """All records, or those of a run, oldest first.

        Raises:
            RunError: a record cannot be read.
        """
        folder = self.journal.root / "records"
        names = [name for name in os.listdir(folder) if name.startswith(run_id)] if folder.is_dir() else []
        found = [parcel for name in names if (parcel := self._parcel(folder, name))]
        return sorted(found, key=lambda parcel: (parcel.record.started_at, parcel.record.name))

    def waiting(self, parcels: Iterable[Parcel], tracking: Tracking | None) -> list[Parcel]:
        """Those whose present content has not arrived; `tracking`, once open, tells a store that was wiped."""
        return [p for p in parcels if self.state(p.state_path, tracking).delivered != p.content]

    def due(self, parcels: Iterable[Parcel], tracking: Tracking | None, linger_s: float) -> dict[str, Ending]:
        """Dagster runs whose MLflow run does not show how they stand."""
        runs = defaultdict(list)
        for parcel in parcels:
            runs[parcel.record.run_id].append(parcel)
        endings = {run_id: Ending.of(children, linger_s) for run_id, children in runs.items()}
        shown = {run_id: self.state(self.run_path(run_id), tracking).delivered for run_id in runs}
        return {run_id: ending for run_id, ending in endings.items() if shown[run_id] != str(ending)}

    def state(self, path: Path, tracking: Tracking | None) -> State:
        """What is known of a record or run in this store; an empty one where it went to another store."""
        if (state := self.states.get(path)) is None:
            state = self.states[path] = State.load(path)
        is_here = (state.tracking_uri, state.experiment) == (self.address, self.experiment)
        is_same = tracking is None or state.experiment_created == tracking.created
        return state if is_here and is_same else State(self.address, self.experiment)

    def note(self, path: Path, state: State) -> None:
        state.save(path)
        self.states[path] = state

    @cached_property
    def address(self) -> str:
        """MLflow's, as it may be shown."""
        return public(self.tracking_uri)

    def run_path(self, run_id: str) -> Path:
        return self.journal.root / "runs" / f"{run_id}.json"

    def _parcel(self, records: Path, name: str) -> Parcel | None:
        try:
            stamp = _stamp(f"{records}/{name}")
            seen = self.seen.get(name)
            if seen is None or seen.stamp != stamp:
                seen = self.seen[name] = _read(records / name, stamp)
        except FileNotFoundError:
            return None
        is_dead = seen.record.status == "RUNNING" and not is_alive(seen.record.process)
        status: Status = "KILLED" if is_dead else seen.record.status
        return Parcel(seen.record, status, f"{status}-{seen.content}", seen.state_path)


def _stamp(folder: str) -> tuple[int, ...]:
    """Changes with the record, and with the pictures: these are written before the record is written anew."""
    record = os.stat(f"{folder}/{RECORD}")
    try:
        pictures = os.stat(f"{folder}/{PICTURES}").st_mtime_ns
    except FileNotFoundError:
        pictures = 0
    return record.st_ino, record.st_size, record.st_mtime_ns, pictures


def _read(folder: Path, stamp: tuple[int, ...]) -> Seen:
    text = (folder / RECORD).read_bytes()
    pictures = [(path.name, path.stat()) for path in sorted((folder / PICTURES).glob("*"))]
    identity = (text, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in pictures])
    try:
        record = Record(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise RunError(f"{folder / RECORD} is no record ({error}): bring it back, or remove its folder") from error
    return Seen(stamp, record, hashlib.sha256(repr(identity).encode()).hexdigest(), folder / STATE)
