"""Records of the run log as MLflow runs, by `MlflowClient` with an explicit address: no active run, no autologging.

Writing a record twice changes nothing: its run is found again by the tag `rsprune.record`.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from rsprune_dagster.tracking.champion import CHECKPOINTS, SUBSET
from rsprune_dagster.tracking.run_log import PICTURES, RECORD, Record, Status
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.file_lock import held

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

IDENTITY = "rsprune.record"
DAGSTER_RUN = "rsprune.dagster_run_id"
ASSET = "rsprune.asset"
DATA_VERSION = "rsprune.data_version"
PARENT = "mlflow.parentRunId"
LINEAGE = "lineage"
"""The folder among a run's artifacts that holds its record."""

_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Where the environment says nothing else: 10 s for an answer instead of minutes, no links, no telemetry."""
_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000  # MLflow's limits; the limit of a tag is that of older servers


@dataclass(frozen=True)
class Experiment:
    """An experiment in an MLflow store."""

    client: "MlflowClient"
    name: str
    id: str
    created: int
    """In ms since 1970. It differs where a wiped store made the experiment anew."""


def connect(tracking_uri: str, name: str) -> Experiment:
    """Open a store, and create the experiment where it is missing.

    Two processes that make the tables of a new SQLite file collide, so they take turns. The artifacts of such a store
    go into `mlartifacts` beside it, not into the working directory.

    Raises:
        UsageError: the address is neither a SQLite file nor a server, or the experiment was deleted.
        Exception: whatever MLflow raises for a store that is down or refuses.
    """
    for setting, value in _SETTINGS.items():
        os.environ.setdefault(setting, value)
    from mlflow import MlflowClient

    database = sqlite_file(tracking_uri)
    if database:
        with held(database.with_name(f"{database.name}.lock"), f"MLflow's store {database}", lambda _: None):
            client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
            return _experiment(client, name, (database.parent / "mlartifacts").as_uri())
    if not tracking_uri.startswith(("http://", "https://")):
        raise UsageError(
            f"MLflow's address is {without_password(tracking_uri)!r}; "
            "give sqlite:///FOLDER/mlflow.db or the http(s):// address of a server"
        )
    return _experiment(MlflowClient(tracking_uri, registry_uri=tracking_uri), name, None)


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a `sqlite:///` address, None for any other."""
    start = "sqlite:///"
    return Path(tracking_uri.removeprefix(start)).resolve() if tracking_uri.startswith(start) else None


def without_password(tracking_uri: str) -> str:
    """An address without the name and password that it may hold."""
    parts = urlsplit(tracking_uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else tracking_uri


def find_runs(experiment: Experiment, where: str) -> Iterator["Run"]:
    """Runs by a search clause, oldest first, page by page."""
    token: str | None = None
    while True:
        page = experiment.client.search_runs(
            [experiment.id], where, max_results=200, order_by=["attributes.start_time"], page_token=token
        )
        yield from page
        if not (token := page.token):
            return


def tag_filter(key: str, value: str) -> str:
    """A search clause: the tag has this value, in which % stands for anything."""
    if not re.fullmatch(r"[\w.-]*%?", value):
        raise UsageError(f"{value!r} is no run, asset or hash: letters, digits, '.', '-' and '_' were expected")
    return f"tags.`{key}` {'LIKE' if value.endswith('%') else '='} '{value}'"


def records_in(
    tracking_uri: str, experiment: str, *, data_version: str = "", run_id: str = "", asset: str = ""
) -> list[Record]:
    """The records that an MLflow store holds, oldest first, of those that were asked for.

    `data_version` and `run_id` may be the beginning of one. A run whose files were not copied yet is left out.

    Raises:
        UsageError: as `connect`.
        Exception: whatever MLflow raises for a store that is down.
    """
    store = connect(tracking_uri, experiment)
    asked = {DATA_VERSION: data_version and f"{data_version}%", DAGSTER_RUN: run_id and f"{run_id}%", ASSET: asset}
    clauses = [tag_filter(key, value) for key, value in asked.items() if value]
    runs = list(find_runs(store, " and ".join([tag_filter(PARENT, "%"), *clauses])))
    records = [record for run in runs for record in _record_of(store.client, run.info.run_id)]
    return sorted(records, key=lambda record: (record.started_at, record.name))


def create_run(experiment: Experiment, record: Record, *, parent: str = "") -> "Run":
    """A new run for a record below the run `parent`; without one, a new run for the record's Dagster run."""
    tags = {PARENT: parent, **_tags(record)} if parent else {DAGSTER_RUN: record.run_id, **_code_tags(record)}
    return experiment.client.create_run(
        experiment.id,
        start_time=int(record.started_at * 1000),
        tags={IDENTITY: record.name if parent else record.run_id} | {key: each for key, each in tags.items() if each},
        run_name=record.asset if parent else record.run_id[:8],
    )


def put_values(experiment: Experiment, run: "Run", record: Record, model_id: str) -> None:
    """Update a run's parameters, metrics, tags, datasets and status to match its record.

    MLflow never changes a parameter: what a retry changed is said in a tag.

    Args:
        model_id: the LoggedModel that was made or read; empty: none.
    """
    from mlflow.entities import LoggedModelInput, Param, RunTag

    params = {_key(key): _cut(_text(value), _LONGEST_PARAM) for key, value in record.params.items()}
    earlier = run.data.params
    changed = {key: value for key, value in params.items() if earlier.get(key, value) != value}
    skipped = [key for key, value in record.metrics.items() if not math.isfinite(value)]
    tags = {
        **_tags(record),
        "rsprune.params_changed": json.dumps(changed) if changed else "",
        "rsprune.metrics_skipped": ", ".join(skipped),
    }
    experiment.client.log_batch(
        run.info.run_id,
        metrics=_metrics(record, model_id),
        params=[Param(key, value) for key, value in params.items() if key not in earlier],
        # an empty tag is noise, unless it takes back what an earlier attempt said
        tags=[RunTag(key, _cut(each, _LONGEST_TAG)) for key, each in tags.items() if each or run.data.tags.get(key)],
    )
    models = [LoggedModelInput(model_id)] if model_id and record.asset not in CHECKPOINTS else []
    if (datasets := _datasets(record)) or models:
        experiment.client.log_inputs(run.info.run_id, datasets=datasets, models=models)
    put_status(experiment, run.info.run_id, record.status, record.ended_at)


def put_status(experiment: Experiment, run_id: str, status: Status, ended_at: float | None) -> None:
    """Set a run's status; a RUNNING one has no end, a killed one without an end ends now."""
    if status == "RUNNING":
        experiment.client.update_run(run_id, status=status)
    else:
        experiment.client.set_terminated(run_id, status, None if ended_at is None else int(ended_at * 1000))


def put_files(experiment: Experiment, run_id: str, folder: Path) -> None:
    """Log a record's file and its pictures as artifacts; what was logged before is written over."""
    experiment.client.log_artifact(run_id, str(folder / RECORD), LINEAGE)
    if (folder / PICTURES).is_dir():
        experiment.client.log_artifacts(run_id, str(folder / PICTURES), PICTURES)


def _experiment(client: "MlflowClient", name: str, artifacts: str | None) -> Experiment:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment = client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
    if experiment.lifecycle_stage != "active":
        raise UsageError(
            f"the MLflow experiment {name!r} was deleted: bring it back with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`, or choose another name"
        )
    return Experiment(client, name, experiment.experiment_id, int(experiment.creation_time or 0))


def _record_of(client: "MlflowClient", run_id: str) -> Iterator[Record]:
    if any(Path(item.path).name == RECORD for item in client.list_artifacts(run_id, LINEAGE)):
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run_id, f"{LINEAGE}/{RECORD}", folder)
            yield Record(**json.loads(Path(path).read_text()))


def _tags(record: Record) -> dict[str, str]:
    page = f"{os.environ.get('DAGSTER_URL', 'http://127.0.0.1:3000')}/runs/{record.run_id}"
    return {
        DAGSTER_RUN: record.run_id,
        ASSET: record.asset,
        DATA_VERSION: record.data_version,
        "rsprune.code_version": record.code_version,
        "rsprune.dvc_lock_md5": record.dvc_lock_md5,
        "rsprune.versioned": _text(record.versioned),
        "rsprune.versioned_note": record.versioned_note,
        "rsprune.departures": json.dumps(record.departures) if record.departures else "",
        "rsprune.attempt": str(record.attempt),
        "rsprune.message": record.message,
        # Markdown that MLflow shows above the run
        "mlflow.note.content": "\n\n".join(filter(None, [record.message, f"[The run in Dagster]({page})"])),
        **_code_tags(record),
    }


def _code_tags(record: Record) -> dict[str, str]:
    return {
        "rsprune.git_commit": record.git_commit,
        "rsprune.git_dirty": _text(record.git_dirty) if record.git_commit else "",
        "mlflow.source.git.commit": record.git_commit,
        "mlflow.source.name": "rsprune_dagster",
    }


def _metrics(record: Record, model_id: str) -> list["Metric"]:
    """The finite metrics. Those of a checkpoint hang on it and on the subset that it was trained on."""
    from mlflow.entities import Metric

    ended_at = int((record.ended_at or record.started_at) * 1000)
    subset = record.inputs.get(SUBSET, "") if model_id else ""
    on = {"model_id": model_id or None, "dataset_name": SUBSET if subset else None, "dataset_digest": subset or None}
    return [
        Metric(_key(key), float(value), ended_at, 0, **on)
        for key, value in record.metrics.items()
        if math.isfinite(value)
    ]


def _datasets(record: Record) -> list["DatasetInput"]:
    """Inputs and output; the digest is the data version, which fits MLflow's column (36 characters)."""
    stage = [*(record.stage.get("deps") or []), *(record.stage.get("outs") or [])]
    paths = {str(row["md5"]): str(row["path"]) for row in stage if "md5" in row and "path" in row}
    datasets = [_dataset(asset, version, "input", paths) for asset, version in record.inputs.items() if version]
    if record.data_version:
        profile = json.dumps({"n_files": record.n_files, "size_bytes": record.size_bytes})
        datasets.append(_dataset(record.asset, record.data_version, "output", paths, profile))
    return datasets


def _dataset(
    asset: str, version: str, context: str, paths: Mapping[str, str], profile: str | None = None
) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"path": paths.get(version, f"assets/{asset}"), "md5": version})
    return DatasetInput(
        Dataset(asset, version, "dvc", source, profile=profile), [InputTag("mlflow.data.context", context)]
    )


def _key(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:250]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cut(text: str, longest: int) -> str:
    note = f" … cut from {len(text)} characters; whole in {LINEAGE}/{RECORD}"
    return text if len(text) <= longest else text[: longest - len(note)] + note
