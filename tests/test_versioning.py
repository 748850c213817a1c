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
import rsprune_command
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
def test_a_changed_parameter_runs_what_depends_on_it_and_the_older_commit_comes_back(project: Project) -> None:
    old, runs = project.versions(), {name: project.runs_of(name) for name in ASSETS}
    project.change("selection", keep_fraction=0.1)
    project.run_dvc("repro")
    assert UP_TO_DATE in project.run_dvc("status")
    new = project.versions()
    assert {name for name in ASSETS if project.runs_of(name) > runs[name]} == following("pruned_subset")
    assert {name for name in ASSETS if new[name] != old[name]} == following("pruned_subset")
    assert new == dagster_versions(project)
    assert "n_kept" in project.run_dvc("metrics", "diff")
    assert "keep_fraction" in project.run_dvc("params", "diff")

    later = project.commit("a smaller subset")
    project.run("git", "checkout", "--quiet", "main~1")
    project.run_dvc("checkout")
    n_records = len(project.run_log.records())
    assert "didn't change, skipping" in project.run_dvc("repro")
    assert len(project.run_log.records()) == n_records
    assert {name: tree_of(project.root / "assets" / name).digest for name in ASSETS} == old
    project.rsprune("materialize", "pruned_subset")  # Dagster, asked again
    assert dagster_versions(project)["pruned_subset"] == old["pruned_subset"]
    assert dagster_versions(project)["scene_clusters"] == old["scene_clusters"]
    project.run("git", "checkout", "--quiet", "--force", later)
    project.run_dvc("checkout")
    assert {name: tree_of(project.root / "assets" / name).digest for name in ASSETS} == project.versions() == new
    project.run("git", "branch", "--force", "main", "main~1")


@pytest.mark.slow
def test_a_run_that_departs_from_params_is_kept_and_not_recorded(project: Project) -> None:
    lock, old = (project.root / "dvc.lock").read_bytes(), project.dvc.version("pruned_subset")
    said = project.rsprune("materialize", "pruned_subset", "--set", "selection.keep_fraction=0.3")
    assert "not in dvc.lock: this run departs from params.yaml in selection.keep_fraction" in said
    assert (project.root / "dvc.lock").read_bytes() == lock
    record = project.run_log.records()[-1]
    assert (record.versioned, record.departures) == (False, {"selection.keep_fraction": 0.15})
    cache = DvcCache.of(project.root)
    assert cache.tree(record.data_version) is not None
    cache.place(old, project.root / ".state" / "placed")  # the version that was replaced is whole
    assert tree_of(project.root / ".state" / "placed").digest == old
    project.rsprune("materialize", "scene_clusters", "--set", "compute.seed=7")
    said = project.rsprune("materialize", "pruned_subset")
    assert "not in dvc.lock: it was made from another version than dvc.lock holds of scene_clusters" in said
    assert (project.root / "dvc.lock").read_bytes() == lock
    project.rsprune("materialize", "scene_clusters", "pruned_subset")
    assert UP_TO_DATE in project.run_dvc("status")
    assert (project.root / "dvc.lock").read_bytes() == lock


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
    project.run_dvc("exp", "run", "--name", "small", "--set-param", "selection.keep_fraction=0.05", "pruned_subset")
    subset = [record for record in project.run_log.records() if record.asset == "pruned_subset"][-1]
    assert (subset.params["selection.keep_fraction"], subset.versioned) == (0.05, True)
    assert UP_TO_DATE in project.run_dvc("status", "--with-deps", "pruned_subset")
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
    running = [
        rsprune_command.start(["materialize", *assets], cwd=project.root, environment=project.environment())
        for assets in (["pruned_subset"], ["entropy_scores", "embeddings", "scene_clusters"])
    ]
    assert [each.wait() for each in running] == [0, 0], [each.said() for each in running]
    project.rsprune("materialize", "pruned_subset")
    assert UP_TO_DATE in project.run_dvc("status")
    in_lock, in_dagster = project.versions(), dagster_versions(project)
    made = chain_of("pruned_subset") - {"raw_corpus", "reference_scenes"}
    assert {name: in_lock[name] for name in made} == {name: in_dagster[name] for name in made}
    assert all(record.status == "FINISHED" for record in project.run_log.records()[-5:])


@pytest.mark.slow
def test_a_materialization_that_waits_for_dvc_s_lock_says_so_in_the_terminal(project: Project) -> None:
    with (project.root / ".dvc" / "tmp" / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = rsprune_command.start(
            ["materialize", "reference_scenes"], cwd=project.root, environment=project.environment()
        )
        while "rsprune: another process holds DVC's lock" not in waiting.said():
            assert waiting.is_alive(), waiting.said()
            time.sleep(0.1)
    assert waiting.wait() == 0
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
    dies = (
        "import os, signal\n"
        "from rsprune_dagster.tracking.run_recorder import AssetRecorder\n"
        f"setattr(AssetRecorder, {moment!r}, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    code, said = rsprune_command.run(
        ["materialize", "pruned_subset"], cwd=project.root, environment=project.environment(), before=dies
    )
    assert code == -signal.SIGKILL, said
    assert os.path.isdir(project.root / "assets" / "pruned_subset")
