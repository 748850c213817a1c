"""How runs end, by Dagster's own executors: what run log, dvc.lock, Dagster and MLflow then say of them."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from servers import free_port, mlflow_server, s3_environment, s3_server
from tiny_project import ASSETS, SENTENCE, Tiny, tiny_project

from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.mlflow_runs import connect
from rsprune_dagster.tracking.mlflow_sync import sync, wait_for_sync
from rsprune_dagster.tracking.run_log import DAMAGED, RECORD
from rsprune_dagster.tracking.run_recorder import AssetRecorder
from rsprune_dagster.utils.errors import RunError

DELIVERY_S = 600


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_project(tmp_path / "project")


@pytest.fixture
def made(tiny: Tiny) -> Tiny:
    """The project with all its assets materialized once."""
    assert tiny.run().success
    return tiny


# ---- how a step ends


def test_a_step_that_raises_is_failed_everywhere_and_changes_nothing(made: Tiny, uri: str) -> None:
    before, folder = made.dvc.lock(), tree_of(made.root / "assets" / "second")
    made.plan(second="raise", salt="other")
    run = made.run()
    assert not run.success
    record = made.records_of(run.run_id)["second"]
    assert (record.status, record.message) == ("FAILED", SENTENCE)
    assert (record.versioned, record.data_version) == (False, "")
    assert made.dvc.lock()["second"] == before["second"]
    assert made.dvc.lock()["third"] != before["third"]
    assert tree_of(made.root / "assets" / "second") == folder
    parent, children = _delivered(made, uri)[run.run_id]
    assert parent.info.status == "FAILED"
    assert {name: child.info.status for name, child in children.items()} == {
        "first": "FINISHED",
        "second": "FAILED",
        "third": "FINISHED",
    }
    assert children["second"].data.tags["rsprune.message"] == SENTENCE


def test_a_step_whose_upstream_asset_is_gone_is_failed_with_the_sentence(made: Tiny, uri: str) -> None:
    shutil.rmtree(made.root / "assets" / "first")
    with made.instance() as instance:
        run = made.execute(instance, "in_process", asset_selection=[dg.AssetKey("second")])
    assert not run.success
    record = made.records_of(run.run_id)["second"]
    assert record.status == "FAILED"
    assert "first has not been materialized" in record.message
    parent, children = _delivered(made, uri)[run.run_id]
    assert parent.info.status == children["second"].info.status == "FAILED"


def test_a_retried_step_is_one_child_of_the_second_attempt(tiny: Tiny, uri: str) -> None:
    tiny.plan(third="raise once")
    run = tiny.run()
    assert run.success
    record = tiny.records_of(run.run_id)["third"]
    assert (record.status, record.attempt, record.message) == ("FINISHED", 2, "")
    parent, children = _delivered(tiny, uri)[run.run_id]
    assert parent.info.status == children["third"].info.status == "FINISHED"
    assert children["third"].data.tags["rsprune.attempt"] == "2"
    assert "rsprune.message" not in children["third"].data.tags


def test_a_child_that_was_shown_failed_is_finished_by_its_retry(tiny: Tiny, uri: str) -> None:
    tiny.plan(second="raise")
    with tiny.instance() as instance:
        failed = tiny.execute(instance, "in_process")
        assert _delivered(tiny, uri)[failed.run_id][1]["second"].info.status == "FAILED"
        tiny.plan()
        options = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
        again = tiny.execute(instance, "in_process", reexecution_options=options)
    assert again.success
    runs = _delivered(tiny, uri)
    parent, children = runs[again.run_id]
    assert set(children) == {"second"}
    assert parent.info.status == children["second"].info.status == "FINISHED"
    parent, children = runs[failed.run_id]
    assert parent.info.status == children["second"].info.status == "FAILED"
    assert tiny.dvc.version("second") == tiny.records_of(again.run_id)["second"].data_version


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_a_cancelled_run_is_killed(made: Tiny, uri: str, executor: str) -> None:
    lock, folder = made.dvc.version("second"), tree_of(made.root / "assets" / "second")
    made.plan(second="hang", salt="other")
    process = made.start(executor)
    run_id = made.wait_for("second", "RUNNING").run_id
    assert sync(made.run_log, uri, "rsprune").error == ""
    assert _runs(uri)[run_id][0].info.status == "RUNNING"
    process.send_signal(signal.SIGINT)
    process.wait(timeout=DELIVERY_S)  # far less than it would hang
    record = made.records_of(run_id)["second"]
    assert (record.status, record.message) == ("KILLED", "cancelled")
    parent, children = _delivered(made, uri)[run_id]
    assert parent.info.status == children["second"].info.status == "KILLED"
    assert made.dvc.version("second") == lock
    assert tree_of(made.root / "assets" / "second") == folder


@pytest.mark.slow
def test_a_run_whose_process_was_killed_is_killed_and_settled_by_the_next(made: Tiny, uri: str) -> None:
    made.plan(second="hang", salt="other")
    process = made.start()
    run_id = made.wait_for("second", "RUNNING").run_id
    process.kill()
    process.wait()
    parent, children = _delivered(made, uri)[run_id]
    assert parent.info.status == children["second"].info.status == "KILLED"
    made.plan(salt="other")
    assert made.run().success
    assert made.records_of(run_id)["second"].status == "KILLED"
    assert made.dagster_versions() == {name: made.dvc.version(name) for name in ASSETS}


@pytest.mark.slow
def test_killed_after_all_was_recorded_but_in_dagster_the_next_run_tells_dagster(made: Tiny) -> None:
    made.plan(salt="other")
    kill = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from rsprune_dagster.tracking.run_recorder import AssetRecorder\n"
        "from tiny_project import Tiny\n"
        "def dies(made):\n"
        "    if made.asset == sys.argv[3]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "AssetRecorder.mlflow_link = dies\n"
        "Tiny(Path(sys.argv[2])).run()\n"
    )
    command = [sys.executable, "-c", kill, str(Path(__file__).parent), str(made.root), "second"]
    assert subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert made.dagster_versions()["second"] != made.dvc.version("second")
    with made.instance() as instance:
        assert made.execute(instance, "in_process", asset_selection=[dg.AssetKey("first")]).success
    assert made.dagster_versions() == {name: made.dvc.version(name) for name in ASSETS}


# ---- several at once


@pytest.mark.slow
def test_parallel_steps_of_processes_of_their_own_share_one_parent(tiny: Tiny, uri: str) -> None:
    tiny.plan(third="raise once")
    run = tiny.run("multiprocess")
    assert run.success
    runs = _delivered(tiny, uri)
    assert set(runs) == {run.run_id}
    parent, children = runs[run.run_id]
    assert set(children) == set(ASSETS)
    assert {each.info.status for each in (parent, *children.values())} == {"FINISHED"}
    assert len({record.process for record in tiny.records_of(run.run_id).values()}) == len(ASSETS)
    assert tiny.dagster_versions() == {name: tiny.dvc.version(name) for name in ASSETS}


@pytest.mark.slow
def test_several_runs_at_once_have_a_parent_each(tiny: Tiny, uri: str) -> None:
    with tiny.instance():
        pass  # a new store's tables are Dagster's to make, once
    processes = [tiny.start() for _ in range(3)]
    assert [process.wait(timeout=2 * DELIVERY_S) for process in processes] == [0, 0, 0]
    runs = _delivered(tiny, uri)
    assert len(runs) == 3
    for parent, children in runs.values():
        assert set(children) == set(ASSETS)
        assert {each.info.status for each in (parent, *children.values())} == {"FINISHED"}
    assert tiny.dagster_versions() == {name: tiny.dvc.version(name) for name in ASSETS}
    assert {name: tree_of(tiny.root / "assets" / name).digest for name in ASSETS} == tiny.dagster_versions()


# ---- what changes while an asset is made


def test_params_changed_while_an_asset_was_made_are_not_said_to_have_made_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dvc.lock tells what the asset was made from, so that `dvc status` knows it for outdated."""
    finish = AssetRecorder._written

    def written_late(made: AssetRecorder, staging: Path) -> None:
        if made.asset == "second":
            _set_seed(tiny, 7)
        finish(made, staging)

    monkeypatch.setattr(AssetRecorder, "_written", written_late)
    assert tiny.run().success
    locked = {name: tiny.dvc.lock()[name]["params"]["params.yaml"]["compute.seed"] for name in ASSETS}
    assert locked == {"first": 0, "second": 0, "third": 7}


def test_the_marks_of_a_merge_in_dvc_lock_are_one_line_and_nothing_is_written(made: Tiny) -> None:
    lock, before = made.root / "dvc.lock", tree_of(made.root / "assets" / "first").digest
    conflict = f"<<<<<<< HEAD\n{lock.read_text()}=======\n>>>>>>> other\n"
    lock.write_text(conflict)
    sentence = r"dvc.lock holds the marks of a merge \(<<<<<<<\): resolve it, or take one side"
    with pytest.raises(RunError, match=sentence) as raised:
        made.dvc.lock()
    assert "\n" not in str(raised.value)
    made.plan(salt="other")
    assert not made.run().success
    assert (lock.read_text(), tree_of(made.root / "assets" / "first").digest) == (conflict, before)
    lock.write_text("stages: [")
    with pytest.raises(RunError, match=r"dvc\.lock is damaged: bring it back with `git checkout`"):
        made.dvc.lock()


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b'{"run_id', b"null"])
def test_a_damaged_record_is_set_aside_and_said_once(
    made: Tiny, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    records = made.run_log.records()
    path = made.run_log.folder(records[0]) / RECORD
    path.write_bytes(damage)
    caplog.clear()
    assert made.run_log.records() == made.run_log.records() == records[1:]
    aside = path.with_name(RECORD + DAMAGED)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was damaged and is set aside as {aside.name}: what it said of one materialization is lost"
    ]
    assert aside.read_bytes() == damage
    if not damage:
        assert made.run().success


def _set_seed(tiny: Tiny, seed: int) -> None:
    path = tiny.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["compute"]["seed"] = seed
    path.write_text(yaml.safe_dump(params))


# ---- servers that are down


@pytest.mark.slow
def test_a_run_beside_an_mlflow_that_is_down_succeeds_and_the_next_says_so_and_brings_it_there(tmp_path: Path) -> None:
    port = free_port()
    tiny = tiny_project(tmp_path / "project", f"http://127.0.0.1:{port}")
    beside = tiny.run()
    assert beside.success
    assert "nothing listens there" in _waited(tiny, beside.run_id)
    with mlflow_server(tmp_path / "server", port=port):
        with tiny.instance() as instance:
            after = tiny.execute(instance, "in_process")
            said = [entry.user_message for entry in instance.all_logs(after.run_id)]
        assert after.success
        assert any("nothing listens there" in each and "are copied by a later sync" in each for each in said), said
        assert [_waited(tiny, run_id) for run_id in (after.run_id, beside.run_id)] == ["", ""]
        runs = _runs(tiny.uri)
        _check_one_child_a_record(tiny, runs)
        assert set(runs) == {beside.run_id, after.run_id}
        assert {run.info.status for parent, children in runs.values() for run in (parent, *children.values())} == {
            "FINISHED"
        }


@pytest.mark.slow
def test_a_push_to_a_remote_that_is_down_fails_alone_and_a_later_one_works(
    made: Tiny, dvc: str, tmp_path: Path
) -> None:
    port = free_port()
    for options in (
        ["add", "--default", "far", "s3://data/dvc"],
        ["modify", "far", "endpointurl", f"http://127.0.0.1:{port}"],
    ):
        assert _dvc(made, dvc, "remote", *options).returncode == 0
    lock = (made.root / "dvc.lock").read_bytes()
    failed = _dvc(made, dvc, "push")
    assert failed.returncode != 0
    assert "ERROR" in failed.stderr and f"127.0.0.1:{port}" in failed.stderr, failed.stderr
    assert (made.root / "dvc.lock").read_bytes() == lock
    assert "up to date" in _dvc(made, dvc, "status").stdout
    made.plan(salt="other")
    assert made.run().success
    with s3_server(tmp_path / "s3", "data", port=port):
        pushed = _dvc(made, dvc, "push")
        assert pushed.returncode == 0, pushed.stderr
        assert "in sync" in _dvc(made, dvc, "status", "--cloud").stdout
    assert "up to date" in _dvc(made, dvc, "status").stdout


def _dvc(tiny: Tiny, dvc: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **s3_environment(""), "DVC_NO_ANALYTICS": "1"}
    given = {name: value for name, value in environment.items() if value}
    return subprocess.run([dvc, *arguments], cwd=tiny.root, env=given, capture_output=True, text=True, check=False)


# ---- what MLflow then holds

Runs = dict[str, tuple[Any, dict[str, Any]]]
"""By Dagster run: the parent, and the children by asset."""


def _delivered(tiny: Tiny, uri: str) -> Runs:
    """Deliver, and read back."""
    assert sync(tiny.run_log, uri, "rsprune").error == ""
    runs = _runs(uri)
    _check_one_child_a_record(tiny, runs)
    return runs


def _runs(uri: str) -> Runs:
    experiment = connect(uri, "rsprune")
    every = experiment.client.search_runs([experiment.id], max_results=1000)
    by_id = {run.info.run_id: run for run in every}
    found: Runs = {
        run.data.tags["rsprune.dagster_run_id"]: (run, {}) for run in every if "mlflow.parentRunId" not in run.data.tags
    }
    for run in every:
        if parent := run.data.tags.get("mlflow.parentRunId"):
            tags = by_id[parent].data.tags
            assert tags["rsprune.dagster_run_id"] == run.data.tags["rsprune.dagster_run_id"]
            found[tags["rsprune.dagster_run_id"]][1][run.data.tags["rsprune.asset"]] = run
    assert len(every) == sum(1 + len(children) for _, children in found.values()), "a run or an asset stands twice"
    return found


def _check_one_child_a_record(tiny: Tiny, runs: Runs) -> None:
    records = Counter(record.run_id for record in tiny.run_log.records())
    assert {run_id: len(children) for run_id, (_, children) in runs.items()} == records


def _waited(tiny: Tiny, run_id: str) -> str:
    """Why MLflow does not have all of a run after the syncs that the run started; empty where it does."""
    result = wait_for_sync(tiny.run_log, tiny.uri, "rsprune", run_id, timeout_s=DELIVERY_S)
    assert bool(result.n_pending) == bool(result.error)
    return result.error
