"""Real servers on 127.0.0.1 for the tests: MLflow, PostgreSQL, S3; each on a free port, in a session of its own.

A server is killed with its process group when the block ends, and its log is shown when it does not start.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from needs import missing

START_S = 600
"""How long a server may take to start: seconds, unless the machine is busy."""


@contextmanager
def mlflow_server(
    folder: Path, backend_uri: str = "", artifacts: str = "", *, port: int = 0, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """An MLflow server that hands artifacts on to where they lie; yields its address.

    Args:
        folder: for the log, and for the store and artifacts where these are not given.
        env: added to the environment, such as the S3 server's (`s3_environment`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "-w", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", backend_uri or f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", artifacts or str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    whole = {**os.environ, **quiet, **(env or {})}
    url = f"http://127.0.0.1:{port}"
    with served(command, folder / "mlflow.log", lambda: answers(f"{url}/health"), env=whole):
        yield url


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A new PostgreSQL cluster; yields the address of its one database. As root it runs as the user postgres."""
    programs = postgres_programs()
    folder.mkdir(parents=True, exist_ok=True)
    # the user postgres may not enter pytest's folders
    cluster = Path(tempfile.mkdtemp(prefix="rsprune-postgres-"))
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    port = free_port()
    try:
        if as_user:
            shutil.chown(cluster, "postgres", "postgres")
        new = [*as_user, str(programs / "initdb"), "-D", str(cluster / "data"), "-U", "postgres", "-A", "trust", "-N"]
        subprocess.run(new, check=True, capture_output=True, cwd=cluster)
        command = [*as_user, str(programs / "postgres"), "-D", str(cluster / "data"), "-k", str(cluster)]
        command += ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        is_ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        with served(command, folder / "postgres.log", lambda: succeeds(is_ready), cwd=cluster, end=signal.SIGINT):
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(cluster, ignore_errors=True)


@contextmanager
def s3_server(folder: Path, *buckets: str, port: int = 0) -> Iterator[str]:
    """An S3 server that forgets all when it ends; yields its address. `s3_environment` tells clients of it."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    with served(command, folder / "s3.log", lambda: answers(f"{url}/moto-api/")):
        for bucket in buckets:
            _s3(url).create_bucket(Bucket=bucket)
        yield url


def s3_environment(url: str) -> dict[str, str]:
    """What boto3, s3fs, DVC and MLflow have to be told to use the S3 server at `url`."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "MLFLOW_S3_ENDPOINT_URL": url,
    }


def s3_keys(url: str, bucket: str) -> list[str]:
    """The names of all objects of a bucket."""
    pages = _s3(url).get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def _s3(url: str):  # type: ignore[no-untyped-def]  # boto3 has no types
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=url, **keys)


@contextmanager
def served(
    command: Sequence[str],
    log: Path,
    is_ready: Callable[[], bool],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    end: signal.Signals = signal.SIGKILL,
) -> Iterator[None]:
    """A server while the block lasts, from when it is ready; its output goes to `log`.

    Args:
        env: the environment, where it is not this process's.
        end: what ends it. Dagster's and MLflow's servers take 10 to 25 s to end when they are asked politely.
    """
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=env,
            cwd=cwd or log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(server, log, is_ready)
        yield
    finally:
        _end(server, end)


def _wait(server: subprocess.Popen[bytes], log: Path, is_ready: Callable[[], bool]) -> None:
    ends = time.monotonic() + START_S
    while not is_ready():
        if server.poll() is not None or time.monotonic() > ends:
            how = "took too long to start" if server.returncode is None else f"ended with {server.returncode}"
            pytest.fail(f"{' '.join(map(str, server.args))} {how}:\n{log.read_text()[-4000:]}")  # type: ignore[arg-type]
        time.sleep(0.1)


def _end(server: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End the server and what it started, which is in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, how)
    with suppress(subprocess.TimeoutExpired):
        server.wait(timeout=60)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def answers(url: str) -> bool:
    """Whether anything but an error comes back."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def succeeds(command: Sequence[str], env: Mapping[str, str] | None = None) -> bool:
    """Whether a command ends with 0."""
    return subprocess.run(command, check=False, capture_output=True, env=env).returncode == 0


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs. Where there is none the test is skipped, loudly; under CI it fails."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = installed[-1] if installed else shutil.which("initdb")
    if not found:
        missing("no PostgreSQL here (Debian: apt-get install postgresql): this test did not run")
    return Path(found).parent
