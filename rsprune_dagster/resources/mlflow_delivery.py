"""One round of bringing to MLflow what waits; what goes wrong is told, and noted in JOURNAL/courier.json."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rsprune_dagster.corpus.shards import written_whole
from rsprune_dagster.errors import UserError
from rsprune_dagster.resources.journal import PICTURES, Journal, Record
from rsprune_dagster.resources.mlflow_desk import Desk, Parcel, State
from rsprune_dagster.resources.mlflow_registry import put_model, put_verdict
from rsprune_dagster.resources.mlflow_runs import put_child, put_files, put_parent, put_status
from rsprune_dagster.resources.mlflow_store import Tracking, connect, locked, patience

_TROUBLE = "courier.json"


@dataclass(frozen=True)
class Delivery:
    """How a delivery stands: records delivered, records that wait, and in a sentence why they do."""

    n_delivered: int
    n_waiting: int
    error: str = ""


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
        """Whether the artifacts arrived, and what the registry is to have.

        After a failure no other record's are tried in this round: it would wait.
        """
        folder = self.desk.journal.folder(record)
        if any(error.startswith(_NO_FILES) for error in self.errors):
            return False
        try:
            put_files(self.tracking, run_id, folder, folder / PICTURES)
            put_model(self.tracking, self.desk, record, run_id)
            put_verdict(self.tracking, self.desk, record, run_id)
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
