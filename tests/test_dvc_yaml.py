"""dvc.yaml and the asset graph say the same: stages, what each is made from, the parameters, the code."""

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import grimp
import pytest
import yaml

from rsprune_dagster.config.params import Params, load
from rsprune_dagster.dagster.assets import FACTORIES, build_assets

PROJECT = Path(__file__).resolve().parents[1]
PLUMBING = ("device", "errors", "progress", "params", "terminal")
"""Modules that every step imports and that no result depends on; params.yaml itself is listed by value."""


@cache
def stages() -> dict[str, Any]:
    return dict(yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"])


@cache
def definitions() -> dict[str, dg.AssetsDefinition]:
    return {made.key.to_user_string(): made for made in build_assets(load(PROJECT / "params.yaml"))}


NAMES = [name for name, made in definitions().items() if made.partitions_def is None]
"""What partitions fill over hours is no stage: `dvc repro` would train for days, and `dvc checkout` would ask for data
that was never made."""


def test_a_stage_for_each_asset_in_the_order_of_the_flow() -> None:
    assert list(stages()) == NAMES
    assert {*definitions()} - {*NAMES} == {"pruning_study"}


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_runs_its_asset_into_its_folder(name: str) -> None:
    assert stages()[name]["cmd"] == f".venv/bin/rsprune materialize {name}"
    assert stages()[name]["outs"] == [{f"assets/{name}": {"persist": True}}]


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_the_upstream_assets(name: str) -> None:
    upstream = {dep.asset_key.to_user_string() for dep in definitions()[name].get_asset_spec().deps}
    named = {path.removeprefix("assets/") for path in stages()[name]["deps"] if path.startswith("assets/")}
    assert named == upstream


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_the_code_that_its_step_imports(name: str) -> None:
    named = {path for path in stages()[name]["deps"] if not path.startswith("assets/")}
    assert named == code_of(name), "write these into dvc.yaml: " + ", ".join(sorted(code_of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_the_parameters_that_its_asset_records(name: str) -> None:
    assert set(stages()[name]["params"]) == recorded_params(name)


def test_metrics_and_plots_are_files_of_the_stages() -> None:
    document = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
    files = [*document["metrics"], *(path for plot in document["plots"] for path in plot)]
    folders = tuple(f"assets/{name}/" for name in stages())
    assert files and all(path.startswith(folders) for path in files)


def code_of(name: str) -> set[str]:
    """The files that the step of an asset imports, directly or not, below corpus/, pruning/, diffusion/ and report/."""
    graph = _graph()
    steps = set(
        re.findall(
            r"from (rsprune_dagster\.(?:(?:pruning\.steps|diffusion|evaluation)\.\w+|report\.page)) import",
            _source(name),
        )
    )
    if "scanner(" in _source(name):
        steps.add("rsprune_dagster.stages.raw_corpus")
    modules = steps.union(*(graph.find_upstream_modules(step) for step in steps))
    rooms = {module for module in modules if module.split(".")[1] not in PLUMBING}
    files = {module.replace(".", "/") + ".py" for module in rooms}
    if "rsprune_dagster/viz/page.py" in files:
        templates = (PROJECT / "rsprune_dagster" / "report").glob("page.*")
        files |= {f"rsprune_dagster/report/{path.name}" for path in templates}
    return files


def recorded_params(name: str) -> set[str]:
    """What the asset tells the lineage to record: whole sections, of `compute` the seed, of `automation` the switch."""
    found = re.search(
        r"(?:record_asset\(\s*context,\s*assets,\s*|recorded: dict\[str, Any\] = )\{(.*?)\}",
        _source(name),
        re.DOTALL,
    )
    assert found, name
    sections = set(re.findall(r'"(\w+)":', found.group(1)))
    assert sections <= set(Params.model_fields)
    parts = {"compute": "compute.seed", "automation": "automation.enabled"}
    return {parts.get(section, section) for section in sections}


def _source(name: str) -> str:
    return inspect.getsource(next(factory for factory in FACTORIES if factory.__name__ == f"{name}_asset"))


@cache
def _graph() -> Any:
    return grimp.build_graph("rsprune_dagster")
