"""A record as an MLflow run: a Dagster run is the parent, each materialization a child. Putting twice changes nothing.

A run is found again by its tag `rsprune.record`, so a process that died between creating a run and noting its id
leaves no second one. Only `MlflowClient` with an explicit address is used: no active run, no autologging.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsprune_dagster.resources.journal import RECORD, Record, Status
from rsprune_dagster.resources.mlflow_store import Tracking, found, tag_is

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Run

IDENTITY = "rsprune.record"
DAGSTER_RUN = "rsprune.dagster_run_id"
ASSET = "rsprune.asset"
DATA_VERSION = "rsprune.data_version"
PARENT = "mlflow.parentRunId"
CONTEXT = "mlflow.data.context"
LINEAGE = "lineage"
"""The folder among a run's artifacts that holds its record."""

_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000  # MLflow's; for a tag that of older servers


def put_parent(tracking: Tracking, record: Record, *, known: str = "") -> str:
    """The id of the MLflow run of a record's Dagster run; made, and RUNNING, where it is missing. `known`: its id."""
    tags = {DAGSTER_RUN: record.run_id, **_code_tags(record)}
    return str(_ensure(tracking, record.run_id, record.run_id[:8], tags, record.started_at, known).info.run_id)


def put_child(tracking: Tracking, record: Record, status: Status, *, parent: str, known: str = "") -> str:
    """Bring a record's run to the record's state, its artifacts excepted; returns the run's id. `known`: its id."""
    tags = {**_tags(record), PARENT: parent}
    run = _ensure(tracking, record.name, record.asset, tags, record.started_at, known)
    run_id = str(run.info.run_id)
    _put_values(tracking, run, record, tags)
    if datasets := _datasets(record):
        tracking.client.log_inputs(run_id, datasets=datasets)
    put_status(tracking, run_id, status, record.ended_at)
    return run_id


def put_status(tracking: Tracking, run_id: str, status: Status, ended_at: float | None) -> None:
    """Set a run's status; a RUNNING one has no end, a killed one that left none ends now."""
    if status == "RUNNING":
        tracking.client.update_run(run_id, status=status)
    else:
        tracking.client.set_terminated(run_id, status, None if ended_at is None else int(ended_at * 1000))


def put_files(tracking: Tracking, run_id: str, folder: Path, pictures: Path) -> None:
    """Log the record in `folder` and the pictures as artifacts: what was logged before is written over."""
    tracking.client.log_artifact(run_id, str(folder / RECORD), LINEAGE)
    if pictures.is_dir():
        tracking.client.log_artifacts(run_id, str(pictures), pictures.name)


def _ensure(
    tracking: Tracking, identity: str, name: str, tags: Mapping[str, str], started_at: float, known: str
) -> "Run":
    """The run with this identity: the known one if it is still there, else the one found by its tag, else a new one."""
    if run := _still_there(tracking, known) or next(found(tracking, tag_is(IDENTITY, identity)), None):
        return run
    return tracking.client.create_run(
        tracking.experiment_id,
        start_time=int(started_at * 1000),
        tags={IDENTITY: identity, **{key: value for key, value in tags.items() if value}},
        run_name=name,
    )


def _still_there(tracking: Tracking, known: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    if not known:
        return None
    try:
        run = tracking.client.get_run(known)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _put_values(tracking: Tracking, run: "Run", record: Record, tags: Mapping[str, str]) -> None:
    """Parameters, metrics and tags. MLflow never changes a parameter: what a retry changed is said in a tag."""
    from mlflow.entities import Param, RunTag

    params = {_key(key): _cut(_text(value), _LONGEST_PARAM) for key, value in record.params.items()}
    earlier = run.data.params
    changed = {key: value for key, value in params.items() if earlier.get(key, value) != value}
    metrics, skipped = _metrics(record)
    every = {**tags, "rsprune.params_changed": _json(changed), "rsprune.metrics_skipped": ", ".join(skipped)}
    tracking.client.log_batch(
        run.info.run_id,
        metrics=metrics,
        params=[Param(key, value) for key, value in params.items() if key not in earlier],
        # an empty tag is noise, unless it takes back what an earlier attempt said
        tags=[
            RunTag(key, _cut(value, _LONGEST_TAG)) for key, value in every.items() if value or run.data.tags.get(key)
        ],
    )


def _tags(record: Record) -> dict[str, str]:
    return {
        DAGSTER_RUN: record.run_id,
        ASSET: record.asset,
        DATA_VERSION: record.data_version,
        "rsprune.code_version": record.code_version,
        "rsprune.dvc_lock_md5": record.dvc_lock_md5,
        "rsprune.versioned": _text(record.versioned),
        "rsprune.versioned_note": record.versioned_note,
        "rsprune.departures": _json(record.departures),
        "rsprune.attempt": str(record.attempt),
        "rsprune.message": record.message,
        "mlflow.note.content": _note(record),
        **_code_tags(record),
    }


def _note(record: Record) -> str:
    """Markdown that MLflow shows above the run: the way to Dagster, and why it failed."""
    page = f"{os.environ.get('DAGSTER_URL', 'http://127.0.0.1:3000')}/runs/{record.run_id}"
    return "\n\n".join(filter(None, [record.message, f"[The run in Dagster]({page})"]))


def _code_tags(record: Record) -> dict[str, str]:
    return {
        "rsprune.git_commit": record.git_commit,
        "rsprune.git_dirty": _text(record.git_dirty) if record.git_commit else "",
        "mlflow.source.git.commit": record.git_commit,
        "mlflow.source.name": "rsprune_dagster",
    }


def _metrics(record: Record) -> tuple[list["Metric"], list[str]]:
    """The metrics that are finite numbers, and the names of the others."""
    from mlflow.entities import Metric

    timestamp = int((record.ended_at or record.started_at) * 1000)
    finite = {key: value for key, value in record.metrics.items() if _is_finite(value)}
    metrics = [Metric(_key(key), float(value), timestamp, 0) for key, value in finite.items()]
    return metrics, [key for key in record.metrics if key not in finite]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _datasets(record: Record) -> list["DatasetInput"]:
    """Inputs and output; the digest is the data version, which MLflow's column just holds (36 characters)."""
    paths = _paths(record.stage)
    datasets = [_dataset(asset, version, "input", paths) for asset, version in record.inputs.items() if version]
    if record.data_version:
        size = {"n_files": record.n_files, "size_bytes": record.size_bytes}
        datasets.append(_dataset(record.asset, record.data_version, "output", paths, size))
    return datasets


def _dataset(
    asset: str, version: str, context: str, paths: Mapping[str, str], profile: Mapping[str, int] | None = None
) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = {"path": paths.get(version, f"assets/{asset}"), "md5": version}
    dataset = Dataset(
        asset, version, "dvc", json.dumps(source), profile=json.dumps(profile) if profile is not None else None
    )
    return DatasetInput(dataset, [InputTag(CONTEXT, context)])


def _paths(stage: Mapping[str, Any]) -> dict[str, str]:
    """Where each version lies, by its hash: from the stage's entry for dvc.lock."""
    rows: Iterable[Mapping[str, Any]] = [*(stage.get("deps") or []), *(stage.get("outs") or [])]
    return {str(row["md5"]): str(row["path"]) for row in rows if "md5" in row and "path" in row}


def _key(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:250]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values) if values else ""


def _cut(text: str, longest: int) -> str:
    note = f" … cut from {len(text)} characters; whole in {LINEAGE}/{RECORD}"
    return text if len(text) <= longest else text[: longest - len(note)] + note
