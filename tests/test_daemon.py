"""Automation as it runs: `dg dev` with its daemon, real ticks, new files in a folder, a red check in a browser."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import ask, browser_page, dagster_ui, metadata, screenshot
from projects import SHORT_EVALUATION, SHORT_SUPER_RESOLUTION, SHORT_SYNTHESIS, SHORT_TRAINING, small_pairs
from prune_runs import PLAN
from test_refresh import chat

from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus
from rsprune_dagster.tracking.run_log import RunLog

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[1]
PATIENCE_S = 240
LOOK_EVERY_S = 5
TAKEN_AWAY = ("part_0000", "appended", "archive_a.tar", "archive_b.tar")
RUNS = """query { runsOrError(limit: 50) { ... on Runs { results { runId jobName status tags { key value } } } } }"""
INSTIGATORS = """query { repositoriesOrError { ... on RepositoryConnection { nodes {
    schedules { name scheduleState { status ticks(limit: 20) { status runIds } } }
    sensors { name sensorState { status ticks(limit: 50) { status runIds skipReason } } } } } } }"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """params.yaml with automation on, a schedule of every minute, and a corpus that can grow."""
    folder = tmp_path_factory.mktemp("project")
    write_corpus(folder / "made", PLAN)
    more = SyntheticPlan(n_tiles=80, imbalance=1.0, n_scene_files=0, n_broken=0, seed=1)
    write_corpus(folder / "more", more)
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    params["corpus"]["sources"] = [str(folder / "made" / "corpus")]
    params["reference"]["sources"] = [str(folder / "made" / "reference")]
    params["compute"].update(workers=1, device="cpu")
    params["training"].update(SHORT_TRAINING)
    params["super_resolution"].update(SHORT_SUPER_RESOLUTION)
    params["semantic_synthesis"].update(SHORT_SYNTHESIS, **small_pairs(folder / "made_pairs"))
    params["evaluation"].update(SHORT_EVALUATION, sources=[str(folder / "made" / "held_out")])
    params["automation"].update(enabled=True, look_every_s=LOOK_EVERY_S)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "home").mkdir()
    (folder / "home" / "dagster.yaml").symlink_to(CHECKOUT / "dagster.yaml")
    return folder


def served(project: Path, **environment: str) -> Any:
    """`dg dev` over the project: the web UI and the daemon."""
    ours = {"DAGSTER_HOME": str(project / "home"), "RSPRUNE_PROJECT": str(project), "MLFLOW_TRACKING_URI": "none"}
    return dagster_ui(CHECKOUT, project / "dg.log", {**os.environ, "OMP_NUM_THREADS": "1", **ours, **environment})


def until(what: str, look: Callable[[], Any]) -> Any:
    """What `look` gives once it gives something."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        if found := look():
            return found
        time.sleep(1)
    raise AssertionError(f"{what} did not happen in {PATIENCE_S} s")


def ended_runs(address: str, *, tag: str = "") -> list[dict[str, Any]]:
    """Ended runs, newest first."""
    runs = ask(address, RUNS)["runsOrError"]["results"]
    ended = [run for run in runs if run["status"] in ("SUCCESS", "FAILURE")]
    return [run for run in ended if not tag or tag in {each["key"] for each in run["tags"]}]


def sensor(address: str, name: str) -> dict[str, Any]:
    nodes = ask(address, INSTIGATORS)["repositoriesOrError"]["nodes"]
    state: dict[str, Any] = next(s["sensorState"] for node in nodes for s in node["sensors"] if s["name"] == name)
    return state


def change(project: Path, section: str, **values: Any) -> None:
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params[section].update(values)
    path.write_text(yaml.safe_dump(params))


def _three_more(address: str, before: int) -> list[dict[str, Any]]:
    ticks: list[dict[str, Any]] = sensor(address, "new_tiles")["ticks"]
    return ticks if len(ticks) >= before + 3 and ticks[0]["status"] == "SKIPPED" else []


def _one_more(address: str, known: int) -> list[dict[str, Any]]:
    runs = ended_runs(address, tag="rsprune/new_tiles")
    return runs if len(runs) > known else []


@pytest.fixture(scope="class")
def told(project: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of the running web UI, and what its failure sensor posts to a chat."""
    with chat() as (webhook, taken), served(project, RSPRUNE_WEBHOOK=webhook) as address:
        yield address, taken


class TestSensors:
    """In this order, over one web UI and daemon."""

    def test_a_project_with_automation_on_is_pruned_by_the_sensor(self, told: tuple[str, Any], project: Path) -> None:
        address, _ = told
        [run] = until("a run for new tiles", lambda: ended_runs(address, tag="rsprune/new_tiles"))
        assert run["status"] == "SUCCESS" and run["jobName"] == "prune"
        assert (project / "assets" / "pruned_subset" / "decisions.parquet").is_file()

    def test_no_new_tiles_nothing_is_pruned(self, told: tuple[str, Any]) -> None:
        address, _ = told
        runs = len(ended_runs(address, tag="rsprune/new_tiles"))
        before = len(sensor(address, "new_tiles")["ticks"])
        ticks = until("three looks", lambda: _three_more(address, before))
        assert "as when the corpus was last scanned" in ticks[0]["skipReason"]
        assert len(ended_runs(address, tag="rsprune/new_tiles")) == runs

    def test_new_tiles_are_noticed_scored_and_cost_only_themselves(self, told: tuple[str, Any], project: Path) -> None:
        address, _ = told
        known = len(ended_runs(address, tag="rsprune/new_tiles"))
        shutil.copytree(project / "more" / "corpus" / "part_0000", project / "made" / "corpus" / "appended")
        runs = until("a run for new tiles", lambda: _one_more(address, known))
        assert runs[0]["status"] == "SUCCESS"
        scanned, embedded = metadata(address, "raw_corpus"), metadata(address, "embeddings")
        assert scanned["n_shards_computed"] == 1 and scanned["n_shards_reused"] == scanned["n_shards"] - 1
        assert 0 < embedded["n_computed"] <= 80 and embedded["n_reused"] > embedded["n_computed"]

    def test_the_training_follows_a_changed_subset_only_with_the_schedule(self, told: tuple[str, Any]) -> None:
        """The schedule is weekly here: no tick has come, so nothing was trained, however often tiles came."""
        address, _ = told
        assert sensor(address, "follow_up")["status"] == "RUNNING"
        assert {run["jobName"] for run in ended_runs(address)} == {"prune"}

    def test_a_blocking_check_is_red_stops_what_follows_and_is_told(
        self, told: tuple[str, list[dict[str, Any]]], project: Path
    ) -> None:
        """Most tiles are taken away, as if a disk were not mounted."""
        address, taken = told
        ledger = (project / "assets" / "pruned_subset" / "decisions.parquet").read_bytes()
        known = len(ended_runs(address, tag="rsprune/new_tiles"))
        for name in TAKEN_AWAY:
            (project / "made" / "corpus" / name).rename(project / name)
        runs = until("a run that fails", lambda: _one_more(address, known))
        assert runs[0]["status"] == "FAILURE"
        assert (project / "assets" / "pruned_subset" / "decisions.parquet").read_bytes() == ledger
        message = until("a message", lambda: next(iter(taken), None))
        assert "raw_corpus/not_shrunken" in message["sentence"] and "not mounted" in message["sentence"]
        assert message["link"].endswith(f"/runs/{runs[0]['runId']}")
        with browser_page() as page:
            page.goto(f"{address}/assets/raw_corpus?view=checks&checkDetail=not_shrunken")
            page.get_by_text("Is a source not mounted?").first.wait_for()
            page.get_by_text("Failed", exact=False).first.wait_for()
            screenshot(page, "check-failed")
            page.goto(f"{address}/runs/{runs[0]['runId']}")
            page.get_by_text("checks_of_raw_corpus").first.wait_for()
            screenshot(page, "run-stopped")
        started = {
            record.asset
            for record in RunLog(project / ".state" / "lineage").records()
            if record.run_id == runs[0]["runId"]
        }
        assert "raw_corpus" in started and "entropy_scores" not in started


def test_a_schedule_fires(project: Path) -> None:
    """All tiles are back, and the schedule is every minute now."""
    for name in TAKEN_AWAY:
        if (project / name).exists():
            (project / name).rename(project / "made" / "corpus" / name)
    change(project, "automation", schedule="* * * * *", look_every_s=600)
    with served(project) as address:
        scheduled = until("a scheduled run", lambda: ended_runs(address, tag="dagster/schedule_name"))
        assert scheduled[-1]["status"] == "SUCCESS" and scheduled[-1]["jobName"] == "prune"
