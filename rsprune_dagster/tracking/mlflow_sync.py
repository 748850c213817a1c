"""Copies the run log to MLflow: a parent run for each Dagster run, a nested run for each asset.

The run log is the source of truth; MLflow is a view of it. A child process copies what is pending, so no asset waits
for MLflow. Copying twice changes nothing: runs are found again by their tags. What could not be copied stays pending.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rsprune_dagster.config.layout import MLFLOW_DB
from rsprune_dagster.tracking.mlflow_registry import put_model, put_verdict, register
from rsprune_dagster.tracking.mlflow_runs import (
    DAGSTER_RUN,
    IDENTITY,
    Experiment,
    connect,
    create_run,
    find_runs,
    put_files,
    put_status,
    put_values,
    sqlite_file,
    tag_filter,
    without_password,
)
from rsprune_dagster.tracking.run_log import Record, RunLog, Status, is_alive
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.errors import UserError
from rsprune_dagster.utils.file_lock import hold_if_free

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

SERVED = "http://127.0.0.1:5000"
"""Where `make mlflow` serves the project's own store."""
VIEW = "workflowType=machine_learning"
"""Without it MLflow 3 opens a run in its view for language models."""
NOTE = "mlflow.json"
"""Beside each record: where it is in MLflow. In the run log's folder: how the last sync ended."""
LOCK = "mlflow_sync.lock"
OPEN = "mlflow_open"
"""Folder of a file for each Dagster run that MLflow shows as running."""
_LOG_BYTES = 1_000_000
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


@dataclass(frozen=True)
class Note:
    """Where a record is in MLflow, and which content of it has arrived."""

    tracking_uri: str = ""
    experiment: str = ""
    experiment_id: str = ""
    created: int = 0
    run_id: str = ""
    content: str = ""
    """Hash of the record that was copied; empty while its files are missing."""


@dataclass(frozen=True)
class SyncResult:
    """How a sync ended."""

    n_pending: int = 0
    error: str = ""
    """Why records are pending, in a sentence."""
    started_at: float = 0.0
    tracking_uri: str = ""
    experiment: str = ""
    experiment_id: str = ""


def start_sync(
    run_log: RunLog, tracking_uri: str, experiment: str, project: Path | None = None, *, wait_s: float = 0.0
) -> None:
    """Start a process that copies what is pending in `wait_s`. It takes milliseconds; the process may outlive this one.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be started.
    """
    options = [str(run_log.root.resolve()), tracking_uri, experiment, str(wait_s), *([str(project)] if project else [])]
    log = run_log.root / "mlflow_sync.log"
    is_long = log.exists() and log.stat().st_size > _LOG_BYTES
    with log.open("wb" if is_long else "ab") as output:
        # the shell ends at once and its child passes to init: the caller has no zombie to collect
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-m", __name__, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            check=True,
        )


def sync(run_log: RunLog, tracking_uri: str, experiment: str, project: Path | None = None) -> SyncResult:
    """Copy what is pending, in this process, unless another one is copying. What MLflow raises is a sentence.

    Args:
        project: its DVC cache holds the checkpoints that are registered.

    Raises:
        RunError: the disk is full.
    """
    this, result, tried = _Sync(run_log, tracking_uri, experiment, project), SyncResult(), set[str]()
    while this.to_do() - tried:
        with hold_if_free(run_log.root / LOCK) as is_held:
            if not is_held:
                return result  # that process looks once more after it gave the lock back
            while to_do := this.to_do() - tried:
                tried |= to_do
                result = this.run()
                _save(run_log.root / NOTE, result)
    return result


def wait_for_sync(run_log: RunLog, tracking_uri: str, experiment: str, run_id: str, timeout_s: float) -> SyncResult:
    """Wait until a run's records are in MLflow, or a sync that saw them has failed, or the time is up."""
    ends = time.monotonic() + timeout_s
    records = [record for record in shown_records(run_log) if record.run_id == run_id]
    changed_at = max((record.ended_at or record.started_at for record in records), default=0.0)
    this = _Sync(run_log, tracking_uri, experiment)
    while True:
        n_pending, last = len(this.pending(records)), last_sync(run_log)
        has_failed = last.error and last.started_at >= changed_at
        if not n_pending or has_failed or time.monotonic() > ends:
            return SyncResult(n_pending, last.error if n_pending and has_failed else "")
        time.sleep(0.1)


def last_sync(run_log: RunLog) -> SyncResult:
    """How the last sync ended that had something to copy."""
    try:
        return SyncResult(**_load(run_log.root / NOTE))
    except TypeError:  # of another version
        return SyncResult()


def shown_records(run_log: RunLog) -> list[Record]:
    """The records as MLflow shows them, oldest first: RUNNING only while the process lives."""
    return [
        replace(record, status="KILLED") if record.status == "RUNNING" and not is_alive(record.process) else record
        for record in run_log.records()
    ]


def run_link(run_log: RunLog, record: Record) -> str:
    """The address of a record's MLflow run; empty where MLflow does not have it yet."""
    note = _note(run_log, record)
    if not note.run_id:
        return ""
    page = f"/#/experiments/{note.experiment_id}/runs/{note.run_id}?{VIEW}"
    return _address(run_log, note.tracking_uri, page, f"runs:/{note.run_id}")


def search_link(run_log: RunLog, record: Record, tracking_uri: str, experiment: str) -> str:
    """The address that shows a record's run once it is copied: a search by its tag.

    Until the first sync has told the experiment's id it is the list of experiments.
    """
    last, clause = last_sync(run_log), tag_filter(IDENTITY, record.name)
    here = _Sync(run_log, tracking_uri, experiment).store
    is_known = last.experiment_id and (last.tracking_uri, last.experiment) == here
    # another order than by date, in which MLflow folds the run into its parent
    query = f"searchFilter={quote(clause)}&orderByKey={quote('tags.`mlflow.runName`')}&{VIEW}"
    runs = f"/{last.experiment_id}/runs?{query}" if is_known else ""
    return _address(run_log, without_password(tracking_uri), f"/#/experiments{runs}", f"{clause} in {experiment}")


@dataclass(frozen=True)
class _Sync:
    """A run log, and the experiment that it is copied to."""

    run_log: RunLog
    tracking_uri: str
    experiment: str
    project: Path | None = None

    @property
    def store(self) -> tuple[str, str]:
        return without_password(self.tracking_uri), self.experiment

    def to_do(self) -> set[str]:
        """What is pending: contents of records, and runs that MLflow shows as running although they have ended."""
        records = shown_records(self.run_log)
        return {_content(record) for record in self.pending(records)} | {
            run_id for run_id, group in _by_run(records).items() if self._is_open(run_id) and self._ending(group)[1]
        }

    def pending(self, records: Sequence[Record], created: int | None = None) -> list[Record]:
        """The records that MLflow does not have as they are now.

        Args:
            created: when the experiment was created: a store that was wiped has another time.
        """

        def is_copied(record: Record) -> bool:
            note = _note(self.run_log, record)
            is_here = (note.tracking_uri, note.experiment) == self.store and created in (None, note.created)
            return is_here and note.content == _content(record)

        return [record for record in records if not is_copied(record)]

    def run(self) -> SyncResult:
        started_at, errors = time.time(), list[str]()
        experiment: Experiment | None = None
        try:
            experiment = connect(self.tracking_uri, self.experiment)
            self._copy(experiment, shown_records(self.run_log), errors)
        except UserError as error:
            errors.append(str(error))
        except Exception as error:  # whatever MLflow, its database or the network raise: the records stay pending
            errors.append(f"MLflow at {without_password(self.tracking_uri)} did not take the records: {_reason(error)}")
        pending = self.pending(shown_records(self.run_log), experiment.created if experiment else None)
        experiment_id = experiment.id if experiment else last_sync(self.run_log).experiment_id
        return SyncResult(len(pending), "; ".join(errors), started_at, *self.store, experiment_id)

    def _copy(self, experiment: Experiment, records: Sequence[Record], errors: list[str]) -> None:
        """Copy all runs, then their files: an artifact store that is down hides no run."""
        from mlflow.exceptions import MlflowException

        pending = self.pending(records, experiment.created)
        names = {record.name for record in pending}
        run_ids: dict[str, str] = {}
        for dagster_run, group in _by_run(records).items():
            some = [record for record in group if record.name in names]
            if some or self._is_open(dagster_run):
                try:
                    run_ids |= self._copy_runs(experiment, group, some, errors)
                except MlflowException as error:
                    _refused(error, f"the run {dagster_run}", errors)
        for record in pending:
            if run_id := run_ids.get(record.name):
                try:
                    self._copy_files(experiment, record, run_id)
                except UserError as error:
                    errors.append(str(error))
                except Exception as error:  # whatever the artifact store's client raises
                    errors.append(f"MLflow took the runs but not their files: {_reason(error)}")
                    return

    def _copy_runs(
        self, experiment: Experiment, group: Sequence[Record], pending: Sequence[Record], errors: list[str]
    ) -> dict[str, str]:
        """Copy the pending records of one Dagster run; returns the ids of their MLflow runs, by the records' names.

        A record that MLflow refuses does not hold up the others.
        """
        from mlflow.exceptions import MlflowException

        there = {
            run.data.tags.get(IDENTITY): run for run in find_runs(experiment, tag_filter(DAGSTER_RUN, group[0].run_id))
        }
        parent = (there.get(group[0].run_id) or create_run(experiment, group[0])).info.run_id
        run_ids = {}
        for record in pending:
            try:
                run = there.get(record.name) or create_run(experiment, record, parent=parent)
                put_values(experiment, run, record, put_model(experiment, self.project, record, run.info.run_id))
            except MlflowException as error:
                _refused(error, f"the record {record.name}", errors)
                continue
            run_ids[record.name] = run.info.run_id
            self._write_note(experiment, record, run.info.run_id, "")
        status, ended_at = self._ending(group)
        put_status(experiment, parent, status, ended_at)
        self._note_open(group[0].run_id, is_open=ended_at is None)
        return run_ids

    def _ending(self, group: Sequence[Record]) -> tuple[Status, float | None]:
        """How a Dagster run stands, and since when: RUNNING until it has ended, then as bad as its worst asset."""
        statuses = {record.status for record in group}
        may_go_on = not self.run_log.has_ended(group[0].run_id) and is_alive(group[-1].process)
        if "RUNNING" in statuses or may_go_on:
            return "RUNNING", None
        ranked: tuple[Status, ...] = ("FAILED", "KILLED", "FINISHED")
        ends = [record.ended_at or record.started_at for record in group]
        return next(status for status in ranked if status in statuses), max(ends)

    def _is_open(self, run_id: str) -> bool:
        """Whether MLflow shows a Dagster run as running."""
        return (self.run_log.root / OPEN / run_id).exists()

    def _note_open(self, run_id: str, *, is_open: bool) -> None:
        (self.run_log.root / OPEN).mkdir(exist_ok=True)
        note = self.run_log.root / OPEN / run_id
        note.touch() if is_open else note.unlink(missing_ok=True)

    def _copy_files(self, experiment: Experiment, record: Record, run_id: str) -> None:
        put_files(experiment, run_id, self.run_log.folder(record))
        register(experiment, self.run_log, self.project, record, run_id)
        put_verdict(experiment, self.run_log, record, run_id)
        self._write_note(experiment, record, run_id, _content(record))

    def _write_note(self, experiment: Experiment, record: Record, run_id: str, content: str) -> None:
        note = Note(*self.store, experiment.id, experiment.created, run_id, content)
        _save(self.run_log.folder(record) / NOTE, note)


def _by_run(records: Sequence[Record]) -> dict[str, list[Record]]:
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record.run_id, []).append(record)
    return runs


def _refused(error: "MlflowException", what: str, errors: list[str]) -> None:
    """Note what MLflow refuses, so that it does not hold up the others. Any other error is raised."""
    if error.error_code not in _REFUSALS:
        raise error
    errors.append(f"MLflow refused {what}: {_reason(error)}")


def _content(record: Record) -> str:
    return hashlib.sha256(json.dumps(asdict(record)).encode()).hexdigest()


def _note(run_log: RunLog, record: Record) -> Note:
    try:
        values = _load(run_log.folder(record) / NOTE)
        return Note(**values) if values else _earlier_note(run_log, record)
    except TypeError:  # of another version
        return Note()


def _earlier_note(run_log: RunLog, record: Record) -> Note:
    """What versions before 2026-12 noted: a record that they copied is not copied again."""
    earlier = _load(run_log.folder(record) / "delivery.json")
    if not earlier.get("delivered", "").startswith(record.status):
        return Note()
    where = (earlier["tracking_uri"], earlier["experiment"], earlier["experiment_id"], earlier["experiment_created"])
    return Note(*where, earlier["mlflow_run_id"], _content(record))


def _load(path: Path) -> dict[str, Any]:
    """What `_save` wrote; empty where it is missing or damaged: the record is then copied once more."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _save(path: Path, note: Note | SyncResult) -> None:
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(asdict(note), indent=1))


def _address(run_log: RunLog, tracking_uri: str, page: str, place: str) -> str:
    """A page of the web UI: of `make mlflow` for the project's own SQLite file, else of the server.

    RSPRUNE_MLFLOW_URL is the server's address as a browser reaches it. Another SQLite file is served by hand.
    """
    database = sqlite_file(tracking_uri)
    if database == (run_log.root.parent / MLFLOW_DB).resolve():
        return SERVED + page
    if database:
        return f"{place} (mlflow ui --backend-store-uri {tracking_uri})"
    return os.environ.get("RSPRUNE_MLFLOW_URL", tracking_uri).rstrip("/") + page


def _reason(error: Exception) -> str:
    """The few words of a long message that say what is wrong."""
    text = " ".join(str(error).split())
    for sign, words in _SIGNS.items():
        if sign in text.lower():
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


def main() -> None:
    """Copy what is pending."""
    parser = argparse.ArgumentParser(description=sync.__doc__)
    parser.add_argument("run_log", type=Path)
    parser.add_argument("tracking_uri")
    parser.add_argument("experiment")
    parser.add_argument("wait_s", type=float)
    parser.add_argument("project", type=Path, nargs="?")
    options = parser.parse_args()
    os.nice(5)  # the assets' work goes first
    warnings.simplefilter("ignore")
    time.sleep(options.wait_s)
    if options.run_log.is_dir():
        sync(RunLog(options.run_log), options.tracking_uri, options.experiment, options.project)


if __name__ == "__main__":
    main()
