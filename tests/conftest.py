"""Fixtures shared by all tests."""

import shutil
import sys
from pathlib import Path

import pytest
from needs import missing

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real imagery beside the checkout. Where it is absent the test is skipped, loudly; under CI that is a failure."""
    if not SHARED_DATA.is_dir():
        missing(f"real imagery is not at {SHARED_DATA}: this test did not run")
    return SHARED_DATA


@pytest.fixture(scope="session")
def dvc() -> str:
    """DVC's command, from its own environment beside this one, as `make setup` builds it."""
    command = Path(sys.prefix).with_name(".venv-dvc") / "bin" / "dvc"
    if not command.is_file():
        missing(f"no DVC at {command}: `make setup` installs it; versioning was not tested against it")
    return str(command)


LONGEST_FIRST = ("versioning", "identity", "reprune", "real", "kill", "daemon", "readme", "mlflow_courier", "recording")
"""Files of slow tests by their seconds: they are handed out one by one, and a long one at the end has no neighbour."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first. The tests of a file keep their order."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_configure() -> None:
    """Compiled kernels take seconds on their first call: no example has a deadline."""
    from hypothesis import settings

    settings.register_profile("rsprune", deadline=None)
    settings.load_profile("rsprune")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables: they take seconds to make, so the tests copy it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    """The address of an empty MLflow store."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
