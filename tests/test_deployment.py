"""The services of docker/compose.yaml on this machine without containers: their commands, settings and health checks.

What stands for an image is installed here: PostgreSQL and, for the store, moto. Hosts and ports of the compose network
are exchanged for 127.0.0.1 and free ports, and /project for a project of the test; all else is as it is there.
"""

import http.client
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml
from browser import ask, metadata, status_when_done
from projects import Project, new_project
from servers import free_port, postgres, postgres_programs, s3_keys, s3_server, served, succeeds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("dvc")]

CHECKOUT = Path(__file__).resolve().parents[1]
SERVICES: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker" / "compose.yaml").read_text())["services"]
LAUNCH = """mutation($job: String!, $assets: [AssetKeyInput!]) { launchRun(executionParams: {
    runConfigData: {}, selector: {
    repositoryLocationName: "rsprune_dagster", repositoryName: "__repository__", jobName: $job,
    assetSelection: $assets, assetCheckSelection: []}}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"
PATIENCE_S = 120


@dataclass(frozen=True)
class Deployment:
    """What runs, and where."""

    project: Project
    database: str
    s3: str
    mlflow: str
    dagster: str


class Network:
    """Where the services of the compose network are here."""

    def __init__(self, project: Project, database: str, s3: str) -> None:
        code, web, mlflow = free_port(), free_port(), free_port()
        self.project, self.mlflow, self.dagster = project, f"http://127.0.0.1:{mlflow}", f"http://127.0.0.1:{web}"
        self._here = [
            (r"\$\{RSPRUNE_PORT[^}]*\}", str(web)),
            (r"\$\{RSPRUNE_MLFLOW_PORT[^}]*\}", str(mlflow)),
            (r"\$\{RSPRUNE_WEBHOOK[^}]*\}", ""),
            (r"\$\{[^}]*\}", "secret"),
            (r"http://mlflow:5000", f"http://localhost:{mlflow}"),
            (r"http://store:7070", s3),
            (r"\bpostgres:5432", f"127.0.0.1:{_port_of(database)}"),
            (r"(mlflow|localhost|127\.0\.0\.1):5000", rf"\g<1>:{mlflow}"),
            (r"127\.0\.0\.1:3000", f"127.0.0.1:{web}"),
            (r"^--port=5000$", f"--port={mlflow}"),
            (r"^4000$", str(code)),
            (r"^3000$", str(web)),
            (r"^5432$", _port_of(database)),
            (r"^(code|postgres)$", "127.0.0.1"),
            (r"0\.0\.0\.0", "127.0.0.1"),
            (r"/project\b", str(project.root)),
        ]
        """Patterns of what stands in compose.yaml, and what is in its place here, in this order."""

    def command(self, service: str) -> list[str]:
        """What starts a service, with this environment's programs."""
        return self._program(SERVICES[service]["command"])

    def check(self, service: str) -> list[str]:
        """What looks after it."""
        kind, *words = SERVICES[service]["healthcheck"]["test"]
        assert kind == "CMD"
        return self._program(words)

    def environment(self, service: str) -> dict[str, str]:
        """What compose gives it, and the rest of ours."""
        given = {name: self._as_here(value) for name, value in SERVICES[service]["environment"].items()}
        ours = self.project.environment(OMP_NUM_THREADS="1")
        return {**ours, **given, "HOME": os.environ["HOME"], "PATH": f"{Path(sys.prefix, 'bin')}:{ours['PATH']}"}

    def _program(self, words: Sequence[str]) -> list[str]:
        return [str(Path(sys.prefix, "bin", words[0])), *map(self._as_here, words[1:])]

    def _as_here(self, value: str) -> str:
        for pattern, here in self._here:
            value = re.sub(pattern, here, value)
        return value


def _port_of(database: str) -> str:
    return database.rpartition(":")[2].partition("/")[0]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, dvc: str) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    project = new_project(folder)
    with ExitStack() as stack:
        database = stack.enter_context(postgres(folder / "postgres"))
        s3 = stack.enter_context(s3_server(folder / "s3"))
        network = Network(project, database, s3)
        _make_databases(database)
        for _ in range(2):  # the second finds the buckets there
            _run(network.command("buckets"), network.environment("buckets"), project.root)
        for name in ("mlflow", "code", "webserver", "daemon"):
            stack.enter_context(_service(name, network, folder))
        yield Deployment(project, database, s3, network.mlflow, network.dagster)


def _service(name: str, network: Network, folder: Path) -> Any:
    env, check = network.environment(name), network.check(name)
    log = folder / f"{name}.log"
    return served(network.command(name), log, lambda: succeeds(check, env), env=env, cwd=network.project.root)


def _make_databases(database: str) -> None:
    """As PostgreSQL's image runs databases.sh, and with the programs that it has."""
    passwords = {"RSPRUNE_POSTGRES_PASSWORD": "secret", "MLFLOW_POSTGRES_PASSWORD": 'it\'s "quoted"'}
    where = {"PGHOST": "127.0.0.1", "PGPORT": _port_of(database), "PATH": f"{postgres_programs()}:{os.environ['PATH']}"}
    _run([str(CHECKOUT / "docker" / "databases.sh")], {**os.environ, **where, **passwords}, CHECKOUT)


def _run(command: list[str], environment: Mapping[str, str], folder: Path) -> str:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _rows(deployment: Deployment, query: str, *values: str) -> list[Any]:
    """From Dagster's database, as its role."""
    address = deployment.database.replace("//postgres@", "//dagster@").replace("/postgres", "/dagster")
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute(query, values)
        return list(cursor.fetchall())


@pytest.fixture(scope="module")
def run_id(deployment: Deployment) -> str:
    """A run of two assets, asked for as the web UI does."""
    assets = [{"path": [name]} for name in ("raw_corpus", "reference_scenes")]
    answer = ask(deployment.dagster, LAUNCH, job="prune", assets=assets)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


def test_a_run_goes_through_the_queue_the_daemon_and_the_code_location_into_postgresql(
    deployment: Deployment, run_id: str
) -> None:
    assert status_when_done(deployment.dagster, run_id) == "SUCCESS"
    events = [
        kind for (kind,) in _rows(deployment, "SELECT dagster_event_type FROM event_logs WHERE run_id = %s", run_id)
    ]
    assert events.count("ASSET_MATERIALIZATION") == 2
    assert {"PIPELINE_ENQUEUED", "PIPELINE_STARTING", "PIPELINE_SUCCESS"} <= {*events}
    [(status,)] = _rows(deployment, "SELECT status FROM runs WHERE run_id = %s", run_id)
    assert status == "SUCCESS"


def test_the_daemon_is_healthy(deployment: Deployment) -> None:
    daemons = ask(deployment.dagster, DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
    needed = {each["daemonType"]: each["healthy"] for each in daemons if each["required"]}
    assert {"QUEUED_RUN_COORDINATOR", "SCHEDULER", "SENSOR", "ASSET", "MONITORING"} <= {*needed}
    assert all(needed.values()), needed


def test_it_is_versioned_and_mlflow_has_it_with_a_link_for_browsers(deployment: Deployment, run_id: str) -> None:
    assert status_when_done(deployment.dagster, run_id) == "SUCCESS"
    told = metadata(deployment.dagster, "raw_corpus")
    assert told["DVC"] == "recorded in dvc.lock"
    assert "raw_corpus" in yaml.safe_load((deployment.project.root / "dvc.lock").read_text())["stages"]
    assert str(told["MLflow"]).startswith(f"{deployment.mlflow}/#/experiments")
    ends = time.monotonic() + PATIENCE_S
    while not (keys := s3_keys(deployment.s3, "mlflow")) and time.monotonic() < ends:
        time.sleep(0.5)
    assert any("/lineage/" in key for key in keys)


def test_mlflow_answers_to_its_name_in_the_network_and_to_no_stranger_s(deployment: Deployment) -> None:
    port = deployment.mlflow.rpartition(":")[2]
    for host, status in ((f"mlflow:{port}", 200), (f"localhost:{port}", 200), ("elsewhere.example", 403)):
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
        connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
        assert connection.getresponse().status == status, host
        connection.close()


def test_the_files_of_the_deployment_are_not_written_to(deployment: Deployment, run_id: str) -> None:
    assert status_when_done(deployment.dagster, run_id) == "SUCCESS"
    assert deployment.project.run("git", "status", "--porcelain", "--ignored", "docker") == ""
    logs = deployment.project.root / ".state" / "deployment"
    assert [*logs.rglob("*.out")]
