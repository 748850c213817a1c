"""The web UI as a person meets it, and one identity everywhere, with real servers.

`dg dev` with a headless browser, MLflow on PostgreSQL and S3, DVC with a remote on S3.

Screenshots of both web UIs are left in the folder that RSPRUNE_SHOTS names.
"""

import hashlib
import os
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from browser import (
    ask,
    browser_page,
    dagster_ui,
    launch,
    materialize_all,
    materialize_with,
    metadata,
    press_materialize,
    status_when_done,
)
from projects import ASSETS, CHECKOUT, UPSTREAM, Project, chain_of, clone, following, new_project
from servers import mlflow_server, postgres, s3_environment, s3_keys, s3_server

from rsprune_dagster.config.params import load
from rsprune_dagster.dagster.assets import build_pruning_assets
from rsprune_dagster.dagster.materialize import project_home
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.mlflow_runs import connect
from rsprune_dagster.tracking.mlflow_sync import VIEW
from rsprune_dagster.tracking.run_recorder import RunRecorder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("dvc")]

UP_TO_DATE = "Data and pipelines are up to date."
DELIVERY_S = 600
"""Seconds that copying a run's records to the server may take."""
TABLES = {made.key.to_user_string() for made in build_pruning_assets(load(CHECKOUT / "params.yaml"))}
"""Assets whose content is a table; the others are folders of other things."""
LAST = [name for name in ASSETS if following(name) == {name}]
"""Assets that nothing is made from: their chains are the whole graph."""


@dataclass(frozen=True)
class World:
    """A project, the addresses of its servers, and a page of a browser."""

    project: Project
    mlflow: str
    s3: str
    dagster: str
    page: Any

    def rsprune(self, *arguments: str, project: Project | None = None) -> str:
        return (project or self.project).rsprune(*arguments, MLFLOW_TRACKING_URI=self.mlflow, DAGSTER_URL=self.dagster)

    def dvc(self, *arguments: str, project: Project | None = None) -> str:
        return (project or self.project).run_dvc(*arguments, **_environment(self.mlflow))

    def wait_for_delivery(self, run_id: str) -> None:
        recorder = RunRecorder(run_log=str(self.project.run_log.root), tracking_uri=self.mlflow)
        assert recorder.pending_in_mlflow(run_id, timeout_s=DELIVERY_S) == ""

    def mlflow_runs(self) -> list[Any]:
        experiment = connect(self.mlflow, "rsprune")
        return list(experiment.client.search_runs([experiment.id], max_results=1000))

    def children(self, run_id: str) -> dict[str, Any]:
        """The MLflow runs of a Dagster run's assets; an asset with two of them fails the test."""
        runs = [run for run in self.mlflow_runs() if run.data.tags["rsprune.dagster_run_id"] == run_id]
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        counts = Counter(run.data.tags["rsprune.asset"] for run in children)
        assert set(counts.values()) == {1}, counts
        return {run.data.tags["rsprune.asset"]: run for run in children}

    def shoot(self, name: str) -> None:
        """Leave a screenshot, where one was asked for."""
        if folder := os.environ.get("RSPRUNE_SHOTS"):
            self.page.wait_for_timeout(1500)  # what is drawn after the text that the test waited for
            self.page.screenshot(path=Path(folder, f"{name}.png"))

    def leave(self, name: str, text: str) -> None:
        """Leave what a command printed beside the screenshots."""
        if folder := os.environ.get("RSPRUNE_SHOTS"):
            Path(folder, f"{name}.txt").write_text(text)

    def hashes_on_disk(self) -> dict[str, str]:
        return {name: tree_of(self.project.root / "assets" / name).digest for name in ASSETS}


def _environment(mlflow: str) -> dict[str, str]:
    """What Dagster and DVC are told; the S3 server's address is in DVC's own configuration."""
    keys = {name: value for name, value in s3_environment("").items() if value and "URL" not in name}
    return {**keys, "MLFLOW_TRACKING_URI": mlflow}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, dvc: str) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("identity")
    project = new_project(folder)
    with postgres(folder / "postgres") as database, s3_server(folder / "s3", "runs", "data") as s3:
        project.run_dvc("remote", "add", "--default", "far", "s3://data/dvc")
        project.run_dvc("remote", "modify", "--local", "far", "endpointurl", s3)
        project.commit("a remote")
        server = mlflow_server(folder / "mlflow", database, "s3://runs/artifacts", env=s3_environment(s3))
        with server as mlflow, browser_page() as page:
            home = {"DAGSTER_HOME": str(project_home(project.root))}
            environment = project.environment(**_environment(mlflow), **home)
            with dagster_ui(project.root, folder / "dg.log", environment) as dagster:
                yield World(project, mlflow, s3, dagster, page)


@pytest.fixture(scope="module")
def first_run(world: World) -> str:
    """The run that "Materialize all" started, ended and delivered, its dvc.lock committed."""
    run_id = materialize_all(world.page, world.dagster)
    assert status_when_done(world.dagster, run_id) == "SUCCESS"
    world.wait_for_delivery(run_id)
    world.project.commit("first version")
    return run_id


@pytest.fixture
def first(world: World, first_run: str) -> str:
    """The project at its first version, whatever an earlier test did; the run that made it."""
    world.project.run("git", "checkout", "--quiet", "--force", "main")
    world.dvc("checkout", "--force", "--quiet")
    return first_run


def test_the_hashes_of_dvc_dagster_mlflow_and_the_folder_are_one(world: World, first: str) -> None:
    assert UP_TO_DATE in world.dvc("status")
    children = world.children(first)
    assert set(children) == set(ASSETS)
    on_disk = world.hashes_on_disk()
    assert world.project.versions() == on_disk
    assert {name: _data_version(world, name) for name in ASSETS} == on_disk
    assert {name: _datasets(children[name], "output") for name in ASSETS} == {
        name: {name: digest} for name, digest in on_disk.items()
    }
    for name, upstream in UPSTREAM.items():
        assert _datasets(children[name], "input") == {each: on_disk[each] for each in upstream}


def test_a_dagster_run_is_one_finished_parent_with_a_child_an_asset(world: World, first: str) -> None:
    runs = [run for run in world.mlflow_runs() if run.data.tags["rsprune.dagster_run_id"] == first]
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = world.children(first)
    assert len(runs) == 1 + len(ASSETS)
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    _eventually(lambda: {run.info.status for run in world.mlflow_runs()} == {"FINISHED"})
    subset = children["pruned_subset"].data
    record = world.project.run_log.read(first, "pruned_subset")
    assert record is not None
    start = world.project.run("git", "rev-parse", "HEAD~1").strip()
    assert subset.tags["rsprune.git_commit"] == record.git_commit == start
    locks = _as_it_grew(world.project.root / "dvc.lock")
    assert {name: child.data.tags["rsprune.dvc_lock_md5"] for name, child in children.items()} == locks
    assert subset.params["selection.keep_fraction"] == "0.15"
    assert subset.metrics["n_kept"] == metadata(world.dagster, "pruned_subset")["n_kept"]
    assert any("/pictures/" in key for key in s3_keys(world.s3, "runs"))


def test_the_asset_s_page_leads_to_its_mlflow_run_and_back(world: World, first: str) -> None:
    page, child = world.page, world.children(first)["pruned_subset"]
    page.goto(f"{world.dagster}/assets/pruned_subset?view=overview")
    link = page.locator(f"a[href^='{world.mlflow}']").first
    page.get_by_text("MLflow", exact=True).first.scroll_into_view_if_needed()
    world.shoot("dagster_asset")
    address = link.get_attribute("href")
    pages = f"{world.mlflow}/#/experiments/{child.info.experiment_id}/runs"
    assert f"{pages}/{child.info.run_id}?{VIEW}".startswith(address.partition("?")[0])
    # the list of experiments, where the asset was made before MLflow answered for the first time
    page.goto(address if "/runs" in address else f"{pages}/{child.info.run_id}?{VIEW}")
    if "searchFilter" in address:  # the run had ended before MLflow knew of it
        page.get_by_role("link", name="pruned_subset").first.click()
        page.wait_for_url(f"**/runs/{child.info.run_id}**")
    page.get_by_text("pruned_subset").first.wait_for()
    page.get_by_text("selection.keep_fraction").first.wait_for()
    tag = page.get_by_text(re.compile(rf"{first}$")).first
    tag.wait_for()
    back = page.get_by_role("link", name="The run in Dagster").first
    back.wait_for()
    assert back.get_attribute("href") == f"{world.dagster}/runs/{first}"
    world.shoot("mlflow_run")
    page.goto(f"{world.dagster}/runs/{tag.inner_text().split()[-1]}")
    page.get_by_text("pruned_subset").first.wait_for()
    page.get_by_text("Success").first.wait_for()
    page.goto(world.mlflow)
    page.evaluate("localStorage.clear()")  # MLflow remembers the search that the link made
    page.goto("about:blank")
    page.goto(f"{world.mlflow}/#/experiments/{child.info.experiment_id}/runs?{VIEW}")
    page.set_viewport_size({"width": 1500, "height": 1600})  # the table draws only the rows that fit
    page.get_by_text(first[:8]).first.wait_for()
    page.locator("button[data-component-id*='runnamecellrenderer']").first.click()  # the plus before the parent's name
    for asset in ASSETS:
        page.get_by_text(asset, exact=True).first.wait_for()
    world.shoot("mlflow_experiment")
    page.goto(f"{world.mlflow}/#/experiments/{child.info.experiment_id}/runs/{child.info.run_id}/artifacts?{VIEW}")
    page.get_by_text("pictures").first.click()
    page.get_by_text(re.compile(r"\.(png|jpg)$")).first.click()
    page.locator("img[src^='blob:']").first.wait_for()
    world.shoot("mlflow_artifacts")


def test_every_link_of_the_chain_opens(world: World, first: str) -> None:
    hashes = world.hashes_on_disk()
    subset = world.rsprune("lineage", "pruned_subset")
    assert {name for name, digest in hashes.items() if digest in subset} == chain_of("pruned_subset")
    assert world.rsprune("lineage", "assets/pruned_subset") == subset
    world.leave("lineage", told := world.rsprune("lineage", *LAST))
    assert all(digest in told for digest in hashes.values())
    links = re.findall(r"https?://\S+", told)
    assert len(links) == 2 * len(ASSETS)
    assert {link for link in links if link.startswith(world.dagster)} == {f"{world.dagster}/runs/{first}"}
    runs = {run.info.run_id for run in world.children(first).values()}
    assert {_mlflow_run_of(link) for link in links if link.startswith(world.mlflow)} == runs
    for link in links:
        with urllib.request.urlopen(link, timeout=60) as answer:
            assert answer.status == 200
    for name, child in world.children(first).items():
        world.page.goto(next(link for link in links if _mlflow_run_of(link) == child.info.run_id))
        world.page.get_by_text(name, exact=True).first.wait_for()
    assert "everything at hand agrees" in world.rsprune("lineage", "--verify")


@pytest.mark.usefixtures("first_run")
def test_each_asset_tells_its_rows_and_columns(world: World) -> None:
    for asset in ASSETS:
        table = {"dagster/row_count", "dagster/column_schema"} if asset in TABLES else set()
        assert {"params", "folder", *table} <= set(metadata(world.dagster, asset)), asset


@pytest.mark.usefixtures("first_run")
def test_the_pictures_of_the_pruned_subset_are_rendered(world: World) -> None:
    page = world.page
    page.goto(f"{world.dagster}/assets/pruned_subset?view=overview")
    links = page.get_by_text("[Show Markdown]")
    links.first.wait_for()
    assert links.count() >= 6  # kept by scene, the map, kept beside unselected, a gallery for each reason
    for link in links.all():
        link.click()
        picture = page.locator("img[src^='data:image/']").first
        picture.wait_for()
        assert 300 < picture.evaluate("image => image.naturalWidth") <= 1140  # what Dagster's window shows unscrolled
        page.keyboard.press("Escape")
        picture.wait_for(state="detached")


@pytest.mark.usefixtures("first_run")
def test_a_bad_parameter_is_refused_before_a_run_begins(world: World) -> None:
    press_materialize(world.page, world.dagster, keep_fraction=15)
    world.page.get_by_text("keep_fraction is 15", exact=False).first.wait_for()
    world.page.get_by_text("give 0.15 to keep 15 %", exact=False).first.wait_for()


@pytest.mark.usefixtures("first")
def test_why_a_tile_was_dropped_and_which_trained_the_champion_are_answered_by_jobs(world: World) -> None:
    page, subset = world.page, world.project.root / "assets" / "pruned_subset"
    ledger = pq.read_table(subset / "decisions.parquet").to_pylist()
    dropped = next(row for row in ledger if row["decision"] == "low_information")
    config = {"ops": {"why_was_it_kept_or_dropped": {"config": {"tile_id": dropped["tile_id"]}}}}
    run_id = launch(page, world.dagster, "explain_tile", yaml.safe_dump(config))
    assert status_when_done(world.dagster, run_id) == "SUCCESS"
    page.goto(f"{world.dagster}/runs/{run_id}")
    page.get_by_text(dropped["reason"], exact=False).first.wait_for()
    world.shoot("explain-tile")

    run_id = launch(page, world.dagster, "champion_tiles")
    assert status_when_done(world.dagster, run_id) == "SUCCESS"
    page.goto(f"{world.dagster}/runs/{run_id}")
    n_kept = pq.read_metadata(subset / "pruned_subset.parquet").num_rows
    page.get_by_text(f"was trained on the {n_kept:,} tiles of pruned_subset", exact=False).first.wait_for()
    world.shoot("champion-tiles")


def test_a_launchpad_run_that_departs_says_so_in_both_uis_and_holds_for_that_run_only(world: World, first: str) -> None:
    lock, params = ((world.project.root / name).read_bytes() for name in ("dvc.lock", "params.yaml"))
    n_kept = metadata(world.dagster, "pruned_subset")["n_kept"]
    run_id = materialize_with(world.page, world.dagster, keep_fraction=0.1)
    assert status_when_done(world.dagster, run_id) == "SUCCESS"
    said = "not in dvc.lock: this run departs from params.yaml in selection.keep_fraction"
    told = metadata(world.dagster, "pruned_subset")
    assert told["DVC"] == said
    assert told["n_kept"] == int(0.1 * told["n_readable"] + 0.5)
    _check_diff(world)
    world.page.goto(f"{world.dagster}/assets/pruned_subset?view=overview")
    world.page.get_by_text(said).first.wait_for()
    world.page.get_by_text("params.yaml says", exact=True).first.scroll_into_view_if_needed()
    world.shoot("dagster_departs")
    assert (world.project.root / "dvc.lock").read_bytes() == lock
    world.wait_for_delivery(run_id)
    child = world.children(run_id)["pruned_subset"]
    assert child.data.tags["rsprune.versioned"] == "false"
    assert child.data.params["selection.keep_fraction"] == "0.1"
    world.page.goto(f"{world.mlflow}/#/experiments/{child.info.experiment_id}/runs/{child.info.run_id}?{VIEW}")
    world.page.get_by_text("selection.keep_fraction").first.wait_for()
    world.shoot("mlflow_departs")
    assert "pruned_subset" in world.dvc("status")
    assert (world.project.root / "params.yaml").read_bytes() == params
    world.rsprune("materialize", "pruned_subset")
    assert metadata(world.dagster, "pruned_subset")["n_kept"] == n_kept
    assert (world.project.root / "dvc.lock").read_bytes() == lock
    assert UP_TO_DATE in world.dvc("status")


@pytest.mark.usefixtures("first")
def test_a_fresh_clone_has_the_data_from_the_remote_and_the_chain_from_mlflow(world: World, tmp_path: Path) -> None:
    hashes = world.project.versions()
    world.dvc("push")
    fresh = clone(world.project, tmp_path / "fresh")
    world.dvc("remote", "modify", "--local", "far", "endpointurl", world.s3, project=fresh)
    world.dvc("pull", project=fresh)
    assert {name: tree_of(fresh.root / "assets" / name).digest for name in ASSETS} == hashes
    assert UP_TO_DATE in world.dvc("status", project=fresh)
    _check_fresh(world, fresh, hashes)


def _check_diff(world: World) -> None:
    """The smaller subset lost tiles and gained none: a smaller keep fraction is a prefix of a greater one."""
    told = world.rsprune("diff", "HEAD", "now")
    world.leave("diff", told)
    assert "keep_fraction" in told
    assert re.search(r"\bleft\b", told)


def _check_fresh(world: World, fresh: Project, hashes: dict[str, str]) -> None:
    """Without a run log the chain is read from MLflow and git."""
    assert not fresh.run_log.records()
    told = world.rsprune("lineage", *LAST, project=fresh)
    world.leave("lineage_in_a_fresh_clone", told)
    assert all(digest in told for digest in hashes.values())
    assert "keep_fraction 0.15" in told
    assert told.count("finished") == len(ASSETS)
    assert len(re.findall(rf"{world.dagster}/runs/\S+", told)) == len(ASSETS)
    assert "everything at hand agrees" in world.rsprune("lineage", "--verify", project=fresh)


def _as_it_grew(lock: Path) -> dict[str, str]:
    """By stage: the md5 of a new dvc.lock as it was when that stage had just been added at its end."""
    text = lock.read_text()
    starts = [(found[1], found.start()) for found in re.finditer(r"^  (\w+):$", text, re.MULTILINE)]
    ends = [start for _, start in starts[1:]] + [len(text)]
    return {name: hashlib.md5(text[:end].encode()).hexdigest() for (name, _), end in zip(starts, ends, strict=True)}


def _mlflow_run_of(link: str) -> str:
    return link.rpartition("/")[2].partition("?")[0]


def _data_version(world: World, asset: str) -> str:
    """The data version that Dagster's web UI gives the asset."""
    query = """query($path: [String!]!) { assetOrError(assetKey: {path: $path}) { ... on Asset {
        assetMaterializations(limit: 1) { tags { key value } } } } }"""
    latest = ask(world.dagster, query, path=[asset])["assetOrError"]["assetMaterializations"][0]
    return str(next(tag["value"] for tag in latest["tags"] if tag["key"] == "dagster/data_version"))


def _datasets(run: Any, context: str) -> dict[str, str]:
    """Name and digest of a run's input or output datasets."""
    return {
        each.dataset.name: each.dataset.digest
        for each in run.inputs.dataset_inputs
        if any((tag.key, tag.value) == ("mlflow.data.context", context) for tag in each.tags)
    }


def _eventually(holds: Any) -> None:
    ends = time.monotonic() + DELIVERY_S
    while not holds():
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.5)
