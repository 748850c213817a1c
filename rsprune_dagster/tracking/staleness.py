"""Why an asset has to be made anew: what `dvc status` would report, against the dvc.lock of a commit."""

from collections.abc import Mapping, Sequence

from rsprune_dagster.config.layout import ASSETS
from rsprune_dagster.tracking.dvc_lock import DvcProject, Stage, version_in
from rsprune_dagster.tracking.format import format_list
from rsprune_dagster.tracking.locks import params_of


def with_upstream(project: DvcProject, assets: Sequence[str]) -> list[str]:
    """The assets and all that is upstream of them, in topological order."""
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
    """The command, code, parameters or inputs of an asset that differ from `locked`, in words; empty: it is up to date.

    Args:
        locked: dvc.lock's stages, in which what is upstream of the asset is as it is wanted.

    Raises:
        UsageError: code that dvc.yaml names is gone.
    """
    if not version_in(locked, asset):
        return "never recorded"
    asked, made = project.expected_stage_entry(asset, _outs(locked)), locked[asset]
    command = ["its command"] if asked["cmd"] != made.get("cmd") else []
    params = _differing(params_of(asked), params_of(made))
    return format_list([*command, *params, *_differing(_deps(asked), _deps(made))])


def _outs(locked: Mapping[str, Stage]) -> dict[str, Stage]:
    return {asset: stage["outs"][0] for asset, stage in locked.items() if version_in(locked, asset)}


def _deps(stage: Stage) -> dict[str, str]:
    return {dep["path"]: dep.get("md5", "") for dep in stage.get("deps", [])}


def _differing(asked: Mapping[str, object], made: Mapping[str, object]) -> list[str]:
    return [name for name in sorted(asked.keys() | made.keys()) if asked.get(name) != made.get(name)]
