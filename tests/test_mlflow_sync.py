"""Records reach MLflow whole and once, whatever dies on the way; no asset waits for a store."""

import json
import random
import shutil
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
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from servers import free_port, mlflow_server, postgres, s3_environment, s3_keys, s3_server

from rsprune_dagster.tracking import mlflow_sync
from rsprune_dagster.tracking.mlflow_runs import Experiment, connect, records_in, without_password
from rsprune_dagster.tracking.mlflow_sync import NOTE, last_sync, run_link, search_link, start_sync, wait_for_sync
from rsprune_dagster.tracking.run_log import Record, RunLog, Status, is_alive, this_process

EXPERIMENT = "rsprune"
WAIT_S = 600
GONE = "another-boot:1:1"
"""A process that is no more."""
TABLES = ("runs", "params", "metrics", "latest_metrics", "tags", "datasets", "inputs", "input_tags")


@pytest.fixture
def run_log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "run_log")


def sync(run_log: RunLog, uri: str) -> tuple[int, str]:
    """How many records are pending after a sync in this process, and why."""
    result = mlflow_sync.sync(run_log, uri, EXPERIMENT)
    return result.n_pending, result.error


DONE = (0, "")


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
    experiment = connect(uri, EXPERIMENT)
    return list(experiment.client.search_runs([experiment.id], order_by=["attributes.start_time"]))


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


def _forget(run_log: RunLog) -> None:
    """As if the syncs had been killed before they noted anything."""
    for note in run_log.root.glob(f"records/*/{NOTE}"):
        note.unlink()


# ---- what arrives


def test_a_record_arrives_whole(run_log: RunLog, uri: str, tmp_path: Path) -> None:
    record = _record(versioned=False, versioned_note="corpus.path departs", departures={"corpus.path": "data"})
    run_log.write(record)
    run_log.add_picture(record, "kept by scene", "| scene | kept |\n|---|---|\n")
    assert sync(run_log, uri) == DONE
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


def test_the_digest_of_each_dataset_is_the_data_version(run_log: RunLog, uri: str) -> None:
    record = _record()
    run_log.write(record)
    sync(run_log, uri)
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


def test_records_are_read_back_equal_by_run_hash_and_asset(run_log: RunLog, uri: str) -> None:
    one = _record("raw_corpus", data_version="d" * 32 + ".dir")
    two = _record("embeddings", one.run_id, started_at=one.started_at + 1)
    other = _record("embeddings", started_at=one.started_at + 2, status="FAILED", data_version="", message="no disk")
    for record in (one, two, other):
        run_log.write(record)
    sync(run_log, uri)
    assert records_in(uri, EXPERIMENT) == [one, two, other]
    assert records_in(uri, EXPERIMENT, run_id=one.run_id) == records_in(uri, EXPERIMENT, run_id=one.run_id[:8])
    assert records_in(uri, EXPERIMENT, run_id=one.run_id) == [one, two]
    assert records_in(uri, EXPERIMENT, data_version="dddd") == [one]
    assert records_in(uri, EXPERIMENT, asset="embeddings") == [two, other]


def test_what_mlflow_cannot_hold_is_cut_or_named_not_refused(run_log: RunLog, uri: str) -> None:
    long = "x" * 20_000
    metrics = {"fine": 1.0, "none": float("nan"), "endless": float("inf"), "kept (sea, lake)": 2.0}
    record = _record(params={"corpus.paths": long}, message=long, metrics=metrics)
    run_log.write(record)
    assert sync(run_log, uri) == DONE
    child = _children(uri)[record.name]
    assert child.data.params["corpus.paths"].endswith("cut from 20000 characters; whole in lineage/record.json")
    assert child.data.metrics == {"fine": 1.0, "kept _sea_ lake_": 2.0}
    assert child.data.tags["rsprune.metrics_skipped"] == "none, endless"


def test_a_retry_goes_on_with_its_run(run_log: RunLog, uri: str) -> None:
    running = _record(status="RUNNING", data_version="", metrics={})
    failed = replace(running, status="FAILED", ended_at=time.time(), message="no disk", process=GONE)
    again = replace(running, attempt=2, params={**running.params, "embedding.batch_size": 32})
    done = replace(again, status="FINISHED", ended_at=time.time() + 5, data_version="e" * 32 + ".dir", process=GONE)
    for record in (running, failed, again, done):
        run_log.write(record)
        assert sync(run_log, uri) == DONE
        assert _children(uri)[record.name].info.status == _parents(uri)[record.run_id].info.status == record.status
    tags = _children(uri)[done.name].data.tags
    assert (tags["rsprune.attempt"], tags["rsprune.message"]) == ("2", "")
    assert json.loads(tags["rsprune.params_changed"]) == {"embedding.batch_size": "32"}


def test_a_run_is_running_between_its_assets_until_it_has_ended(run_log: RunLog, uri: str) -> None:
    record = replace(_record(), process=this_process())
    run_log.write(record)
    assert sync(run_log, uri) == DONE
    assert _parents(uri)[record.run_id].info.status == "RUNNING"
    assert _children(uri)[record.name].info.status == "FINISHED"
    run_log.end_run(record.run_id)
    assert sync(run_log, uri) == DONE
    assert _parents(uri)[record.run_id].info.status == "FINISHED"


def test_what_an_earlier_version_copied_is_not_copied_again(run_log: RunLog, uri: str) -> None:
    record = _record()
    run_log.write(record)
    state = {"tracking_uri": uri, "experiment": EXPERIMENT, "experiment_id": "1", "experiment_created": 5}
    for delivered, n_runs in (("FINISHED-0123", 0), ("", 1)):
        note = {**state, "mlflow_run_id": "ab12", "tracked": "", "delivered": delivered}
        (run_log.folder(record) / "delivery.json").write_text(json.dumps(note))
        sync(run_log, uri)
        assert len(_children(uri)) == n_runs


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
    run_log: RunLog, uri: str, statuses: list[Status], expected: str
) -> None:
    run_id = str(uuid.uuid4())
    for number, status in enumerate(statuses):
        run_log.write(_record(f"asset_{number}", run_id, status))
    sync(run_log, uri)
    assert [child.info.status for _, child in sorted(_children(uri).items())] == statuses
    assert _parents(uri)[run_id].info.status == expected


def test_a_record_whose_process_died_is_killed_and_a_later_asset_reopens_the_run(run_log: RunLog, uri: str) -> None:
    dead = _record("raw_corpus", status="RUNNING", process=GONE)
    run_log.write(dead)
    sync(run_log, uri)
    assert _children(uri)[dead.name].info.status == _parents(uri)[dead.run_id].info.status == "KILLED"
    later = _record("embeddings", dead.run_id, "RUNNING")
    run_log.write(later)
    sync(run_log, uri)
    assert _parents(uri)[dead.run_id].info.status == "RUNNING"


# ---- once


def test_delivered_again_nothing_changes(run_log: RunLog, uri: str) -> None:
    run_id = str(uuid.uuid4())
    for asset in ("raw_corpus", "embeddings"):
        run_log.write(_record(asset, run_id))
    sync(run_log, uri)
    before = _contents(uri)
    assert sync(run_log, uri) == DONE
    _forget(run_log)
    assert sync(run_log, uri) == DONE
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
        uri, run_log = f"sqlite:///{folder / 'mlflow.db'}", RunLog(folder / "run_log")
        for record in records:
            run_log.write(record)
        with monkeypatch.context() as patched:
            patched.setattr(mlflow_sync, "connect", lambda *to, n=n_calls: _cut_off(connect(*to), n, is_done))
            try:
                sync(run_log, uri)
            except KeyboardInterrupt:
                n_cuts += 1
        assert sync(run_log, uri) == DONE
        _check_complete(uri, records)
        if n_cuts <= n_calls:
            break
    assert n_cuts == n_calls > 12


def _cut_off(experiment: Experiment, n_calls: int, is_done: bool) -> Experiment:
    """The process is cut off at the call after `n_calls` others, before or after it has had its effect."""

    class Client:
        left = n_calls

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                self.left -= 1
                if self.left == -1 and not is_done:
                    raise KeyboardInterrupt
                result = getattr(experiment.client, name)(*args, **options)
                if self.left == -1:
                    raise KeyboardInterrupt
                return result

            return call

    return replace(experiment, client=Client())  # type: ignore[arg-type]


def test_a_run_that_was_deleted_in_mlflow_is_made_anew_when_its_record_changes(run_log: RunLog, uri: str) -> None:
    record = _record()
    run_log.write(record)
    sync(run_log, uri)
    for run in _runs(uri):
        connect(uri, EXPERIMENT).client.delete_run(run.info.run_id)
    assert sync(run_log, uri) == DONE
    changed = replace(record, message="settled")
    run_log.write(changed)
    assert sync(run_log, uri) == DONE
    assert _children(uri)[changed.name].data.tags["rsprune.message"] == "settled"


def test_a_store_that_was_wiped_or_replaced_gets_all_records_again(
    run_log: RunLog, uri: str, tmp_path: Path, empty_store: Path
) -> None:
    records = [_record("raw_corpus"), _record("embeddings")]
    run_log.write(records[0])
    sync(run_log, uri)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        for table in (*TABLES, "experiments"):
            store.execute(f"DELETE FROM {table}")
        store.commit()
    run_log.write(records[1])
    assert sync(run_log, uri) == DONE
    _check_complete(uri, records)
    (tmp_path / "other").mkdir()
    shutil.copy(empty_store, tmp_path / "other" / "mlflow.db")
    other = f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    assert sync(run_log, other) == DONE
    _check_complete(other, records)


# ---- what fails


def test_a_server_that_is_down_or_silent_or_no_mlflow_is_one_sentence_and_the_records_wait(
    run_log: RunLog, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    record = _record()
    run_log.write(record)
    with socket.create_server(("127.0.0.1", 0)) as silent, garbage_server() as garbage:
        reasons = {free_port(): "nothing listens there", silent.getsockname()[1]: "no answer", garbage: ""}
        for port, reason in reasons.items():
            address = f"http://me:secret@127.0.0.1:{port}"
            n_pending, error = sync(run_log, address)
            assert n_pending == 1
            assert error.startswith(f"MLflow at http://127.0.0.1:{port} did not take the records: {reason}")
            assert "\n" not in error and len(error) < 400
            # it was tried: no minute passes
            waited = wait_for_sync(run_log, address, EXPERIMENT, record.run_id, timeout_s=60)
            assert (waited.n_pending, waited.error) == (1, error)
    assert run_link(run_log, record) == ""
    assert sync(run_log, uri) == DONE
    assert last_sync(run_log).error == ""


@contextmanager
def garbage_server() -> Iterator[int]:
    """A web server that knows no MLflow; yields its port."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>\n" * 1000)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_an_artifact_store_that_is_down_gets_the_files_later(run_log: RunLog, uri: str, tmp_path: Path) -> None:
    records = [_record("raw_corpus"), _record("embeddings")]
    for record in records:
        run_log.write(record)
    (tmp_path / "mlartifacts").write_text("a file where a folder should be")
    n_pending, error = sync(run_log, uri)
    assert n_pending == 2
    assert "not their files" in error
    assert {child.info.status for child in _children(uri).values()} == {"FINISHED"}
    assert all(run_link(run_log, record) for record in records)
    assert records_in(uri, EXPERIMENT) == []
    (tmp_path / "mlartifacts").unlink()
    assert sync(run_log, uri) == DONE
    _check_complete(uri, records)


def test_a_record_that_mlflow_refuses_holds_up_no_other(run_log: RunLog, uri: str) -> None:
    refused = _record("raw_corpus", metrics={"a//b": 1.0})
    fine = _record("embeddings")
    for record in (refused, fine):
        run_log.write(record)
    n_pending, error = sync(run_log, uri)
    assert n_pending == 1
    assert f"MLflow refused the record {refused.name}" in error
    assert _children(uri)[fine.name].info.status == "FINISHED"


@pytest.mark.parametrize("address", ["mlflow.db", "file:///tmp/mlruns", "postgresql://me:secret@host/db"])
def test_an_address_of_another_kind_is_said_with_what_to_give(run_log: RunLog, address: str) -> None:
    run_log.write(_record())
    _, error = sync(run_log, address)
    assert "sqlite:///" in error
    assert "http(s)://" in error
    assert "secret" not in error


# ---- the child process


def test_starting_a_sync_imports_no_mlflow_and_a_later_wait_sees_its_end(tmp_path: Path, uri: str) -> None:
    run_log, record = RunLog(tmp_path / "run_log"), _record()
    run_log.write(record)
    code = """
import sys
from pathlib import Path
from rsprune_dagster.tracking import mlflow_sync
from rsprune_dagster.tracking.run_log import RunLog
mlflow_sync.start_sync(RunLog(Path(sys.argv[1])), sys.argv[2], "rsprune")
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(run_log.root), uri], check=True)
    assert _waited(run_log, uri, record.run_id) == DONE
    _check_complete(uri, [record])
    assert (run_log.root / "mlflow_sync.log").read_text() == ""  # MLflow has nothing to say


@pytest.mark.slow
def test_syncs_at_once_and_killed_at_random_moments_leave_one_run_per_record(run_log: RunLog, uri: str) -> None:
    rng = random.Random(0)
    for _ in range(4):
        run_id = str(uuid.uuid4())
        for number in range(4):
            run_log.write(_record(f"asset_{number}", run_id, "FINISHED" if number % 2 else "FAILED"))
        command = [sys.executable, "-m", mlflow_sync.__name__, str(run_log.root), uri, EXPERIMENT, "0"]
        n_noted = len(_notes(run_log))
        processes = [subprocess.Popen(command) for _ in range(2)]
        while len(_notes(run_log)) <= n_noted and any(process.poll() is None for process in processes):
            time.sleep(0.01)
        assert len(_notes(run_log)) > n_noted
        time.sleep(rng.uniform(0, 0.3))
        processes[0].kill()
        assert processes[1].wait() == 0
        processes[0].wait()
    assert sync(run_log, uri) == DONE
    _check_complete(uri, run_log.records())


def _notes(run_log: RunLog) -> list[Path]:
    return [*run_log.root.glob(f"records/*/{NOTE}")]


def _waited(run_log: RunLog, uri: str, run_id: str) -> tuple[int, str]:
    result = wait_for_sync(run_log, uri, EXPERIMENT, run_id, timeout_s=WAIT_S)
    return result.n_pending, result.error


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
def test_what_a_server_that_is_down_missed_is_copied_once_it_is_up(run_log: RunLog, server: dict[str, Any]) -> None:
    uri, first = f"http://127.0.0.1:{server['port']}", _record("raw_corpus")
    run_log.write(first)
    start_sync(run_log, uri, EXPERIMENT)
    n_pending, error = _waited(run_log, uri, first.run_id)
    assert n_pending == 1 and "nothing listens there" in error
    with mlflow_server(**server):
        second = _record("embeddings", ended_at=time.time())
        run_log.write(second)
        start_sync(run_log, uri, EXPERIMENT)
        assert _waited(run_log, uri, second.run_id) == DONE
        _check_complete(uri, [first, second])
        _check_links(run_log, uri)


def _check_links(run_log: RunLog, uri: str) -> None:
    """The server answers at each link, and knows the run and the experiment it names."""
    for record in run_log.records():
        page, _, place = run_link(run_log, record).partition("#")
        _, experiment_id, _, run_id = place.partition("?")[0].removeprefix("/").split("/")
        assert page == f"{uri}/"
        with urllib.request.urlopen(page, timeout=30) as answer:
            assert answer.status == 200
        run = connect(uri, EXPERIMENT).client.get_run(run_id)
        assert (run.info.experiment_id, run.data.tags["rsprune.record"]) == (experiment_id, record.name)


# ---- small things


def test_the_project_s_own_store_is_linked_to_where_make_mlflow_serves_it(empty_store: Path, tmp_path: Path) -> None:
    run_log, first, second = RunLog(tmp_path / ".state" / "lineage"), _record(), _record()
    store = tmp_path / ".state" / "mlflow" / "mlflow.db"
    store.parent.mkdir(parents=True)
    shutil.copy(empty_store, store)
    uri = f"sqlite:///{store}"
    assert search_link(run_log, first, uri, EXPERIMENT) == "http://127.0.0.1:5000/#/experiments"
    run_log.write(first)
    assert sync(run_log, uri) == DONE
    child = _children(uri)[first.name].info
    runs = f"http://127.0.0.1:5000/#/experiments/{child.experiment_id}/runs"
    assert run_link(run_log, first) == f"{runs}/{child.run_id}?workflowType=machine_learning"
    run_log.write(second)
    assert run_link(run_log, second) == ""
    link = search_link(run_log, second, uri, EXPERIMENT)
    clause = parse_qs(link.partition("?")[2])["searchFilter"]
    assert link.startswith(f"{runs}?") and clause == [f"tags.`rsprune.record` = '{second.name}'"]
    assert sync(run_log, uri) == DONE
    [found] = connect(uri, EXPERIMENT).client.search_runs([child.experiment_id], *clause)
    assert found.info.run_id == _children(uri)[second.name].info.run_id
    served = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    assert "MLFLOW_PORT ?= 5000" in served and "/.state/mlflow/mlflow.db" in served


def test_an_address_is_shown_without_its_password() -> None:
    assert without_password("https://me:secret@host:5000/mlflow") == "https://host:5000/mlflow"
    assert without_password("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
    assert not is_alive(GONE)
