"""Records reach MLflow whole and once, whatever dies on the way; no asset waits for a store."""

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import free_port, mlflow_server, postgres, s3_environment, s3_keys, s3_server

from rsprune_dagster.resources import mlflow_courier, mlflow_delivery
from rsprune_dagster.resources.journal import Journal, Record, Status, is_alive, this_process
from rsprune_dagster.resources.mlflow_courier import (
    LOCK,
    courier_trouble,
    deliver,
    mlflow_link,
    serve,
    start_courier,
    wait_for_delivery,
)
from rsprune_dagster.resources.mlflow_delivery import Delivery
from rsprune_dagster.resources.mlflow_desk import STATE, Desk, State
from rsprune_dagster.resources.mlflow_reading import records_in
from rsprune_dagster.resources.mlflow_store import Tracking, connect, public

EXPERIMENT = "rsprune"
GONE = "another-boot:1:1"
"""A process that is no more."""
TABLES = ("runs", "params", "metrics", "latest_metrics", "tags", "datasets", "inputs", "input_tags")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal; its courier, if one was started, is ended with the test."""
    journal = Journal(tmp_path / "journal")
    yield journal
    _kill_courier(journal)


def _record(asset: str = "embeddings", run_id: str = "", status: Status = "FINISHED", **values: Any) -> Record:
    now = time.time()
    record = Record(
        run_id=run_id or str(uuid.uuid4()),
        asset=asset,
        status=status,
        started_at=now - 60,
        process=this_process() if status == "RUNNING" else GONE,
        ended_at=None if status == "RUNNING" else now - 50,
        code_version="3",
        git_commit="c0ffee" * 6 + "cafe",
        params={"embedding.backbone": "mobilenet_v2", "embedding.batch_size": 64, "embedding.weights": None},
        inputs={"raw_corpus": "1" * 32 + ".dir", "entropy_scores": "2" * 32 + ".dir"},
        data_version="a" * 32 + ".dir",
        n_files=3,
        size_bytes=1000,
        metrics={"n_tiles": 300, "wall_s": 1.5},
        stage={"outs": [{"path": "assets/embeddings", "md5": "a" * 32 + ".dir"}]},
        versioned=True,
        dvc_lock_md5="b" * 32,
    )
    return replace(record, **values)


def _runs(uri: str) -> list[Any]:
    """All MLflow runs of the experiment, children and parents, oldest first."""
    tracking = connect(uri, EXPERIMENT)
    return list(tracking.client.search_runs([tracking.experiment_id], order_by=["attributes.start_time"]))


def _children(uri: str) -> dict[str, Any]:
    """The children by record name; a record with two of them fails the test."""
    runs = [run for run in _runs(uri) if "mlflow.parentRunId" in run.data.tags]
    counts = Counter(run.data.tags["rsprune.record"] for run in runs)
    assert all(count == 1 for count in counts.values()), counts
    return {run.data.tags["rsprune.record"]: run for run in runs}


def _parents(uri: str) -> dict[str, Any]:
    """The parents by Dagster run; a Dagster run with two of them fails the test."""
    runs = [run for run in _runs(uri) if "mlflow.parentRunId" not in run.data.tags]
    counts = Counter(run.data.tags["rsprune.dagster_run_id"] for run in runs)
    assert all(count == 1 for count in counts.values()), counts
    return {run.data.tags["rsprune.dagster_run_id"]: run for run in runs}


def _check_complete(uri: str, records: Sequence[Record]) -> None:
    """One child per record, in its record's state, below the one parent of its Dagster run; nothing else."""
    children, parents = _children(uri), _parents(uri)
    assert set(children) == {record.name for record in records}
    assert set(parents) == {record.run_id for record in records}
    for record in records:
        child = children[record.name]
        assert child.info.status == record.status
        assert child.data.tags["mlflow.parentRunId"] == parents[record.run_id].info.run_id
        assert {item.dataset.digest for item in child.inputs.dataset_inputs} == {
            *record.inputs.values(),
            record.data_version,
        }
    assert sorted(records_in(uri, EXPERIMENT), key=lambda r: r.name) == sorted(records, key=lambda r: r.name)


def _contents(uri: str) -> dict[str, list[Any]]:
    """All rows of the tables that runs lie in."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store:
        return {table: sorted(map(repr, store.execute(f"SELECT * FROM {table}"))) for table in TABLES}


def _forget(journal: Journal) -> None:
    """As if the courier had died before it noted anything."""
    for note in [*journal.root.glob(f"records/*/{STATE}"), *journal.root.glob("runs/*")]:
        note.unlink()


def _courier_number(journal: Journal) -> int:
    """The process number of the courier at work, 0 if there is none."""
    try:
        number = int((journal.root / LOCK).read_text() or 0)
        command = Path(f"/proc/{number}/cmdline").read_bytes()
    except (FileNotFoundError, ValueError):
        return 0
    return number if str(journal.root).encode() in command else 0


def _kill_courier(journal: Journal) -> bool:
    number = _courier_number(journal)
    if number:
        os.kill(number, signal.SIGKILL)
        with (journal.root / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # dying takes a moment
    return bool(number)


# ---- what arrives


def test_a_record_arrives_whole(journal: Journal, uri: str, tmp_path: Path) -> None:
    record = _record(versioned=False, versioned_note="corpus.path departs", departures={"corpus.path": "data"})
    journal.write(record)
    journal.add_picture(record, "kept by scene", "| scene | kept |\n|---|---|\n")
    assert deliver(journal, uri) == Delivery(1, 0)
    child, parent = _children(uri)[record.name], _parents(uri)[record.run_id]
    assert (child.info.run_name, parent.info.run_name) == (record.asset, record.run_id[:8])
    assert child.data.params == {
        "embedding.backbone": "mobilenet_v2",
        "embedding.batch_size": "64",
        "embedding.weights": "null",
    }
    assert child.data.metrics == record.metrics
    assert child.info.start_time == int(record.started_at * 1000)
    assert child.info.end_time == parent.info.end_time == int(record.ended_at * 1000)
    tags = child.data.tags
    assert (tags["rsprune.dvc_lock_md5"], tags["rsprune.code_version"]) == (record.dvc_lock_md5, "3")
    assert tags["mlflow.source.git.commit"] == tags["rsprune.git_commit"] == record.git_commit
    assert (tags["rsprune.git_dirty"], tags["rsprune.versioned"]) == ("false", "false")
    assert json.loads(tags["rsprune.departures"]) == record.departures
    artifacts = tmp_path / "mlartifacts" / child.info.run_id / "artifacts"
    assert json.loads((artifacts / "lineage" / "record.json").read_text())["run_id"] == record.run_id
    assert (artifacts / "pictures" / "kept_by_scene.md").is_file()


def test_the_digest_of_each_dataset_is_the_data_version(journal: Journal, uri: str) -> None:
    record = _record()
    journal.write(record)
    deliver(journal, uri)
    datasets = {}
    for item in _children(uri)[record.name].inputs.dataset_inputs:
        (context,) = (tag.value for tag in item.tags if tag.key == "mlflow.data.context")
        datasets[item.dataset.name, context] = item.dataset
    digests = {key: dataset.digest for key, dataset in datasets.items()}
    assert digests == {
        ("raw_corpus", "input"): record.inputs["raw_corpus"],
        ("entropy_scores", "input"): record.inputs["entropy_scores"],
        ("embeddings", "output"): record.data_version,
    }
    assert json.loads(datasets["embeddings", "output"].source)["path"] == "assets/embeddings"


def test_records_are_read_back_equal_by_run_hash_and_asset(journal: Journal, uri: str) -> None:
    one = _record("raw_corpus", data_version="d" * 32 + ".dir")
    two = _record("embeddings", one.run_id, started_at=one.started_at + 1)
    other = _record("embeddings", started_at=one.started_at + 2, status="FAILED", data_version="", message="no disk")
    for record in (one, two, other):
        journal.write(record)
    deliver(journal, uri)
    assert records_in(uri, EXPERIMENT) == [one, two, other]
    assert records_in(uri, EXPERIMENT, run_id=one.run_id) == records_in(uri, EXPERIMENT, run_id=one.run_id[:8])
    assert records_in(uri, EXPERIMENT, run_id=one.run_id) == [one, two]
    assert records_in(uri, EXPERIMENT, data_version="dddd") == [one]
    assert records_in(uri, EXPERIMENT, asset="embeddings") == [two, other]


def test_without_its_artifact_a_record_is_read_from_its_run(journal: Journal, uri: str, tmp_path: Path) -> None:
    record = _record(params={"a.b": "c"}, departures={}, stage={})
    journal.write(record)
    deliver(journal, uri)
    shutil.rmtree(tmp_path / "mlartifacts")
    (read,) = records_in(uri, EXPERIMENT)
    read = replace(read, started_at=record.started_at, ended_at=record.ended_at)  # MLflow rounds to milliseconds
    assert read == replace(record, process="", n_files=0, size_bytes=0)


def test_what_mlflow_cannot_hold_is_cut_or_named_not_refused(journal: Journal, uri: str) -> None:
    long = "x" * 20_000
    metrics = {"fine": 1.0, "none": float("nan"), "endless": float("inf"), "kept (sea, lake)": 2.0}
    record = _record(params={"corpus.paths": long}, message=long, metrics=metrics)
    journal.write(record)
    assert deliver(journal, uri).error == ""
    child = _children(uri)[record.name]
    assert child.data.params["corpus.paths"].endswith("cut from 20000 characters; whole in lineage/record.json")
    assert child.data.metrics == {"fine": 1.0, "kept _sea_ lake_": 2.0}
    assert child.data.tags["rsprune.metrics_skipped"] == "none, endless"


def test_a_retry_goes_on_with_its_run(journal: Journal, uri: str) -> None:
    running = _record(status="RUNNING", data_version="", metrics={})
    failed = replace(running, status="FAILED", ended_at=time.time(), message="no disk")
    again = replace(running, attempt=2, params={**running.params, "embedding.batch_size": 32})
    done = replace(again, status="FINISHED", ended_at=time.time() + 5, data_version="e" * 32 + ".dir")
    for record in (running, failed, again, done):
        journal.write(record)
        assert deliver(journal, uri).error == ""
        assert _children(uri)[record.name].info.status == _parents(uri)[record.run_id].info.status == record.status
    tags = _children(uri)[done.name].data.tags
    assert (tags["rsprune.attempt"], tags["rsprune.message"]) == ("2", "")
    assert json.loads(tags["rsprune.params_changed"]) == {"embedding.batch_size": "32"}


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["FINISHED", "FINISHED"], "FINISHED"),
        (["FINISHED", "KILLED"], "KILLED"),
        (["KILLED", "FAILED"], "FAILED"),
        (["FAILED", "RUNNING"], "RUNNING"),
    ],
)
def test_a_run_ends_as_badly_as_the_worst_of_its_assets(
    journal: Journal, uri: str, statuses: list[Status], expected: str
) -> None:
    run_id = str(uuid.uuid4())
    for number, status in enumerate(statuses):
        journal.write(_record(f"asset_{number}", run_id, status))
    deliver(journal, uri)
    assert [child.info.status for _, child in sorted(_children(uri).items())] == statuses
    assert _parents(uri)[run_id].info.status == expected


def test_a_record_whose_process_died_is_killed_and_a_later_asset_reopens_the_run(journal: Journal, uri: str) -> None:
    dead = _record("raw_corpus", status="RUNNING", process=GONE)
    journal.write(dead)
    deliver(journal, uri)
    assert _children(uri)[dead.name].info.status == _parents(uri)[dead.run_id].info.status == "KILLED"
    later = _record("embeddings", dead.run_id, "RUNNING")
    journal.write(later)
    deliver(journal, uri)
    assert _parents(uri)[dead.run_id].info.status == "RUNNING"


# ---- once


def test_delivered_again_nothing_changes(journal: Journal, uri: str) -> None:
    run_id = str(uuid.uuid4())
    for asset in ("raw_corpus", "embeddings"):
        journal.write(_record(asset, run_id))
    deliver(journal, uri)
    before = _contents(uri)
    assert deliver(journal, uri) == Delivery(0, 0)
    _forget(journal)
    assert deliver(journal, uri) == Delivery(2, 0)
    assert _contents(uri) == before


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True], ids=["before the call", "after the call"])
def test_cut_off_at_every_call_of_mlflow_the_next_delivery_completes_it(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    run_id = str(uuid.uuid4())
    records = [_record("raw_corpus", run_id), _record("embeddings", run_id, "FAILED")]
    n_cuts = 0
    for n_calls in range(100):
        folder = tmp_path / str(n_calls)
        folder.mkdir()
        shutil.copy(empty_store, folder / "mlflow.db")
        uri, journal = f"sqlite:///{folder / 'mlflow.db'}", Journal(folder / "journal")
        for record in records:
            journal.write(record)
        with monkeypatch.context() as patched:
            patched.setattr(mlflow_delivery, "connect", lambda *to, n=n_calls: _cut_off(connect(*to), n, is_done))
            try:
                deliver(journal, uri)
            except KeyboardInterrupt:
                n_cuts += 1
        assert deliver(journal, uri).error == ""
        _check_complete(uri, records)
        if n_cuts <= n_calls:
            break
    assert n_cuts == n_calls > 12


def _cut_off(tracking: Tracking, n_calls: int, is_done: bool) -> Tracking:
    """The process is cut off at the call after `n_calls` others, before or after it has had its effect."""

    class Client:
        left = n_calls

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                self.left -= 1
                if self.left == -1 and not is_done:
                    raise KeyboardInterrupt
                result = getattr(tracking.client, name)(*args, **options)
                if self.left == -1:
                    raise KeyboardInterrupt
                return result

            return call

    return replace(tracking, client=Client())  # type: ignore[arg-type]


def test_a_run_that_was_deleted_in_mlflow_is_made_anew_when_its_record_changes(journal: Journal, uri: str) -> None:
    record = _record()
    journal.write(record)
    deliver(journal, uri)
    for run in _runs(uri):
        connect(uri, EXPERIMENT).client.delete_run(run.info.run_id)
    assert deliver(journal, uri) == Delivery(0, 0)
    changed = replace(record, message="settled")
    journal.write(changed)
    assert deliver(journal, uri) == Delivery(1, 0)
    assert _children(uri)[changed.name].data.tags["rsprune.message"] == "settled"


def test_a_store_that_was_wiped_or_replaced_gets_all_records_again(
    journal: Journal, uri: str, tmp_path: Path, empty_store: Path
) -> None:
    records = [_record("raw_corpus"), _record("embeddings")]
    journal.write(records[0])
    deliver(journal, uri)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        for table in (*TABLES, "experiments"):
            store.execute(f"DELETE FROM {table}")
        store.commit()
    journal.write(records[1])
    assert deliver(journal, uri) == Delivery(2, 0)
    _check_complete(uri, records)
    (tmp_path / "other").mkdir()
    shutil.copy(empty_store, tmp_path / "other" / "mlflow.db")
    other = f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    assert deliver(journal, other) == Delivery(2, 0)
    _check_complete(other, records)


# ---- what fails


def test_a_server_that_is_down_or_silent_is_one_sentence_and_the_records_wait(
    journal: Journal, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    record = _record()
    journal.write(record)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port, reason in ((free_port(), "nothing listens there"), (silent.getsockname()[1], "no answer")):
            delivery = deliver(journal, f"http://me:secret@127.0.0.1:{port}")
            assert (delivery.n_delivered, delivery.n_waiting) == (0, 1)
            assert f"MLflow at http://127.0.0.1:{port} cannot be reached: {reason}" in delivery.error
            assert courier_trouble(journal) == delivery.error
            assert wait_for_delivery(journal, record.run_id, timeout_s=60) == delivery  # it was tried: no minute passes
    assert mlflow_link(journal, record) == ""
    assert deliver(journal, uri) == Delivery(1, 0)
    assert courier_trouble(journal) == ""


def test_an_artifact_store_that_is_down_gets_the_files_later(journal: Journal, uri: str, tmp_path: Path) -> None:
    records = [_record("raw_corpus"), _record("embeddings")]
    for record in records:
        journal.write(record)
    (tmp_path / "mlartifacts").write_text("a file where a folder should be")
    delivery = deliver(journal, uri)
    assert (delivery.n_delivered, delivery.n_waiting) == (0, 2)
    assert "not their files" in delivery.error
    assert {child.info.status for child in _children(uri).values()} == {"FINISHED"}
    assert all(mlflow_link(journal, record) for record in records)
    (tmp_path / "mlartifacts").unlink()
    assert deliver(journal, uri) == Delivery(2, 0)
    _check_complete(uri, records)


def test_a_record_that_mlflow_refuses_holds_up_no_other(journal: Journal, uri: str) -> None:
    refused = _record("raw_corpus", metrics={"a//b": 1.0})
    fine = _record("embeddings")
    for record in (refused, fine):
        journal.write(record)
    delivery = deliver(journal, uri)
    assert (delivery.n_delivered, delivery.n_waiting) == (1, 1)
    assert f"MLflow refused the record {refused.name}" in delivery.error
    assert _children(uri)[fine.name].info.status == "FINISHED"


@pytest.mark.parametrize("address", ["mlflow.db", "file:///tmp/mlruns", "postgresql://me:secret@host/db"])
def test_an_address_of_another_kind_is_said_with_what_to_give(journal: Journal, address: str) -> None:
    journal.write(_record())
    error = deliver(journal, address).error
    assert "sqlite:///" in error
    assert "http(s)://" in error
    assert "secret" not in error


# ---- the courier


def test_starting_a_courier_takes_milliseconds_and_imports_no_mlflow(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from rsprune_dagster.resources import mlflow_courier as courier
from rsprune_dagster.resources.journal import Journal
started = time.perf_counter()
courier.start_courier(Journal(Path(sys.argv[1])), "http://127.0.0.1:9")
print((time.perf_counter() - started) * 1000, "mlflow" in sys.modules)
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout.split()
    assert float(said[0]) < 200
    assert said[1] == "False"
    _kill_courier(Journal(tmp_path))


@pytest.mark.parametrize("moment", ["the lock is still held", "the lock was let go"])
def test_no_record_is_left_behind_by_a_courier_that_is_just_ending(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A record is written, and a courier asked for, at the worst moments of a courier that has decided to end."""
    couriers: list[threading.Thread] = []
    late = iter([_record("embeddings")])

    def spawn(journal: Journal, _: object, lock: int) -> None:
        couriers.append(threading.Thread(target=serve, args=(Desk(journal, "", ""), os.dup(lock))))
        couriers[-1].start()

    def write(record: Record) -> None:
        journal.write(record)
        start_courier(journal, "")

    serve_until_idle, contents = mlflow_courier._serve_until_idle, mlflow_courier._contents

    def idle(desk: Desk) -> frozenset[str]:
        tried = serve_until_idle(desk)
        for record in late if moment == "the lock is still held" else ():
            write(record)
        return tried

    def looked(desk: Desk) -> frozenset[str]:
        for record in late if moment == "the lock was let go" else ():
            write(record)
        return contents(desk)

    patches = {"LINGER_S": 0.01, "_POLL_S": 0.001, "deliver_once": _deliver_at_once, "_spawn": spawn}
    for name, value in {**patches, "_serve_until_idle": idle, "_contents": looked}.items():
        monkeypatch.setattr(mlflow_courier, name, value)
    write(_record("raw_corpus"))
    for courier in couriers:
        courier.join()
    assert next(late, None) is None
    assert len(couriers) == (1 if moment == "the lock is still held" else 2)
    assert not _waiting(journal, "", "")


def _deliver_at_once(desk: Desk, tracking: Tracking | None, linger_s: float) -> tuple[Delivery, Tracking | None]:
    parcels = desk.parcels()
    for parcel in desk.waiting(parcels, None):
        desk.note(parcel.state_path, State(delivered=parcel.content))
    for run_id, ending in desk.due(parcels, None, linger_s).items():
        desk.note(desk.run_path(run_id), State(delivered=str(ending)))
    return Delivery(1, 0), tracking


@pytest.mark.slow
def test_a_courier_follows_a_run_to_its_end_and_ends(journal: Journal, uri: str) -> None:
    run_id = str(uuid.uuid4())
    for asset in ("raw_corpus", "embeddings"):
        running = _record(asset, run_id, "RUNNING", data_version="")
        journal.write(running)
        start_courier(journal, uri)
        _until(lambda running=running: mlflow_link(journal, running) != "")
        assert _children(uri)[running.name].info.status == _parents(uri)[run_id].info.status == "RUNNING"
        done = replace(running, status="FINISHED", ended_at=time.time(), data_version="e" * 32 + ".dir")
        journal.write(done)
        start_courier(journal, uri)
        assert wait_for_delivery(journal, run_id, timeout_s=60).n_waiting == 0
    _until(lambda: not _courier_number(journal))
    assert _parents(uri)[run_id].info.status == "FINISHED"
    _check_complete(uri, journal.records())


@pytest.mark.slow
def test_killed_at_random_moments_the_couriers_leave_one_run_per_record(journal: Journal, uri: str) -> None:
    rng = random.Random(0)
    n_killed_at_work = 0
    for round_ in range(8):
        run_id = str(uuid.uuid4())
        for number in range(6):
            journal.write(_record(f"asset_{number}", run_id, "FINISHED" if number % 2 else "FAILED"))
        start_courier(journal, uri)
        noted = len(list(journal.root.glob(f"records/*/{STATE}")))
        _until(lambda noted=noted: len(list(journal.root.glob(f"records/*/{STATE}"))) > noted + rng.randrange(3))
        time.sleep(rng.uniform(0, 0.3))
        n_killed_at_work += _kill_courier(journal) and bool(_waiting(journal, uri))
        if round_ % 3 == 2:
            deliver(journal, uri)
    assert n_killed_at_work > 2, "hardly a courier was killed at work"
    assert deliver(journal, uri).error == ""
    _check_complete(uri, journal.records())


def _waiting(journal: Journal, uri: str, experiment: str = EXPERIMENT) -> list[Any]:
    desk = Desk(journal, uri, experiment)
    return desk.waiting(desk.parcels(), None)


def _until(holds: Any, patience_s: float = 60) -> None:
    ends = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.02)


RUN = """
import sys, time, uuid
from dataclasses import replace
from pathlib import Path
from rsprune_dagster.resources.journal import Journal, Record, this_process
from rsprune_dagster.resources.mlflow_courier import start_courier
journal, uri, run_id = Journal(Path(sys.argv[1])), sys.argv[2], str(uuid.uuid4())
for number in range(int(sys.argv[3])):
    record = Record(run_id, f"asset_{number}", "RUNNING", time.time(), this_process())
    journal.write(record)
    start_courier(journal, uri)
    time.sleep(0.5)
    journal.write(replace(record, status="FINISHED", ended_at=time.time(), data_version=f"{number:032d}.dir"))
    start_courier(journal, uri)
"""


def _run(journal: Journal, uri: str, n_assets: int = 3) -> "subprocess.Popen[bytes]":
    """A process that records a run of some assets, as Dagster's does."""
    return subprocess.Popen([sys.executable, "-c", RUN, str(journal.root), uri, str(n_assets)])


@pytest.mark.slow
def test_several_runs_at_once_share_a_courier_and_a_store_that_is_yet_to_be_made(
    journal: Journal, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    other = Journal(tmp_path / "other")  # another project with the same store
    processes = [_run(journal, uri) for _ in range(4)] + [_run(other, uri)]
    assert [process.wait() for process in processes] == [0] * 5
    for each in (journal, other):
        for run_id in {record.run_id for record in each.records()}:
            assert wait_for_delivery(each, run_id, timeout_s=90).error == ""
    _until(lambda: not _courier_number(journal) and not _courier_number(other))
    records = [*journal.records(), *other.records()]
    assert len(records) == 15
    _check_complete(uri, records)
    assert {parent.info.status for parent in _parents(uri).values()} == {"FINISHED"}
    # all couriers of a journal append to one log: MLflow has nothing to say
    assert (journal.root / "courier.log").read_text() == ""


# ---- servers


@pytest.fixture(params=["sqlite", "postgres and s3"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What `mlflow_server` is called with, for a server that can be stopped and started again."""
    common = {"folder": tmp_path / "server", "port": free_port()}
    if request.param == "sqlite":
        yield common
        return
    with postgres(tmp_path / "postgres") as database, s3_server(tmp_path / "s3", "runs") as s3:
        yield {**common, "backend_uri": database, "artifacts": "s3://runs/artifacts", "env": s3_environment(s3)}
        assert any(key.endswith("/lineage/record.json") for key in s3_keys(s3, "runs"))


@pytest.mark.slow
def test_a_run_beside_a_server_that_is_down_is_delivered_once_it_is_up(
    journal: Journal, server: dict[str, Any]
) -> None:
    uri = f"http://127.0.0.1:{server['port']}"
    assert _run(journal, uri).wait() == 0
    (run_id,) = {record.run_id for record in journal.records()}
    waited = wait_for_delivery(journal, run_id, timeout_s=60)
    assert waited.n_waiting == 3
    assert "nothing listens there" in waited.error
    _until(lambda: not _courier_number(journal))
    with mlflow_server(**server):
        assert _run(journal, uri).wait() == 0
        (latest,) = {record.run_id for record in journal.records()} - {run_id}
        assert wait_for_delivery(journal, latest, timeout_s=90) == Delivery(3, 0)
        _until(lambda: not _courier_number(journal))
        _check_complete(uri, journal.records())
        assert courier_trouble(journal) == ""
        _check_links(journal, uri)


def _check_links(journal: Journal, uri: str) -> None:
    """The server answers at each link, and knows the run and the experiment it names."""
    for record in journal.records():
        page, _, place = mlflow_link(journal, record).partition("#")
        _, experiment_id, _, run_id = place.partition("?")[0].removeprefix("/").split("/")
        assert page == f"{uri}/"
        with urllib.request.urlopen(page, timeout=30) as answer:
            assert answer.status == 200
        run = connect(uri, EXPERIMENT).client.get_run(run_id)
        assert (run.info.experiment_id, run.data.tags["rsprune.record"]) == (experiment_id, record.name)


# ---- small things


def test_the_project_s_own_store_is_linked_to_where_make_mlflow_serves_it(empty_store: Path, tmp_path: Path) -> None:
    journal, record = Journal(tmp_path / ".state" / "lineage"), _record()
    journal.write(record)
    store = tmp_path / ".state" / "mlflow" / "mlflow.db"
    store.parent.mkdir()
    shutil.copy(empty_store, store)
    assert deliver(journal, f"sqlite:///{store}").error == ""
    child = _children(f"sqlite:///{store}")[record.name].info
    place = f"/#/experiments/{child.experiment_id}/runs/{child.run_id}?workflowType=machine_learning"
    assert mlflow_link(journal, record) == "http://127.0.0.1:5000" + place
    served = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    assert "MLFLOW_PORT ?= 5000" in served and "/.state/mlflow/mlflow.db" in served


def test_an_address_is_shown_without_its_password() -> None:
    assert public("https://me:secret@host:5000/mlflow") == "https://host:5000/mlflow"
    assert public("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
    assert not is_alive(GONE)
