"""Opening an MLflow store, a SQLite file or a server, and finding runs in it by their tags."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from rsprune_dagster.errors import UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Tracking:
    """An experiment in an MLflow store. `created` (ms since 1970) tells it from one that a wiped store made anew."""

    client: "MlflowClient"
    experiment_id: str
    created: int


@contextmanager
def patience() -> Iterator[None]:
    """In this block MLflow waits 10 s for an answer, not minutes, and neither prints links nor reports its use.

    What the user has set in the environment goes before.
    """
    ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is in this block; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def connect(tracking_uri: str, experiment: str) -> Tracking:
    """Open a store and make the experiment where it is missing.

    A new SQLite file takes seconds to get its tables, and two processes at it collide: they take turns. Its artifacts
    go into `mlartifacts` beside it, not into whatever folder the process is in.

    Raises:
        UsageError: the address is neither a SQLite file nor a server, or the experiment was deleted.
        Exception: whatever MLflow raises for a store that is down or refuses.
    """
    from mlflow import MlflowClient

    database = sqlite_file(tracking_uri)
    if database is None and not tracking_uri.startswith(("http://", "https://")):
        raise UsageError(
            f"MLflow's address is {public(tracking_uri)!r}; "
            "give sqlite:///FOLDER/mlflow.db or the http(s):// address of a server"
        )
    with nullcontext() if database is None else locked(database.with_name(f"{database.name}.lock")):
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        return _experiment(client, experiment, database)


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a `sqlite:///` address, None for any other."""
    start = "sqlite:///"
    return Path(tracking_uri.removeprefix(start)).resolve() if tracking_uri.startswith(start) else None


def _experiment(client: "MlflowClient", name: str, database: Path | None) -> Tracking:
    it = client.get_experiment_by_name(name)
    if it is None:
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        it = client.get_experiment(_create_experiment(client, name, location))
    if it.lifecycle_stage != "active":
        raise UsageError(
            f"the MLflow experiment {name!r} was deleted: bring it back with "
            f"`mlflow experiments restore -x {it.experiment_id}`, or choose another name"
        )
    return Tracking(client, it.experiment_id, int(it.creation_time or 0))


def _create_experiment(client: "MlflowClient", name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:
        # another machine may have been faster
        made = client.get_experiment_by_name(name)
        if made is None:
            raise
        return str(made.experiment_id)


def public(tracking_uri: str) -> str:
    """An address without the name and password that it may hold."""
    parts = urlsplit(tracking_uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else tracking_uri


def found(tracking: Tracking, where: str) -> Iterator["Run"]:
    """Runs by a search clause, oldest first, page by page."""
    token: str | None = None
    while True:
        page = tracking.client.search_runs(
            [tracking.experiment_id], where, max_results=200, order_by=["attributes.start_time"], page_token=token
        )
        yield from page
        if not (token := page.token):
            return


def tag_is(key: str, value: str) -> str:
    """A search clause: the tag has this value."""
    return f"tags.`{key}` = '{_plain(value)}'"


def tag_starts(key: str, start: str) -> str:
    """A search clause: the tag's value starts so."""
    return f"tags.`{key}` LIKE '{_plain(start)}%'"


def _plain(value: str) -> str:
    if not re.fullmatch(r"[\w.-]*", value):
        raise UsageError(f"{value!r} is no run, asset or hash: letters, digits, '.', '-' and '_' were expected")
    return value
