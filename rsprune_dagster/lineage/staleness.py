"""Why an asset has to be made anew: what `dvc status` would report, against the dvc.lock of a commit."""

import hashlib
from collections.abc import Mapping, Sequence

import yaml

from rsprune_dagster.errors import UsageError
from rsprune_dagster.lineage.format import format_list
from rsprune_dagster.lineage.locks import params_of
from rsprune_dagster.resources.dvc_lock import ASSETS, DvcProject, Stage, version_in


def wanted(project: DvcProject, assets: Sequence[str]) -> list[str]:
    """The assets and all they are made from, in an order in which each stands after what it is made from."""
    stages = project.stages()
    order: dict[str, None] = {}

    def visit(asset: str) -> None:
        for path in stages[asset].get("deps", []):
            if path.startswith(f"{ASSETS}/"):
                visit(path.partition("/")[2])
        order.setdefault(asset)

    for asset in assets:
        visit(asset)
    return list(order)


def why_stale(project: DvcProject, asset: str, locked: Mapping[str, Stage]) -> str:
    """What of an asset's command, code, parameters and upstream versions is not as `locked` has it; empty: nothing.

    Args:
        locked: dvc.lock's stages, in which what is upstream of the asset is as it is wanted.

    Raises:
        UsageError: a code file that dvc.yaml names is gone.
    """
    if not version_in(locked, asset):
        return "never recorded"
    stage, entry = project.stages()[asset], locked[asset]
    values = yaml.safe_load((project.root / "params.yaml").read_text())
    asked = params_of({"params": {"params.yaml": {name: _value(values, name) for name in stage.get("params", [])}}})
    deps = {path: _md5(project, path, locked) for path in stage.get("deps", [])}
    return format_list(
        [
            *(["its command"] if stage["cmd"] != entry.get("cmd") else []),
            *_differing(asked, params_of(entry)),
            *_differing(deps, {dep["path"]: dep.get("md5", "") for dep in entry.get("deps", [])}),
        ]
    )


def _differing(asked: Mapping[str, object], made: Mapping[str, object]) -> list[str]:
    return [name for name in sorted(asked.keys() | made.keys()) if asked.get(name) != made.get(name)]


def _md5(project: DvcProject, path: str, locked: Mapping[str, Stage]) -> str:
    folder, _, name = path.partition("/")
    if folder == ASSETS:
        return version_in(locked, name)
    try:
        return hashlib.md5((project.root / path).read_bytes()).hexdigest()
    except FileNotFoundError:
        raise UsageError(
            f"dvc.yaml names {path}, which is not there: bring it back, or take it out of the deps of its stages"
        ) from None


def _value(values: object, name: str) -> object:
    for key in name.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
