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

from rsprune_dagster.config.layout import STUDIES
from rsprune_dagster.config.params import Params, load
from rsprune_dagster.dagster.assets import FACTORIES, build_assets

PROJECT = Path(__file__).resolve().parents[1]
NO_RESULT = ("config", "utils")
"""Layers that every stage imports and that no result depends on; the values of params.yaml are dependencies by name."""


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
    assert {*definitions()} - {*NAMES} == {*STUDIES}


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
def test_all_that_a_stage_imports_is_among_its_dependencies(name: str) -> None:
    named = [path for path in stages()[name]["deps"] if not path.startswith("assets/")]
    missing = {file for file in imported_by(name) if not any(f"{file}/".startswith(f"{path}/") for path in named)}
    assert not missing, f"name these, or their folder, in dvc.yaml: {', '.join(sorted(missing))}"


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_no_code_that_it_does_not_import(name: str) -> None:
    named = [path for path in stages()[name]["deps"] if not path.startswith("assets/")]
    assert not [path for path in named if not any(f"{file}/".startswith(f"{path}/") for file in imported_by(name))]
    assert all((PROJECT / path).exists() for path in named)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_the_parameters_that_its_asset_records(name: str) -> None:
    assert set(stages()[name]["params"]) == recorded_params(name)


def test_metrics_and_plots_are_files_of_the_stages() -> None:
    document = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
    files = [*document["metrics"], *(path for plot in document["plots"] for path in plot)]
    folders = tuple(f"assets/{name}/" for name in stages())
    assert files and all(path.startswith(folders) for path in files)


def imported_by(name: str) -> set[str]:
    """The files that a stage imports, directly or not, and its own; those of NO_RESULT left out."""
    stage = f"rsprune_dagster.stages.{name}"
    modules = {stage, *_graph().find_upstream_modules(stage)}
    return {module.replace(".", "/") + ".py" for module in modules if module.split(".")[1] not in NO_RESULT}


def recorded_params(name: str) -> set[str]:
    """What the asset tells the lineage to record: whole sections, of `compute` the seed, of `automation` the switch."""
    found = re.search(
        r"(?:record_asset\(\s*context,\s*layout,\s*|recorded: dict\[str, Any\] = )\{(.*?)\}",
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
