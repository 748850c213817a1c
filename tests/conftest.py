"""Fixtures shared by all tests."""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

# before any library is loaded: a test process for each core, and idle threads that spin steal those of their neighbours
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")

import pytest
import rsprune_command
from needs import missing
from prune_runs import PLAN, RESULTS, SMALL_PLAN, Outcome, prune, settings

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


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Fills a folder by a function, once for all processes of the test run. Tests read it and never change it."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / f"once-{name}", root / f"once-{name}.done"
        with (root / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def synthetic(made_once: MadeOnce) -> Path:
    """A synthetic corpus of 300 tiles with its reference, held-out tiles and truth."""
    from rsprune_dagster.corpus.synthetic import write_corpus

    return made_once("synthetic", lambda folder: write_corpus(folder, PLAN))


@pytest.fixture(scope="session")
def small(made_once: MadeOnce) -> Path:
    """A synthetic corpus of 100 tiles, in every kind of container, with its reference."""
    from rsprune_dagster.corpus.synthetic import write_corpus

    return made_once("small", lambda folder: write_corpus(folder, SMALL_PLAN))


@pytest.fixture(scope="session")
def pruned(synthetic: Path, made_once: MadeOnce) -> Outcome:
    """The synthetic corpus, pruned with its reference."""
    params = settings(synthetic / "corpus", synthetic / "reference")
    return Outcome(made_once("pruned", lambda folder: prune(params, folder)))


@pytest.fixture(scope="session")
def commanded(synthetic: Path, made_once: MadeOnce) -> Path:
    """The --out of the same prune by `rsprune`, in a process of its own."""

    def fill(folder: Path) -> None:
        command = ["prune", synthetic / "corpus", "--reference", synthetic / "reference", "--out", folder]
        code, said = rsprune_command.run([*command, "--device", "cpu"], cwd=synthetic, environment=os.environ)
        assert code == 0, said
        assert "kept" in said and str(folder / RESULTS[0]) in said

    return made_once("commanded", fill)


LONGEST_FIRST = (
    *("identity", "versioning", "reprune", "daemon", "real", "readme", "deployment", "kill"),
    *("publishing", "recording", "mlflow_sync", "trainings", "checkpoint", "evaluation", "kinds"),
)
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
