"""What docker/ holds: valid files, no secret with a default, nothing that listens for others or runs as root."""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from needs import missing

CHECKOUT = Path(__file__).resolve().parents[1]
DOCKER = CHECKOUT / "docker"
COMPOSE = (DOCKER / "compose.yaml", DOCKER / "compose.gpu.yaml")
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE[0].read_text())["services"]
ENDS_BY_ITSELF = "buckets"
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY")


def program(name: str) -> str:
    """One that comes from Debian. Without it the test is skipped, loudly; under CI that is a failure."""
    found = shutil.which(name)
    if not found:
        missing(f"no {name} here (Debian: apt-get install {name}): docker/ was not tested with it")
    return found


def run(*command: str | Path, cwd: Path = CHECKOUT) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    return subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that has docker/ alone, without secrets."""
    shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns(".env"))
    return tmp_path


def substitutions(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each place of a compose file that takes something from the environment, and how."""
    if isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from substitutions(each, f"{path}.{name}")
    elif isinstance(value, str):
        yield from ((path, found) for found in re.findall(r"\$\{([^}]*)\}", value))


def test_the_dockerfile_is_as_its_linter_wants_it() -> None:
    done = run(Path(sys.prefix, "bin", "hadolint"), DOCKER / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_image_holds_what_the_locks_hold_and_the_locks_agree() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert dockerfile.count("--require-hashes") == dockerfile.count("pip sync") == 2
    pins = [dict(re.findall(r"^([\w.-]+)==([^ ;]+)", (CHECKOUT / name).read_text(), re.MULTILINE)) for name in LOCKS]
    image, everything = pins
    assert {name: version for name, version in image.items() if everything.get(name) != version} == {}
    assert "boto3" in image and "dagster" in image and "pytest" not in image


LOCKS = ("requirements-image.lock", "requirements.lock")


def test_no_target_runs_as_root() -> None:
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    users: dict[str, str] = {}
    for stage in stages:
        base, name = re.match(r"(\S+) AS (\S+)", stage).groups()  # type: ignore[union-attr]
        users[name] = [users.get(base, "root"), *re.findall(r"^USER (\S+)", stage, re.MULTILINE)][-1]
    assert users == {"build": "root", "cpu": "10001:10001", "gpu": "10001:10001"}  # the first is thrown away


def test_the_builder_gets_only_what_is_copied() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    lines = re.findall(r"^COPY (?!--from)(.*)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert "*" in ignored
    assert sent == {name for line in lines for name in line.split()[:-1]}
    assert not [name for name in sent if not (CHECKOUT / name).exists()]


def test_the_compose_files_are_valid() -> None:
    done = run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_takes_them_with_secrets_and_says_what_to_do_without(checkout: Path) -> None:
    compose = program("docker-compose")
    files = [option for path in COMPOSE for option in ("-f", checkout / "docker" / path.name)]
    without = run(compose, *files, "config", "-q", cwd=checkout)
    assert without.returncode != 0 and "run docker/secrets.sh first" in without.stderr
    assert run(checkout / "docker" / "secrets.sh").returncode == 0
    for some in (files[:2], files):
        done = run(compose, *some, "config", cwd=checkout)
        assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["code"]["image"] == "rsprune-dagster:gpu" and services["code"]["build"]["target"] == "gpu"
    assert {name for name, each in services.items() if each["image"] == "rsprune-dagster:cpu"} == {
        "buckets",
        "mlflow",
        "webserver",
        "daemon",
    }


def test_secrets_are_long_unlike_each_other_private_and_never_overwritten(checkout: Path) -> None:
    script, file = checkout / "docker" / "secrets.sh", checkout / "docker" / ".env"
    assert run(script).returncode == 0
    text = file.read_text()
    values = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    secrets = [value for name, value in values.items() if SECRET.search(name)]
    assert len(secrets) == 5 == len({*secrets})
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in secrets)
    owner = (os.getuid() or 10001, os.getgid() if os.getuid() else 10001)
    assert (int(values["RSPRUNE_UID"]), int(values["RSPRUNE_GID"])) == owner  # never root
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = run(script)
    assert again.returncode == 1 and "left alone" in again.stderr
    assert file.read_text() == text


def test_git_sees_no_secrets() -> None:
    assert run("git", "check-ignore", "--quiet", "docker/.env").returncode == 0


def test_no_secret_has_a_default_and_each_is_made_by_the_script() -> None:
    made = set(re.findall(r"^(\w+)=", (DOCKER / "secrets.sh").read_text(), re.MULTILINE))
    taken = {found for _, found in substitutions(SERVICES)}
    needed = {each.removesuffix(":?run docker/secrets.sh first") for each in taken if ":?" in each}
    assert needed == made - {"here", "file", "owner"}
    assert not [each for each in taken if ":?" not in each and SECRET.search(each)]
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert value.startswith("${") and value.endswith(":?run docker/secrets.sh first}"), (name, variable)


def test_everything_listens_on_this_machine_alone() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert {*ports} == {"webserver", "mlflow"}
    assert all(port.startswith("127.0.0.1:") for each in ports.values() for port in each)
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]


def test_every_service_is_looked_after_and_hardened() -> None:
    assert {*SERVICES} == {"postgres", "store", "buckets", "mlflow", "code", "webserver", "daemon"}
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) == (name != ENDS_BY_ITSELF), name
        assert service["restart"] == ("no" if name == ENDS_BY_ITSELF else "unless-stopped"), name
        assert service["security_opt"] == ["no-new-privileges:true"] and service["cap_drop"] == ["ALL"], name
        if service["image"].startswith("rsprune-dagster"):
            assert service["read_only"] and "RSPRUNE_UID" in service["user"], name


def test_what_dvc_needs_where_the_root_is_read_only_and_the_user_unknown() -> None:
    """Seen in the image: without the first it stops at /var/tmp, without the second at a user without a name."""
    for name in ("code", "webserver", "daemon"):
        given = SERVICES[name]["environment"]
        assert given["DVC_SITE_CACHE_DIR"].startswith("/project/") and given["USER"], name


def test_services_wait_for_those_they_need() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            ends = needed == ENDS_BY_ITSELF
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy"), name


def test_images_of_others_have_a_version() -> None:
    bases = re.findall(r"^FROM (\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    images = [service["image"] for service in SERVICES.values()]
    others = [each for each in [*bases, *images] if not each.startswith("rsprune-dagster") and each != "cpu"]
    assert len(others) == 4
    assert all(re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", each) for each in others)


def test_dagster_runs_there_as_it_does_here() -> None:
    here, there = (yaml.safe_load((folder / "dagster.yaml").read_text()) for folder in (CHECKOUT, DOCKER))
    assert there["concurrency"]["runs"].pop("max_concurrent_runs") == 2
    assert {name: there[name] for name in here} == here
    locations = [yaml.safe_load((folder / "workspace.yaml").read_text())["load_from"] for folder in (CHECKOUT, DOCKER)]
    names = {next(iter(each.values()))["location_name"] for [each] in locations}
    assert names == {"rsprune_dagster"}


@pytest.mark.parametrize("file", ["dagster.yaml", "workspace.yaml"])
def test_what_the_files_ask_of_the_environment_compose_gives(file: str) -> None:
    asked = set(re.findall(r"\{ env: (\w+) \}", (DOCKER / file).read_text()))
    assert asked
    for name in ("code", "webserver", "daemon"):
        assert asked <= set(SERVICES[name]["environment"]), name
