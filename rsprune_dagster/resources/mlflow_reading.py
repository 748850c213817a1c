"""Reading back from MLflow the records that were brought there, on a machine whose journal does not have them."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rsprune_dagster.resources.journal import RECORD, Record
from rsprune_dagster.resources.mlflow_runs import ASSET, CONTEXT, DAGSTER_RUN, DATA_VERSION, LINEAGE, PARENT
from rsprune_dagster.resources.mlflow_store import connect, found, patience, tag_is, tag_starts

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run


def records_in(
    tracking_uri: str, experiment: str, *, data_version: str = "", run_id: str = "", asset: str = ""
) -> list[Record]:
    """The records that an MLflow store holds, oldest first, of those that were asked for.

    `data_version` and `run_id` may be the beginning of one. A record whose artifact is missing is put together from
    its run's tags, parameters (text then) and metrics.

    Raises:
        UsageError: as `connect`.
        Exception: whatever MLflow raises for a store that is down.
    """
    where = [f"tags.`{PARENT}` LIKE '%'", tag_starts(DATA_VERSION, data_version) if data_version else ""]
    where += [tag_starts(DAGSTER_RUN, run_id), tag_is(ASSET, asset) if asset else ""]
    with patience():
        tracking = connect(tracking_uri, experiment)
        records = [_read(tracking.client, run) for run in found(tracking, " and ".join(filter(None, where)))]
    return sorted(records, key=lambda record: (record.started_at, record.name))


def _read(client: "MlflowClient", run: "Run") -> Record:
    if any(Path(item.path).name == RECORD for item in client.list_artifacts(run.info.run_id, LINEAGE)):
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run.info.run_id, f"{LINEAGE}/{RECORD}", folder)
            return Record(**json.loads(Path(path).read_text()))
    return _from_tags(run)


def _from_tags(run: "Run") -> Record:
    tags, info = run.data.tags, run.info
    datasets = run.inputs.dataset_inputs if run.inputs else []
    inputs = {item.dataset.name: item.dataset.digest for item in datasets if _is_input(item)}
    return Record(
        run_id=tags[DAGSTER_RUN],
        asset=tags[ASSET],
        status=info.status,
        started_at=info.start_time / 1000,
        process="",
        attempt=int(tags.get("rsprune.attempt", 1)),
        ended_at=info.end_time / 1000 if info.end_time else None,
        code_version=tags.get("rsprune.code_version", ""),
        git_commit=tags.get("rsprune.git_commit", ""),
        git_dirty=tags.get("rsprune.git_dirty") == "true",
        params=dict(run.data.params),
        inputs=inputs,
        data_version=tags.get(DATA_VERSION, ""),
        metrics=dict(run.data.metrics),
        versioned=tags.get("rsprune.versioned") == "true",
        versioned_note=tags.get("rsprune.versioned_note", ""),
        dvc_lock_md5=tags.get("rsprune.dvc_lock_md5", ""),
        message=tags.get("rsprune.message", ""),
    )


def _is_input(item: "DatasetInput") -> bool:
    return any(tag.key == CONTEXT and tag.value == "input" for tag in item.tags)
