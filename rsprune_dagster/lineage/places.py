"""Where versions lie and where their history is told, for a project and for the folder of a `rsprune prune`."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rsprune_dagster.errors import UsageError
from rsprune_dagster.params import load
from rsprune_dagster.resources.dvc_cache import DvcCache
from rsprune_dagster.resources.dvc_lock import ASSETS, DvcProject
from rsprune_dagster.resources.journal import Journal, Record

WORK = ".rsprune"
"""Below the folder of a `rsprune prune`: its assets and its journal."""


class Ask(Protocol):
    """Records that a store holds, by what they are of; the hash and the run may be the beginning of one.

    None where there is no store.
    """

    def __call__(self, *, data_version: str = "", run_id: str = "", asset: str = "") -> list[Record] | None: ...


@dataclass(frozen=True)
class Elsewhere:
    """Records that are not on this disk. A server that does not answer is asked once, not once a version."""

    ask: Ask
    trouble: list[str] = field(default_factory=list)
    """Why it did not answer."""

    def records(self, *, data_version: str = "", run_id: str = "", asset: str = "") -> list[Record] | None:
        """What it holds; None where there is no store or it does not answer."""
        if self.trouble:
            return None
        try:
            return self.ask(data_version=data_version, run_id=run_id, asset=asset)
        except Exception as error:  # whatever a store that is down raises: the answer then comes without it
            self.trouble.append(" ".join(str(error).split())[:200] or type(error).__name__)
            return None


def no_store(*, data_version: str = "", run_id: str = "", asset: str = "") -> list[Record] | None:
    """What is held where there is no store."""
    return None


@dataclass(frozen=True)
class Places:
    """The folders of one pipeline; what is not at hand is None."""

    assets: Path
    journal: Journal
    project: DvcProject | None = None
    cache: DvcCache | None = None
    dagster_home: Path | None = None
    elsewhere: Elsewhere = field(default_factory=lambda: Elsewhere(no_store))

    @classmethod
    def of_project(cls, root: Path) -> "Places":
        """A project: its assets, its journal, and DVC, Dagster and MLflow where they are set up."""
        project = DvcProject(root)
        versioned = project.exists()
        return cls(
            assets=root / ASSETS,
            journal=Journal(root / ".state" / "lineage"),
            project=project if versioned else None,
            cache=DvcCache.of(root) if versioned else None,
            dagster_home=_dagster_home(root),
            elsewhere=Elsewhere(_mlflow(root)),
        )

    @classmethod
    def of_out(cls, out: Path) -> "Places":
        """The folder that a `rsprune prune --out` wrote.

        Raises:
            UsageError: it is none.
        """
        work = out / WORK
        if not (work / ASSETS).is_dir():
            raise UsageError(f"{out} holds no {WORK}/{ASSETS}: give the folder that a `rsprune prune --out` wrote")
        return cls(assets=work / ASSETS, journal=Journal(work / "lineage"))


def _dagster_home(root: Path) -> Path | None:
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named) if named else root / ".state" / "dagster"
    return home if home.is_dir() else None


def _mlflow(root: Path) -> Ask:
    """MLflow's records of a project. A SQLite store that is not there yet is not made by asking it."""

    def ask(*, data_version: str = "", run_id: str = "", asset: str = "") -> list[Record] | None:
        from rsprune_dagster.resources.lineage import project_lineage
        from rsprune_dagster.resources.mlflow_runs import records_in, sqlite_file

        lineage = project_lineage(root, load(root / "params.yaml").tracking)
        database = sqlite_file(lineage.tracking_uri) if lineage.tracking_uri else None
        if not lineage.tracking_uri or (database is not None and not database.exists()):
            return None
        return records_in(
            lineage.tracking_uri, lineage.experiment, data_version=data_version, run_id=run_id, asset=asset
        )

    return ask
