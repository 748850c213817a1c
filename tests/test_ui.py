"""The web UI as a person meets it: `dg dev`, a headless browser, everything materialized, a picture looked at."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from browser import (
    PAGE_S,
    browser_page,
    dagster_ui,
    launch,
    materialize_all,
    materialize_with,
    metadata,
    press_materialize,
    screenshot,
    status_when_done,
)
from projects import ASSETS, SHORT_EVALUATION, SHORT_TRAINING
from prune_runs import PLAN
from servers import mlflow_server

from rsprune_dagster.assets import build_pruning_assets
from rsprune_dagster.corpus.synthetic import write_corpus
from rsprune_dagster.params import load

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[1]
TABLES = {definition.key.to_user_string() for definition in build_pruning_assets(load(CHECKOUT / "params.yaml"))}
"""Assets whose content is a table; the others are folders of other things."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder of its own: params.yaml over a small synthetic corpus, and DAGSTER_HOME as `make ui` sets it."""
    folder = tmp_path_factory.mktemp("project")
    write_corpus(folder / "made", PLAN)
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    params["corpus"]["sources"] = [str(folder / "made" / "corpus")]
    params["reference"]["sources"] = [str(folder / "made" / "reference")]
    params["training"].update(SHORT_TRAINING)
    params["evaluation"].update(SHORT_EVALUATION, sources=[str(folder / "made" / "held_out")])
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "home").mkdir()
    (folder / "home" / "dagster.yaml").symlink_to(CHECKOUT / "dagster.yaml")
    return folder


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    """Where the running web UI is."""
    environment = {**os.environ, "DAGSTER_HOME": str(project / "home"), "RSPRUNE_PROJECT": str(project)}
    with mlflow_server(project / "mlflow") as mlflow:
        environment["MLFLOW_TRACKING_URI"] = mlflow
        with dagster_ui(CHECKOUT, project / "dg.log", environment) as url:
            yield url


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    """A page of a headless browser."""
    with browser_page() as page:
        yield page


@pytest.fixture(scope="module")
def materialized(page: Any, address: str) -> str:
    """The status of a run of everything, started with the button."""
    return status_when_done(address, materialize_all(page, address))


def test_materialize_all_succeeds_and_each_asset_tells_its_rows_and_columns(materialized: str, address: str) -> None:
    assert materialized == "SUCCESS"
    for asset in ASSETS:
        table = {"dagster/row_count", "dagster/column_schema"} if asset in TABLES else set()
        assert {"params", "folder", *table} <= set(metadata(address, asset)), asset


def test_the_pictures_of_the_pruned_subset_are_rendered(materialized: str, page: Any, address: str) -> None:
    assert materialized == "SUCCESS"
    page.goto(f"{address}/assets/pruned_subset?view=overview")
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


def test_a_parameter_changed_in_the_launchpad_holds_for_that_run_only(
    materialized: str, page: Any, address: str, project: Path
) -> None:
    assert materialized == "SUCCESS"
    before = (project / "params.yaml").read_bytes()
    kept_before = _figure(address, "n_kept")
    assert status_when_done(address, materialize_with(page, address, keep_fraction=0.3)) == "SUCCESS"
    assert _figure(address, "n_kept") == int(0.3 * _figure(address, "n_readable") + 0.5)
    assert (project / "params.yaml").read_bytes() == before
    assert status_when_done(address, materialize_with(page, address, keep_fraction=0.15)) == "SUCCESS"
    assert _figure(address, "n_kept") == kept_before


def test_a_bad_parameter_is_refused_before_a_run_begins(materialized: str, page: Any, address: str) -> None:
    assert materialized == "SUCCESS"
    press_materialize(page, address, keep_fraction=15)
    page.get_by_text("keep_fraction is 15", exact=False).first.wait_for()
    page.get_by_text("give 0.15 to keep 15 %", exact=False).first.wait_for()


def test_an_asset_links_to_its_run_in_mlflow_and_that_one_back(materialized: str, page: Any, address: str) -> None:
    assert materialized == "SUCCESS"
    page.goto(f"{address}/assets/entropy_scores?view=overview")
    with page.context.expect_page() as opened:
        page.locator("a[href*='/experiments/']").first.click()
    mlflow = opened.value
    mlflow.set_default_timeout(PAGE_S * 1000)
    back = mlflow.get_by_role("link", name="The run in Dagster").first
    back.wait_for()
    screenshot(mlflow, "mlflow-run")
    run = back.get_attribute("href")
    assert run and run.startswith(f"{address}/runs/")
    mlflow.goto(run)
    mlflow.get_by_text("entropy_scores").first.wait_for()
    mlflow.close()


def test_why_a_tile_was_dropped_is_answered_by_a_job(materialized: str, page: Any, address: str, project: Path) -> None:
    assert materialized == "SUCCESS"
    ledger = pq.read_table(project / "assets" / "pruned_subset" / "decisions.parquet").to_pylist()
    dropped = next(row for row in ledger if row["decision"] == "low_information")
    config = {"ops": {"why_was_it_kept_or_dropped": {"config": {"tile_id": dropped["tile_id"]}}}}
    assert status_when_done(address, launch(page, address, "explain_tile", yaml.safe_dump(config))) == "SUCCESS"
    page.get_by_text(dropped["reason"], exact=False).first.wait_for()
    screenshot(page, "explain-tile")


def test_which_tiles_trained_the_champion_is_answered_by_a_job(
    materialized: str, page: Any, address: str, project: Path
) -> None:
    assert materialized == "SUCCESS"
    assert status_when_done(address, launch(page, address, "champion_tiles")) == "SUCCESS"
    n_kept = pq.read_metadata(project / "assets" / "pruned_subset" / "pruned_subset.parquet").num_rows
    page.get_by_text(f"was trained on the {n_kept:,} tiles of pruned_subset", exact=False).first.wait_for()
    screenshot(page, "champion-tiles")


def _figure(address: str, label: str) -> int:
    return int(metadata(address, "pruned_subset")[label])
