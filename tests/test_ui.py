"""The web UI as a person meets it: `dg dev`, a headless browser, everything materialized, a picture looked at."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from prune_runs import PLAN

from rsprune_dagster.corpus.synthetic import write_corpus

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[1]
ASSETS = ("raw_corpus", "reference_scenes", "entropy_scores", "embeddings", "scene_clusters", "pruned_subset")
START_S = 90
RUN_S = 150


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder of its own: params.yaml over a small synthetic corpus, and DAGSTER_HOME as `make ui` sets it."""
    folder = tmp_path_factory.mktemp("project")
    write_corpus(folder / "made", PLAN)
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    params["corpus"]["sources"] = [str(folder / "made" / "corpus")]
    params["reference"]["sources"] = [str(folder / "made" / "reference")]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "home").mkdir()
    (folder / "home" / "dagster.yaml").symlink_to(CHECKOUT / "dagster.yaml")
    return folder


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    """Where the running web UI is."""
    port = _free_port()
    with (project / "dg.log").open("wb") as log, _served(project, port, log):
        url = f"http://127.0.0.1:{port}"
        _wait_until_served(url, project / "dg.log")
        yield url


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    """A page of a headless browser. Without chromium the tests are skipped, loudly; under CI that is a failure."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def materialized(page: Any, address: str) -> str:
    """The status of a run of everything, started with the button."""
    page.goto(f"{address}/asset-groups")
    page.get_by_text("Materialize all").first.click()
    page.get_by_text("Launched run").first.wait_for()
    page.get_by_text("View", exact=True).first.click()
    page.wait_for_url("**/runs/**")
    return _status_when_done(address, _run_id(page))


def test_materialize_all_succeeds_and_each_asset_tells_its_rows_and_columns(materialized: str, address: str) -> None:
    assert materialized == "SUCCESS"
    for asset in ASSETS:
        labels = {entry["label"] for entry in _metadata(address, asset)}
        assert {"dagster/row_count", "dagster/column_schema", "params", "folder"} <= labels, asset


def test_the_pictures_of_the_pruned_subset_are_rendered(materialized: str, page: Any, address: str) -> None:
    assert materialized == "SUCCESS"
    page.goto(f"{address}/assets/pruned_subset?view=overview")
    links = page.get_by_text("[Show Markdown]")
    links.first.wait_for()
    assert links.count() == 4  # kept by scene, the map, kept beside unselected, dropped
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
    assert _status_when_done(address, _materialize_with(page, address, keep_fraction=0.3)) == "SUCCESS"
    assert _figure(address, "n_kept") == int(0.3 * _figure(address, "n_readable") + 0.5)
    assert (project / "params.yaml").read_bytes() == before
    assert _status_when_done(address, _materialize_with(page, address, keep_fraction=0.15)) == "SUCCESS"
    assert _figure(address, "n_kept") == kept_before


def test_a_bad_parameter_is_one_sentence_on_the_run_page(materialized: str, page: Any, address: str) -> None:
    assert materialized == "SUCCESS"
    assert _status_when_done(address, _materialize_with(page, address, keep_fraction=15)) == "FAILURE"
    page.get_by_text("keep_fraction is 15", exact=False).first.wait_for()
    page.get_by_text("give 0.15 to keep 15 %", exact=False).first.wait_for()


def _materialize_with(page: Any, address: str, *, keep_fraction: float) -> str:
    """Materialize pruned_subset alone from its launchpad; returns the run's id."""
    page.goto(f"{address}/assets/pruned_subset?view=overview")
    button = page.locator("button").filter(has_text="Materialize")
    button.locator("xpath=following::button[1]").first.click()
    page.get_by_text("launchpad").first.click()
    page.wait_for_function(
        "() => document.querySelector('.CodeMirror')?.CodeMirror.getValue().includes('keep_fraction')"
    )
    page.evaluate(
        """value => {
            const editor = document.querySelector('.CodeMirror').CodeMirror;
            editor.setValue(editor.getValue().replace(/keep_fraction: .*/, 'keep_fraction: ' + value));
        }""",
        keep_fraction,
    )
    page.get_by_text("No errors").first.wait_for()
    button.last.click()
    page.wait_for_url("**/runs/**")
    return _run_id(page)


def _run_id(page: Any) -> str:
    return str(page.url.split("/runs/")[1].split("?")[0])


def _status_when_done(address: str, run_id: str) -> str:
    """SUCCESS, FAILURE or CANCELED, or what the run is at when the patience ends."""
    query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
    ends = time.monotonic() + RUN_S
    status = ""
    while status not in ("SUCCESS", "FAILURE", "CANCELED") and time.monotonic() < ends:
        time.sleep(0.5)
        status = _ask(address, query, id=run_id)["runOrError"].get("status", "")
    return status


def _metadata(address: str, asset: str) -> list[dict[str, Any]]:
    """The metadata of the asset's latest materialization."""
    query = """query($path: [String!]!) { assetOrError(assetKey: {path: $path}) { ... on Asset {
        assetMaterializations(limit: 1) { metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"""
    latest = _ask(address, query, path=[asset])["assetOrError"]["assetMaterializations"]
    return list(latest[0]["metadataEntries"])


def _figure(address: str, label: str) -> int:
    return next(int(entry["intValue"]) for entry in _metadata(address, "pruned_subset") if entry["label"] == label)


def _ask(address: str, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer)["data"])


def _free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


@contextmanager
def _served(project: Path, port: int, log: Any) -> Iterator[None]:
    """What `make ui` runs, in a process session of its own, which an interrupt ends."""
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(project / "home"),
        "RSPRUNE_PROJECT": str(project),
        "VIRTUAL_ENV": sys.prefix,
        "OMP_WAIT_POLICY": "passive",
    }
    command = [str(Path(sys.prefix, "bin", "dg")), "dev", "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it started: asked politely first, as the servers then end their own children."""
    for how, patience_s in ((signal.SIGINT, 15), (signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, how)
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=patience_s)


def _wait_until_served(url: str, log: Path) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        try:
            with urllib.request.urlopen(f"{url}/server_info", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"the web UI did not start within {START_S} s:\n{log.read_text()[-4000:]}")


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    message = "no chromium here (Debian: apt-get install chromium): the web UI was not tested"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    warnings.warn(message, stacklevel=1)
    pytest.skip(message)
