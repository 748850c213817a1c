"""Delivering the journal's records to MLflow: what waits, one round of delivery, and what is noted of it.

What has arrived is noted beside each record, and for each Dagster run in JOURNAL/runs. A note that is lost costs a
second delivery, which changes nothing.
"""

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from rsprune_dagster.corpus.shards import written_whole
from rsprune_dagster.errors import RunError, UserError
from rsprune_dagster.resources.journal import PICTURES, RECORD, Journal, Record, Status, is_alive
from rsprune_dagster.resources.mlflow_runs import put_child, put_files, put_parent, put_status
from rsprune_dagster.resources.mlflow_store import Tracking, connect, locked, patience, public

STATE = "delivery.json"
_TROUBLE = "courier.json"


@dataclass(frozen=True)
class Delivery:
    """How a delivery stands: records delivered, records that wait, and in a sentence why they do."""

    n_delivered: int
    n_waiting: int
    error: str = ""


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


@dataclass(frozen=True)
class Round:
    """One delivery. `errors` and `parents` fill as it goes."""

    desk: Desk
    tracking: Tracking
    errors: list[str] = field(default_factory=list)
    parents: dict[str, str] = field(default_factory=dict)

    def deliver(self, parcels: Sequence[Parcel], linger_s: float) -> None:
        """Deliver what waits, oldest first, then show how the runs stand.

        A record that MLflow refuses, or whose artifacts find no store, does not hold up the others.
        """
        from mlflow.exceptions import MlflowException

        for parcel in self.desk.waiting(parcels, self.tracking):
            try:
                self._deliver(parcel)
            except MlflowException as error:
                if error.error_code not in _REFUSALS:
                    raise
                self.errors.append(f"MLflow refused the record {parcel.record.name}: {_reason(error)}")
        first = {parcel.record.run_id: parcel.record for parcel in reversed(parcels)}
        for run_id, ending in self.desk.due(parcels, self.tracking, linger_s).items():
            put_status(self.tracking, self._parent(first[run_id]), ending.status, ending.ended_at)
            path = self.desk.run_path(run_id)
            self.desk.note(path, replace(self.desk.state(path, self.tracking), delivered=str(ending)))

    def _deliver(self, parcel: Parcel) -> None:
        record, path = parcel.record, parcel.state_path
        state = self.desk.state(path, self.tracking)
        if state.tracked != parcel.content:
            parent = self._parent(record)
            run_id = put_child(self.tracking, record, parcel.status, parent=parent, known=state.mlflow_run_id)
            state = self._noted(path, run_id, tracked=parcel.content)
        if self._put_files(record, state.mlflow_run_id):
            self.desk.note(path, replace(state, delivered=parcel.content))

    def _put_files(self, record: Record, run_id: str) -> bool:
        """Whether the artifacts arrived. After a failure no other record's are tried in this round: it would wait."""
        folder = self.desk.journal.folder(record)
        if any(error.startswith(_NO_FILES) for error in self.errors):
            return False
        try:
            put_files(self.tracking, run_id, folder, folder / PICTURES)
        except Exception as error:  # whatever the artifact store's client raises
            self.errors.append(f"{_NO_FILES}: {_reason(error)}")
            return False
        return True

    def _parent(self, record: Record) -> str:
        if record.run_id not in self.parents:
            path = self.desk.run_path(record.run_id)
            known = self.desk.state(path, self.tracking).mlflow_run_id
            self.parents[record.run_id] = put_parent(self.tracking, record, known=known)
            if known != self.parents[record.run_id]:
                self._noted(path, self.parents[record.run_id], tracked="")
        return self.parents[record.run_id]

    def _noted(self, path: Path, run_id: str, *, tracked: str) -> State:
        """Note where a run lies."""
        state = State(
            self.desk.address,
            self.desk.experiment,
            self.tracking.experiment_id,
            self.tracking.created,
            run_id,
            tracked,
        )
        self.desk.note(path, state)
        return state


_NO_FILES = "MLflow took the runs but not their files"
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


def deliver_once(desk: Desk, tracking: Tracking | None, linger_s: float) -> tuple[Delivery, Tracking | None]:
    """Deliver what waits; returns how it went, and the open store unless something failed.

    Nothing that MLflow raises gets out: it is told in the delivery and noted in JOURNAL/courier.json.
    """
    errors: list[str] = []
    with locked(desk.journal.root / "delivery.lock"), patience():
        looked_at = time.time()
        parcels = desk.parcels()
        if desk.waiting(parcels, tracking) or desk.due(parcels, tracking, linger_s):
            with _told(desk, errors):
                tracking = tracking or connect(desk.tracking_uri, desk.experiment)
        before = len(desk.waiting(parcels, tracking))
        if tracking is not None:
            with _told(desk, errors):
                Round(desk, tracking, errors).deliver(parcels, linger_s)
        waiting = len(desk.waiting(parcels, tracking))
        error = f"{'; '.join(errors)}. Records that wait: {waiting}; the next run delivers them" if errors else ""
        note_trouble(desk.journal, error, looked_at)
    return Delivery(before - waiting, waiting, error), None if errors else tracking


@contextmanager
def _told(desk: Desk, errors: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        errors.append(str(error))
    except Exception as error:  # whatever MLflow, its database or the network raise: the records wait
        errors.append(f"MLflow at {desk.address} cannot be reached: {_reason(error)}")


def trouble(journal: Journal) -> tuple[str, float]:
    """Why the last delivery failed ('' if it did not), and when the journal had been looked at for it."""
    try:
        noted = json.loads((journal.root / _TROUBLE).read_text())
        return str(noted["error"]), float(noted["at"])
    except (OSError, ValueError, KeyError):
        return "", 0.0


def note_trouble(journal: Journal, error: str, at: float) -> None:
    """Note a failure, or that there is none any more."""
    if error or trouble(journal)[0]:
        with written_whole(journal.root / _TROUBLE) as draft:
            draft.write_text(json.dumps({"error": error, "at": at}))


def _reason(error: Exception) -> str:
    """The few words of a long message that say what is wrong."""
    text = " ".join(str(error).split())
    for sign, words in _SIGNS.items():
        if sign.lower() in text.lower():
            return words
    return text[:300] or type(error).__name__


_SIGNS = {
    "connection refused": "nothing listens there",
    "timed out": "no answer",
    "timeout": "no answer",
    "name or service not known": "no such host",
    "name resolution": "no such host",
    "remote end closed": "the connection broke off",
    "connection reset": "the connection broke off",
}
