"""Brings the journal's records to MLflow from a process of its own, so that no asset waits for a store.

An asset writes its record, then calls `start_courier`, which costs milliseconds. One courier serves a journal: it holds
a lock, looks at the journal several times a second, delivers what changed, and ends when nothing is left to wait for.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

from rsprune_dagster.resources.journal import RECORD, Journal, Record
from rsprune_dagster.resources.mlflow_delivery import Delivery, deliver_once, note_trouble, trouble
from rsprune_dagster.resources.mlflow_desk import STATE, Desk, State
from rsprune_dagster.resources.mlflow_store import Tracking, sqlite_file

EXPERIMENT = "rsprune"
LOCK = "courier.lock"
"""Held by the one courier of a journal; holds its process number."""
VIEW = "?workflowType=machine_learning"
"""Else MLflow 3 opens the page that it has for language models."""
SERVED = "http://127.0.0.1:5000"
"""Where `make mlflow` serves the project's own store."""
LOG = "courier.log"
LINGER_S = 8.0
"""So long a courier stays after the last asset: the next one finds MLflow imported and the store open."""
RETRY_S = 10.0
_POLL_S = 0.3
_REST = 20  # a look at a long journal may cost at most a twentieth of the time
_LOG_BYTES = 1_000_000


def start_courier(
    journal: Journal, tracking_uri: str, experiment: str = EXPERIMENT, project: Path | None = None
) -> None:
    """Start a courier unless one is at work. Call it after a record was written; it takes milliseconds.

    The lock is taken here and handed to the new process, so two callers never start two couriers. A courier that ends
    looks at the journal once more after it let the lock go (`serve`): a record written before this call is seen
    either by the old courier or by a new one. A courier at work goes on with the address that it was started with.
    """
    lock = _open_lock(journal)
    try:
        if _take(lock):
            options = ["--experiment", experiment, "--lock-fd", str(lock)]
            _spawn(journal, [tracking_uri, *options, *(["--project", str(project)] if project else [])], lock)
    finally:
        os.close(lock)


def deliver(journal: Journal, tracking_uri: str, experiment: str = EXPERIMENT, project: Path | None = None) -> Delivery:
    """Deliver in this process what is not delivered in its present state. What MLflow raises is told, not raised.

    Raises:
        RunError: a record cannot be read, or the disk is full.
    """
    return deliver_once(Desk(journal, tracking_uri, experiment, project=project), None, linger_s=0)[0]


def wait_for_delivery(journal: Journal, run_id: str, timeout_s: float) -> Delivery:
    """Wait until a run's records are delivered as they are now, or a delivery of them has failed, or the time is up."""
    ends = time.monotonic() + timeout_s
    desk = Desk(journal, "", "")
    while True:
        parcels = desk.parcels(run_id)
        waiting = [parcel for parcel in parcels if State.load(parcel.state_path).delivered != parcel.content]
        error, tried_at = trouble(journal)
        has_failed = error and all(tried_at >= (journal.folder(p.record) / RECORD).stat().st_mtime for p in waiting)
        if not waiting or has_failed or time.monotonic() > ends:
            return Delivery(len(parcels) - len(waiting), len(waiting), error if waiting else "")
        time.sleep(0.1)


def mlflow_link(journal: Journal, record: Record) -> str:
    """The address of a record's MLflow run; '' if not yet delivered.

    For the project's own SQLite store it is where `make mlflow` serves that; for another its id and how to open it. A
    server that a browser reaches at another address than the runs do has that in RSPRUNE_MLFLOW_URL.
    """
    state = State.load(journal.folder(record) / STATE)
    if not state.mlflow_run_id:
        return ""
    database, server = sqlite_file(state.tracking_uri), state.tracking_uri.rstrip("/")
    if database == (journal.root.parent / "mlflow" / "mlflow.db").resolve():
        server = SERVED
    elif database:
        return f"runs:/{state.mlflow_run_id} (mlflow ui --backend-store-uri {state.tracking_uri})"
    else:
        server = os.environ.get("RSPRUNE_MLFLOW_URL", server).rstrip("/")
    return f"{server}/#/experiments/{state.experiment_id}/runs/{state.mlflow_run_id}{VIEW}"


def courier_trouble(journal: Journal) -> str:
    """Why the last delivery failed, in a sentence; '' if it did not."""
    return trouble(journal)[0]


def serve(desk: Desk, lock: int) -> None:
    """A courier's life, from the lock in hand to its release."""
    while True:
        _write_number(lock)
        tried = _serve_until_idle(desk)
        fcntl.flock(lock, fcntl.LOCK_UN)
        # who wrote a record while the lock was still held has started no courier: that record is ours
        if not _contents(desk) - tried or not _take(lock):
            return


def _serve_until_idle(desk: Desk) -> frozenset[str]:
    """Deliver until no asset runs and nothing more can be done; returns the contents that could not be delivered."""
    tracking: Tracking | None = None
    tried: frozenset[str] = frozenset()
    retry_at = 0.0
    busy_at = time.monotonic()
    while True:
        began = time.monotonic()
        parcels = desk.parcels()
        is_idle = began - busy_at > LINGER_S
        linger_s = 0.0 if is_idle else LINGER_S
        left = frozenset(parcel.content for parcel in desk.waiting(parcels, tracking))
        has_work = bool(left or desk.due(parcels, tracking, linger_s))
        looked_s = time.monotonic() - began
        if left - tried or (has_work and began >= retry_at):
            delivery, tracking = deliver_once(desk, tracking, linger_s)
            tried = left if delivery.error else frozenset()
            retry_at = time.monotonic() + RETRY_S if delivery.error else 0.0
        elif is_idle:
            return tried
        if left - tried or any(parcel.status == "RUNNING" for parcel in parcels):
            busy_at = time.monotonic()
        time.sleep(max(_POLL_S, _REST * looked_s))


def _contents(desk: Desk) -> frozenset[str]:
    return frozenset(parcel.content for parcel in desk.waiting(desk.parcels(), None))


def _open_lock(journal: Journal) -> int:
    journal.root.mkdir(parents=True, exist_ok=True)
    return os.open(journal.root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_number(lock: int) -> None:
    os.truncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def _spawn(journal: Journal, arguments: list[str], lock: int) -> None:
    log = journal.root / LOG
    is_long = log.exists() and log.stat().st_size > _LOG_BYTES
    with log.open("wb" if is_long else "ab") as output:
        # the shell ends at once and its child passes to init: whoever called has no zombie to collect
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-m", __name__, str(journal.root.resolve()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock,),
            check=True,
        )


def main() -> None:
    """The courier's process."""
    options = _options()
    journal = Journal(options.journal)
    lock = _open_lock(journal) if options.lock_fd is None else options.lock_fd
    if not _take(lock):
        return
    os.nice(5)  # the assets' work goes first
    warnings.simplefilter("ignore")
    try:
        serve(Desk(journal, options.tracking_uri, options.experiment, project=options.project), lock)
    except Exception as error:
        note_trouble(journal, f"the courier broke off ({error}): see {journal.root / LOG}", time.time())
        raise


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bring the records of a lineage journal to MLflow.")
    parser.add_argument("journal", type=Path)
    parser.add_argument("tracking_uri")
    parser.add_argument("--experiment", default=EXPERIMENT)
    parser.add_argument("--project", type=Path, help="whose DVC cache holds the checkpoints that are registered")
    parser.add_argument("--lock-fd", type=int, help="the lock, taken by whoever started this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
