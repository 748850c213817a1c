"""Checkpoints in MLflow's model registry: a version for each content, and the alias `champion`. Putting twice changes
nothing.

A version is the folder that DVC's cache holds, logged as artifacts of the run that made it: safetensors and JSON, no
MLflow flavour, which would pickle. What it scored stands in its tags, so that another machine can compare.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsprune_dagster.evaluation.protocol import Score
from rsprune_dagster.resources.champion import ALIAS, CHECKPOINT, Standing, note_seen, verdict
from rsprune_dagster.resources.dvc_cache import DvcCache
from rsprune_dagster.resources.journal import Record
from rsprune_dagster.resources.mlflow_desk import Desk
from rsprune_dagster.resources.mlflow_runs import DAGSTER_RUN, DATA_VERSION
from rsprune_dagster.resources.mlflow_store import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL = "model"
"""The folder among a run's artifacts that holds the checkpoint."""
SCORE, VERDICT, DECIDED_BY = "rsprune.score", "rsprune.verdict", "rsprune.decided_by"


def model_name(experiment: str) -> str:
    """The registered model of an experiment: registries are shared, and two projects have two champions."""
    return f"{experiment}-{CHECKPOINT}"


def put_model(tracking: Tracking, desk: Desk, record: Record, run_id: str) -> None:
    """Register the checkpoint that a record tells of, unless that content is registered already.

    A version that DVC's cache does not hold (any more) is not registered.
    """
    if record.asset != CHECKPOINT or record.status != "FINISHED" or desk.project is None:
        return
    cache, name = DvcCache.of(desk.project), model_name(desk.experiment)
    if _version(tracking.client, name, record.data_version) or cache.tree(record.data_version) is None:
        return
    with tempfile.TemporaryDirectory(dir=desk.journal.root, prefix=".model.") as folder:
        cache.place(record.data_version, Path(folder))
        tracking.client.log_artifacts(run_id, folder, MODEL)
    _ensure_model(tracking.client, name)
    tags = {DATA_VERSION: record.data_version, DAGSTER_RUN: record.run_id, "rsprune.git_commit": record.git_commit}
    source = f"{tracking.client.get_run(run_id).info.artifact_uri}/{MODEL}"
    tracking.client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0)


def put_verdict(tracking: Tracking, desk: Desk, record: Record, run_id: str) -> None:
    """Bring an evaluation's decision to the registry: the score as a tag, the alias where it moves.

    The decision was made on what the journal knew. Where the alias points at another version than that, it is made
    again with that version's score.
    """
    if not record.verdict:
        return
    client, name, said = tracking.client, model_name(desk.experiment), record.verdict
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
        note_seen(desk.journal, champion.tags.get(DATA_VERSION, ""), _score(champion), record.ended_at or 0.0)


def _decision(said: Mapping[str, Any], champion: "ModelVersion | None") -> tuple[bool, str]:
    """Whether the alias moves, and why."""
    moves = said["champion"] == said["checkpoint"] != said["previous"]
    held = champion.tags.get(DATA_VERSION, "") if champion else ""
    if not moves or champion is None or held in (said["checkpoint"], said["previous"]):
        return moves and held != said["checkpoint"], str(said["reason"])
    theirs = _score(champion)
    standing = Standing(held or f"version {champion.version}", (Score.from_json(theirs),) if theirs else ())
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


def _version(client: "MlflowClient", name: str, data_version: str) -> "ModelVersion | None":
    """The version with this content."""
    found = client.search_model_versions(f"name = '{name}' AND tags.`{DATA_VERSION}` = '{data_version}'")
    return found[0] if found else None


def _ensure_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            name, description="Diffusion models trained on pruned subsets (rsprune_dagster)."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
