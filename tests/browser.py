"""Dagster's web UI as a person meets it: `dg dev`, a page of a headless browser, and what both are asked."""

import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from needs import missing
from servers import answers, free_port, served

LOCATION = "rsprune_dagster"
RUN_S = 900
PAGE_S = 300
"""Patience with a run and a page: each takes seconds, unless the machine is busy."""


@contextmanager
def dagster_ui(checkout: Path, log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """What `make ui` runs in `checkout`, in a process session of its own; yields its address.

    The servers know it as DAGSTER_URL, so that links lead back to it.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.prefix, "bin", "dg")), "dev", "--port", str(port)]
    ours = {"VIRTUAL_ENV": sys.prefix, "OMP_WAIT_POLICY": "passive", "DAGSTER_URL": url}
    with served(command, log, lambda: answers(f"{url}/server_info"), env={**environment, **ours}, cwd=checkout):
        yield url


@contextmanager
def browser_page() -> Iterator[Any]:
    """A page of a headless browser. Without chromium the test is skipped, loudly; under CI that is a failure."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(1000 * PAGE_S)
        yield page
        browser.close()


def materialize_all(page: Any, address: str) -> str:
    """Press "Materialize all"; returns the run's id."""
    page.goto(f"{address}/asset-groups")
    page.get_by_text("Materialize all").first.click()
    page.get_by_text("Launched run").first.wait_for()
    page.get_by_text("View", exact=True).first.click()
    page.wait_for_url("**/runs/**")
    return _run_id(page)


def materialize_with(page: Any, address: str, *, keep_fraction: float) -> str:
    """Materialize pruned_subset alone from its launchpad; returns the run's id."""
    press_materialize(page, address, keep_fraction=keep_fraction)
    page.wait_for_url("**/runs/**")
    return _run_id(page)


def press_materialize(page: Any, address: str, *, keep_fraction: float) -> None:
    """Ask for pruned_subset alone from its launchpad, and wait for nothing."""
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


def launch(page: Any, address: str, job: str, config: str = "") -> str:
    """Start a job from its launchpad, the given YAML in the editor where it asks for any; returns the run's id."""
    page.goto(f"{address}/locations/{LOCATION}/jobs/{job}/playground")
    page.wait_for_function("() => document.querySelector('.CodeMirror')")
    if config:
        page.evaluate("value => document.querySelector('.CodeMirror').CodeMirror.setValue(value)", config)
    page.get_by_text("No errors").first.wait_for()
    page.locator("button").filter(has_text="Launch run").last.click()
    page.wait_for_url("**/runs/**")
    return _run_id(page)


def screenshot(page: Any, name: str) -> None:
    """A picture for whoever looks, where RSPRUNE_SHOTS names a folder for it."""
    if folder := os.environ.get("RSPRUNE_SHOTS"):
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(folder) / f"{name}.png")


def status_when_done(address: str, run_id: str) -> str:
    """SUCCESS, FAILURE or CANCELED, or what the run is at when the patience ends."""
    query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
    ends = time.monotonic() + RUN_S
    status = ""
    while status not in ("SUCCESS", "FAILURE", "CANCELED") and time.monotonic() < ends:
        time.sleep(0.5)
        status = ask(address, query, id=run_id)["runOrError"].get("status", "")
    return status


def metadata(address: str, asset: str) -> dict[str, Any]:
    """Integers and texts of the asset's latest materialization, by label; other kinds are None."""
    query = """query($path: [String!]!) { assetOrError(assetKey: {path: $path}) { ... on Asset {
        assetMaterializations(limit: 1) { metadataEntries { label
            ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } ... on UrlMetadataEntry { url }
        } } } } }"""
    latest = ask(address, query, path=[asset])["assetOrError"]["assetMaterializations"]
    entries = latest[0]["metadataEntries"]
    return {each["label"]: each.get("intValue", each.get("text", each.get("url"))) for each in entries}


def ask(address: str, query: str, **variables: Any) -> dict[str, Any]:
    """Dagster's answer to a GraphQL query."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer)["data"])


def _run_id(page: Any) -> str:
    """The id of the run whose page is open. The page is left: drawing it takes a core for as long as the run goes."""
    run_id = str(page.url.split("/runs/")[1].split("?")[0])
    page.goto("about:blank")
    return run_id


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        missing("no chromium here (Debian: apt-get install chromium): the web UI was not tested")
    return found
