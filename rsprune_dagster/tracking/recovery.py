"""What a killed process or a `dvc checkout` left out of step is put right before the next materialization."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import dagster as dg

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dvc_lock import DvcProject, version_in
from rsprune_dagster.tracking.run_log import Record, RunLog, is_alive

DATA_VERSION = "dagster/data_version"


def recover(
    run_log: RunLog,
    layout: Layout,
    project: DvcProject | None,
    instance: dg.DagsterInstance,
    *,
    say: Callable[[str], object],
) -> None:
    """End the records of processes that are gone.

    Where the new version had taken the asset's place already, the record is completed: dvc.lock and Dagster hear of it.
    Else nothing was changed, and the record says that it was killed. Dagster also hears of what was finished by a
    process that ended before it could tell.
    """
    for record in run_log.records():
        if record.status == "RUNNING" and not is_alive(record.process):
            run_log.write(_recovered(record, layout, project))
            say(f"{record.asset} of run {record.run_id} was cut short by the end of its process: recovered")
    newest = {record.asset: record for record in run_log.records() if record.status == "FINISHED"}
    for record in newest.values():
        if not is_alive(record.process) and _is_missing_in_dagster(record, run_log, layout, instance):
            report(instance, record.asset, record.data_version, f"made by run {record.run_id}, told by a later one")


def import_versions(versions: Mapping[str, str], instance: dg.DagsterInstance, run_log: RunLog) -> None:
    """Report versions that are there to Dagster that it did not make: after `dvc checkout` or `dvc pull`."""
    for asset, version in versions.items():
        if _version_known(instance, asset) != version:
            report(instance, asset, version, _origin(run_log, version))


def report(instance: dg.DagsterInstance, asset: str, version: str, origin: str) -> None:
    """Record in Dagster that `version` of an asset is in place, without a run."""
    materialization = dg.AssetMaterialization(asset, metadata={"origin": origin}, tags={DATA_VERSION: version})
    instance.report_runless_asset_event(materialization)


def _recovered(record: Record, layout: Layout, project: DvcProject | None) -> Record:
    ended = replace(record, ended_at=time.time(), message="its process ended before it could record the end")
    if not (record.data_version and layout.has(record.asset)):
        return replace(ended, status="KILLED")
    if tree_of(layout.folder(record.asset)).digest != record.data_version:
        return replace(ended, status="KILLED")
    versioned = False
    if project is not None and record.stage:
        versioned = not record.departures and _inputs_are_locked(record, project)
    if project is not None and versioned:
        project.record({record.asset: dict(record.stage)}, lambda _: None)
    lock_md5 = project.lock_md5() if project else ""
    return replace(ended, status="FINISHED", versioned=versioned, dvc_lock_md5=lock_md5)


def _is_missing_in_dagster(record: Record, run_log: RunLog, layout: Layout, instance: dg.DagsterInstance) -> bool:
    """Whether this version is there, but Dagster's latest materialization is another."""
    if _version_known(instance, record.asset) == record.data_version or not layout.has(record.asset):
        return False
    return tree_of(layout.folder(record.asset), memory=run_log.memory(record.asset)).digest == record.data_version


def _inputs_are_locked(record: Record, project: DvcProject) -> bool:
    locked = project.lock()
    return all(version_in(locked, name) == digest for name, digest in record.inputs.items())


def _version_known(instance: dg.DagsterInstance, asset: str) -> str:
    """The data version of an asset's latest materialization in Dagster; empty where there is none."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    materialization = event.asset_materialization if event else None
    return (materialization.tags or {}).get(DATA_VERSION, "") if materialization else ""


def _origin(run_log: RunLog, version: str) -> str:
    makers = [record.run_id for record in run_log.records() if record.data_version == version]
    return f"made by run {makers[0]}, then brought back" if makers else "brought here by DVC or by hand"
