"""Checkpoints in MLflow: a LoggedModel and a registered version for each content, and the alias `champion`.

Putting twice changes nothing. A LoggedModel holds the folder of DVC's cache: safetensors and JSON, no MLflow flavour,
which would pickle. The score stands in the tags of the version, so that another machine can compare.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsprune_dagster.evaluation.protocol import Score
from rsprune_dagster.tracking.champion import (
    ALIAS,
    CHECKPOINT,
    CHECKPOINTS,
    ChampionRecord,
    verdict,
    write_mlflow_alias,
)
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.mlflow_runs import DAGSTER_RUN, DATA_VERSION, Experiment, tag_filter
from rsprune_dagster.tracking.run_log import Record, RunLog

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

PARENT_CHECKPOINT = "rsprune.parent"
SCORE, VERDICT, DECIDED_BY = "rsprune.score", "rsprune.verdict", "rsprune.decided_by"


def model_name(experiment: str, asset: str = CHECKPOINT) -> str:
    """The registered model of an experiment: registries are shared, and two projects have two champions."""
    return f"{experiment}-{asset}"


def put_model(experiment: Experiment, project: Path | None, record: Record, run_id: str) -> str:
    """The id of the LoggedModel of the checkpoint that a record made, else read; made where it is missing.

    Empty where the record has no checkpoint, or DVC's cache does not hold the version (any more).
    """
    is_made_here = record.asset in CHECKPOINTS and record.status == "FINISHED"
    version = record.data_version if is_made_here else record.inputs.get(CHECKPOINT, "")
    if not version:
        return ""
    if model := _logged_model(experiment, version):
        return model.model_id
    if not is_made_here or project is None or DvcCache.of(project).tree(version) is None:
        return ""
    tags = {DATA_VERSION: version, DAGSTER_RUN: record.run_id, **_parent(record)}
    return experiment.client.create_logged_model(experiment.id, record.asset, source_run_id=run_id, tags=tags).model_id


def register(experiment: Experiment, run_log: RunLog, project: Path | None, record: Record, run_id: str) -> None:
    """Copy the files of the checkpoint that a record made, and register it, unless that was done already."""
    client, name = experiment.client, model_name(experiment.name, record.asset)
    made = record.asset in CHECKPOINTS and record.status == "FINISHED" and project is not None
    model = _logged_model(experiment, record.data_version) if made else None
    if project is None or model is None:
        return
    if model.status != "READY" and DvcCache.of(project).tree(record.data_version) is None:
        return  # `dvc gc` removed it before it was copied
    if model.status != "READY":
        with tempfile.TemporaryDirectory(dir=run_log.root, prefix=".model.") as folder:
            DvcCache.of(project).place(record.data_version, Path(folder))
            client.log_model_artifacts(model.model_id, folder)
        _log_output(client, run_id, model.model_id)
        client.finalize_logged_model(model.model_id, "READY")
    if _version(client, name, record.data_version) is None:
        _ensure_registered_model(client, name)
        tags = {DATA_VERSION: record.data_version, DAGSTER_RUN: record.run_id, "rsprune.git_commit": record.git_commit}
        tags |= _parent(record)
        client.create_model_version(
            name, model.artifact_location, run_id, tags=tags, await_creation_for=0, model_id=model.model_id
        )


def put_verdict(experiment: Experiment, run_log: RunLog, record: Record, run_id: str) -> None:
    """Bring an evaluation's decision to the registry: the score as a tag, the alias where it moves.

    The decision was made on what the run log knew. Where the alias points at another version than that, it is made
    again with that version's score.
    """
    if not record.verdict:
        return
    client, name, said = experiment.client, model_name(experiment.name), record.verdict
    version = _version(client, name, said["checkpoint"])
    if version is None:
        client.set_tag(run_id, VERDICT, f"{said['reason']} (this checkpoint is not in the registry)")
        return
    if version.tags.get(DECIDED_BY) != record.name:
        if said["score"]:
            client.set_model_version_tag(name, version.version, SCORE, json.dumps(said["score"]))
        takes, reason = _decision(said, _champion(client, name))
        if takes:
            client.set_registered_model_alias(name, ALIAS, version.version)
        client.set_tag(run_id, VERDICT, reason)
        client.set_model_version_tag(name, version.version, VERDICT, reason)
        client.set_model_version_tag(name, version.version, DECIDED_BY, record.name)  # the last: all else has arrived
    if champion := _champion(client, name):
        write_mlflow_alias(run_log, champion.tags.get(DATA_VERSION, ""), _score(champion), record.ended_at or 0.0)


def _parent(record: Record) -> dict[str, str]:
    """The version of the checkpoint that a fine-tuned one started from, as a tag."""
    return {PARENT_CHECKPOINT: record.inputs[CHECKPOINT]} if CHECKPOINT in record.inputs else {}


def _decision(said: Mapping[str, Any], champion: "ModelVersion | None") -> tuple[bool, str]:
    """Whether the alias moves, and why."""
    moves = said["champion"] == said["checkpoint"] != said["previous"]
    held = champion.tags.get(DATA_VERSION, "") if champion else ""
    if not moves or champion is None or held in (said["checkpoint"], said["previous"]):
        return moves and held != said["checkpoint"], str(said["reason"])
    theirs = _score(champion)
    standing = ChampionRecord(held or f"version {champion.version}", (Score.from_json(theirs),) if theirs else ())
    again = verdict(said["checkpoint"], Score.from_json(said["score"]), standing, margin=said["margin"])
    return again.moves, f"the alias had been moved to {standing.checkpoint[:8]}: {again.reason}"


def _champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _score(version: "ModelVersion") -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(version.tags.get(SCORE, "null"))
    return found


def _logged_model(experiment: Experiment, data_version: str) -> "LoggedModel | None":
    """The LoggedModel with this content."""
    found = experiment.client.search_logged_models([experiment.id], tag_filter(DATA_VERSION, data_version))
    return found[0] if found else None


def _log_output(client: "MlflowClient", run_id: str, model_id: str) -> None:
    """Show the model as the run's output. MLflow refuses to be told twice."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if model_id not in {each.model_id for each in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def _version(client: "MlflowClient", name: str, data_version: str) -> "ModelVersion | None":
    """The version with this content."""
    found = client.search_model_versions(f"name = '{name}' AND tags.`{DATA_VERSION}` = '{data_version}'")
    return found[0] if found else None


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            name, description="Diffusion models trained on pruned subsets (rsprune_dagster)."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
