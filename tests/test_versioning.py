"""Versions of the data, with the real DVC: both ways in agree, nothing is recomputed without need, nothing is lost."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from projects import ASSETS, Project, chain_of, clone, following, new_project

from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.dvc_lock import DvcProject
from rsprune_dagster.utils.errors import RunError

pytestmark = pytest.mark.usefixtures("dvc")
UP_TO_DATE = "Data and pipelines are up to date."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, dvc: str) -> Project:
    """A project whose assets were all materialized by Dagster, and whose dvc.lock was committed."""
    project = new_project(tmp_path_factory.mktemp("versioning"))
    project.rsprune("materialize")
    project.commit("first version")
    return project


@pytest.fixture
def project(made: Project) -> Project:
    """The materialized project at its first version, whatever an earlier test did."""
    made.run("git", "checkout", "--quiet", "--force", "main")
    made.run("git", "clean", "--quiet", "-d", "--force", "--exclude=.venv*")
    made.run_dvc("checkout", "--force", "--quiet")
    assert UP_TO_DATE in made.run_dvc("status")
    return made


@pytest.mark.slow
def test_a_materialization_leaves_dvc_clean_and_the_hashes_equal(project: Project) -> None:
    assert UP_TO_DATE in project.run_dvc("status")
    assert project.versions() == {name: tree_of(project.root / "assets" / name).digest for name in ASSETS}
    assert project.versions() == dagster_versions(project)


@pytest.mark.slow
def test_dvc_itself_writes_the_same_lock(project: Project) -> None:
    before = (project.root / "dvc.lock").read_bytes()
    project.run_dvc("commit", "--force")
    assert (project.root / "dvc.lock").read_bytes() == before


@pytest.mark.slow
def test_a_changed_parameter_runs_only_what_depends_on_it(project: Project) -> None:
    before, runs = project.versions(), {name: project.runs_of(name) for name in ASSETS}
    project.change("selection", keep_fraction=0.1)
    project.run_dvc("repro")
    assert UP_TO_DATE in project.run_dvc("status")
    assert {name for name in ASSETS if project.runs_of(name) > runs[name]} == following("pruned_subset")
    assert {name for name in ASSETS if project.versions()[name] != before[name]} == following("pruned_subset")
    assert project.versions() == dagster_versions(project)
    assert "n_kept" in project.run_dvc("metrics", "diff")
    assert "keep_fraction" in project.run_dvc("params", "diff")


@pytest.mark.slow
def test_an_older_commit_comes_back_without_recomputation(project: Project) -> None:
    old = project.versions()
    project.change("clustering", candidates=[10])
    project.run_dvc("repro")
    new = project.versions()
    later = project.commit("other clusters")
    project.run("git", "checkout", "--quiet", "main~1")
    project.run_dvc("checkout")
    runs = len(project.run_log.records())
    assert "didn't change, skipping" in project.run_dvc("repro")
    assert len(project.run_log.records()) == runs
    assert {name: tree_of(project.root / "assets" / name).digest for name in ASSETS} == old != new
    project.rsprune("materialize", "pruned_subset")  # Dagster, asked again
    assert dagster_versions(project)["pruned_subset"] == old["pruned_subset"]
    assert dagster_versions(project)["scene_clusters"] == old["scene_clusters"]
    project.run("git", "checkout", "--quiet", "--force", later)
    project.run_dvc("checkout")
    assert project.versions() == new
    project.run("git", "branch", "--force", "main", "main~1")


@pytest.mark.slow
def test_a_run_that_departs_from_params_is_kept_and_not_recorded(project: Project) -> None:
    lock = (project.root / "dvc.lock").read_bytes()
    said = project.rsprune("materialize", "pruned_subset", "--set", "selection.keep_fraction=0.3")
    assert "not in dvc.lock: this run departs from params.yaml in selection.keep_fraction" in said
    assert (project.root / "dvc.lock").read_bytes() == lock
    record = project.run_log.records()[-1]
    assert (record.versioned, record.departures) == (False, {"selection.keep_fraction": 0.15})
    assert DvcCache.of(project.root).tree(record.data_version) is not None
    project.rsprune("materialize", "scene_clusters", "--set", "compute.seed=7")
    said = project.rsprune("materialize", "pruned_subset")
    assert "not in dvc.lock: it was made from another version than dvc.lock holds of scene_clusters" in said
    assert (project.root / "dvc.lock").read_bytes() == lock
    project.rsprune("materialize")
    assert UP_TO_DATE in project.run_dvc("status")
    assert (project.root / "dvc.lock").read_bytes() == lock


@pytest.mark.slow
def test_a_rewrite_leaves_the_cached_version_whole(project: Project) -> None:
    old = project.dvc.version("pruned_subset")
    project.rsprune("materialize", "pruned_subset", "--set", "selection.keep_fraction=0.4")
    cache = DvcCache.of(project.root)
    cache.place(old, project.root / ".state" / "placed")
    assert tree_of(project.root / ".state" / "placed").digest == old


@pytest.mark.slow
def test_pushed_and_pulled_into_a_fresh_clone(project: Project, tmp_path: Path) -> None:
    project.run_dvc("remote", "add", "--force", "--default", "far", str(tmp_path / "remote"))
    project.run_dvc("push")
    project.commit("a remote")
    fresh = clone(project, tmp_path / "fresh")
    fresh.run_dvc("pull")
    assert UP_TO_DATE in fresh.run_dvc("status")
    assert {name: tree_of(fresh.root / "assets" / name).digest for name in ASSETS} == project.versions()
    assert "didn't change, skipping" in fresh.run_dvc("repro")
    assert fresh.run_log.records() == []
    project.run("git", "reset", "--quiet", "--hard", "HEAD~1")


@pytest.mark.slow
def test_an_experiment_sweeps_a_parameter(project: Project) -> None:
    project.run_dvc("exp", "run", "--name", "small", "--set-param", "selection.keep_fraction=0.05")
    subset = [record for record in project.run_log.records() if record.asset == "pruned_subset"][-1]
    assert (subset.params["selection.keep_fraction"], subset.versioned) == (0.05, True)
    assert UP_TO_DATE in project.run_dvc("status")
    assert "small" in project.run_dvc("exp", "show", "--csv")


@pytest.mark.slow
def test_a_process_killed_before_it_recorded_is_settled_by_the_next_run(project: Project) -> None:
    project.change("selection", keep_fraction=0.2)
    for moment in ("_record_in_dvc", "finish", "_written"):
        killed_at(project, moment)
        unfinished = project.run_log.records()[-1]
        assert unfinished.status == "RUNNING"
        project.rsprune("materialize", "reference_scenes")
        settled = project.run_log.read(unfinished.run_id, "pruned_subset")
        assert settled is not None
        replaced = tree_of(project.root / "assets" / "pruned_subset").digest == unfinished.data_version
        assert settled.status == ("FINISHED" if replaced else "KILLED")
        if replaced:
            assert UP_TO_DATE in project.run_dvc("status", "--with-deps", "pruned_subset")
            assert dagster_versions(project)["pruned_subset"] == project.dvc.version("pruned_subset")
        project.run("git", "checkout", "--quiet", "dvc.lock")
        project.run_dvc("checkout", "--force", "--quiet")


@pytest.mark.slow
def test_two_runs_at_once_leave_a_consistent_state(project: Project) -> None:
    commands = [
        [".venv/bin/rsprune", "materialize", "pruned_subset"],
        [".venv/bin/rsprune", "materialize", "entropy_scores", "embeddings", "scene_clusters"],
    ]
    running = [
        subprocess.Popen(each, cwd=project.root, env=project.environment(), stderr=subprocess.DEVNULL)
        for each in commands
    ]
    assert [each.wait(timeout=600) for each in running] == [0, 0]
    project.rsprune("materialize", "pruned_subset")
    assert UP_TO_DATE in project.run_dvc("status")
    in_lock, in_dagster = project.versions(), dagster_versions(project)
    made = chain_of("pruned_subset") - {"raw_corpus", "reference_scenes"}
    assert {name: in_lock[name] for name in made} == {name: in_dagster[name] for name in made}
    assert all(record.status == "FINISHED" for record in project.run_log.records()[-5:])


@pytest.mark.slow
def test_a_materialization_that_waits_for_dvc_s_lock_says_so_in_the_terminal(project: Project) -> None:
    command = [".venv/bin/rsprune", "materialize", "reference_scenes"]
    with (project.root / ".dvc" / "tmp" / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            command, cwd=project.root, env=project.environment(), stderr=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        assert any("rsprune: another process holds DVC's lock" in line for line in waiting.stderr)
    assert waiting.wait(timeout=600) == 0
    assert UP_TO_DATE in project.run_dvc("status")


def test_dvc_s_lock_is_waited_for_with_a_message(tmp_path: Path) -> None:
    project = DvcProject(tmp_path)
    lock = tmp_path / ".dvc" / "tmp" / "lock"
    lock.parent.mkdir(parents=True)
    hold = f"import fcntl, time; f = open({str(lock)!r}, 'a'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(2)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        said: list[str] = []
        project.record({"raw_corpus": {"outs": []}}, said.append)
    assert len(said) == 1 and "another process holds DVC's lock" in said[0]
    assert project.lock() == {"raw_corpus": {"outs": []}}


def test_a_lock_that_is_never_released_is_an_error_in_the_end(tmp_path: Path) -> None:
    project = DvcProject(tmp_path)
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    with (tmp_path / ".dvc" / "tmp" / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="has been held by another process"), project.locked(print, patience_s=0.1):
            pass


def dagster_versions(project: Project) -> dict[str, str]:
    """The data version of each asset's latest materialization in the project's Dagster."""
    with dg.DagsterInstance.from_config(str(project.root / ".state" / "dagster")) as instance:
        events = {name: instance.get_latest_materialization_event(dg.AssetKey(name)) for name in ASSETS}
    return {
        name: (event.asset_materialization.tags or {})["dagster/data_version"]
        for name, event in events.items()
        if event and event.asset_materialization
    }


def killed_at(project: Project, moment: str) -> None:
    """Materialize pruned_subset in a process that kills itself on entering a step of `AssetRecorder`."""
    script = (
        "import os, signal, sys\n"
        "from rsprune_dagster.tracking.run_recorder import AssetRecorder\n"
        f"setattr(AssetRecorder, {moment!r}, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))\n"
        "from rsprune_dagster import cli\n"
        "sys.argv = ['rsprune', 'materialize', 'pruned_subset']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [".venv/bin/python", "-c", script],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    time.sleep(0.1)
    assert os.path.isdir(project.root / "assets" / "pruned_subset")
