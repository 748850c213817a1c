"""Where the history of versions is recorded, for a project and for the folder of a `rsprune prune`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rsprune_dagster.config.layout import ASSETS, WORK, Layout
from rsprune_dagster.config.params import load
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.dvc_lock import DvcProject
from rsprune_dagster.tracking.run_log import Record, RunLog
from rsprune_dagster.utils.errors import UsageError


@dataclass(frozen=True)
class RemoteRecords:
    """Records that are not on this disk. A server that does not answer is asked once, not once a version."""

    ask: Callable[..., list[Record] | None] = lambda **_: None
    """Takes what `records` takes; None where there is no store."""
    trouble: list[str] = field(default_factory=list)
    """Why it did not answer."""

    def records(self, *, data_version: str = "", run_id: str = "", asset: str = "") -> list[Record] | None:
        """The records it holds, by the beginning of a hash or run, and by asset; None: no store, or no answer."""
        if self.trouble:
            return None
        try:
            return self.ask(data_version=data_version, run_id=run_id, asset=asset)
        except Exception as error:  # whatever a store that is down raises: the answer then comes without it
            self.trouble.append(" ".join(str(error).split())[:200] or type(error).__name__)
            return None


@dataclass(frozen=True)
class Places:
    """The records of one pipeline; what is not at hand is None."""

    layout: Layout
    project: DvcProject | None = None
    cache: DvcCache | None = None
    dagster_home: Path | None = None
    elsewhere: RemoteRecords = field(default_factory=RemoteRecords)

    @classmethod
    def of_project(cls, root: Path) -> "Places":
        """A project: its assets, its run log, and DVC, Dagster and MLflow where they are set up."""
        project, layout = DvcProject(root), Layout.of_project(root)
        versioned = project.exists()
        home = Path(os.environ.get("DAGSTER_HOME") or layout.dagster_home)
        return cls(
            layout,
            project=project if versioned else None,
            cache=DvcCache.of(root) if versioned else None,
            dagster_home=home if home.is_dir() else None,
            elsewhere=RemoteRecords(lambda **asked: _records_in_mlflow(root, **asked)),
        )

    @classmethod
    def of_out(cls, out: Path) -> "Places":
        """The folder that a `rsprune prune --out` wrote.

        Raises:
            UsageError: it is none.
        """
        layout = Layout.of_out(out)
        if not layout.assets.is_dir():
            raise UsageError(f"{out} holds no {WORK}/{ASSETS}: give the folder that a `rsprune prune --out` wrote")
        return cls(layout)

    @property
    def run_log(self) -> RunLog:
        return RunLog(self.layout.run_log)

    @property
    def versions(self) -> DvcCache:
        """DVC's cache.

        Raises:
            UsageError: there is none.
        """
        if self.cache is None:
            raise UsageError(
                f"{self.layout.assets.parent} is no DVC project, and only those keep versions: "
                "run it in the folder of dvc.yaml, or give folders that a `rsprune prune --out` wrote"
            )
        return self.cache


def _records_in_mlflow(root: Path, **asked: str) -> list[Record] | None:
    """MLflow's records of a project. A SQLite store that is not there yet is not made by asking it."""
    from rsprune_dagster.tracking.mlflow_runs import records_in, sqlite_file
    from rsprune_dagster.tracking.run_recorder import project_recorder

    recorder = project_recorder(root, load(root / "params.yaml").tracking)
    database = sqlite_file(recorder.tracking_uri) if recorder.tracking_uri else None
    if not recorder.tracking_uri or (database is not None and not database.exists()):
        return None
    return records_in(recorder.tracking_uri, recorder.experiment, **asked)
