"""Records what each materialization was made from: in the run log, then in dvc.lock; MLflow is a view of it."""

import math
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr

from rsprune_dagster.config.layout import ASSETS, MLFLOW_DB, Layout
from rsprune_dagster.config.params import NO_TRACKING, Section, TrackingParams, flat, load
from rsprune_dagster.tracking.asset_store import replaced
from rsprune_dagster.tracking.content import Tree, tree_of
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.dvc_lock import DvcProject, outs, version_in
from rsprune_dagster.tracking.git import head
from rsprune_dagster.tracking.recovery import import_versions, recover
from rsprune_dagster.tracking.run_log import Record, RunLog, this_process
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.utils.terminal import warn

_SYNC_EVERY_S = 60.0
"""Seconds between syncs with MLflow while a run goes on; each costs some 4 s of a core."""


class RunRecorder(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The run log, and where versions and records go from there."""

    run_log: str = Field(description="Folder of the run log")
    project: str = Field(default="", description="A DVC project whose assets are materialized; empty: no versioning")
    tracking_uri: str = Field(default="", description="MLflow's store or server; empty: records stay in the run log")
    experiment: str = Field(default="rsprune", description="MLflow's experiment")
    say_on: str = Field(
        default="log", description="Where waiting and recovery are reported: log (the run's log only) or terminal"
    )
    _has_recorded: bool = PrivateAttr(default=False)
    _next_sync_at: float | None = PrivateAttr(default=None)

    @contextmanager
    def record_asset(
        self, context: dg.AssetExecutionContext, layout: Layout, params: Mapping[str, Section | Mapping[str, Any]]
    ) -> "Iterator[AssetRecorder]":
        """Record the block: what it reads, what it makes, and how it ends.

        Args:
            params: in effect, by section of params.yaml: `{"selection": params, "compute": {"seed": 0}}`.

        Raises:
            RunError: an upstream asset has not been materialized.
        """
        project = self.project_of(layout)
        made = AssetRecorder(context, layout, RunLog(Path(self.run_log)), project, self)
        recover(made.run_log, layout, project, context.instance, say=lambda told: self.say(context, told))
        self._has_recorded = True
        made.begin(flat({name: _plain(values) for name, values in params.items()}))
        try:
            made.record_inputs()
            yield made
        except BaseException as error:
            made.fail(error)
            raise

    def records_of(self, run_id: str) -> list[Record]:
        """What a run recorded, in the order of its steps."""
        return [record for record in RunLog(Path(self.run_log)).records() if record.run_id == run_id]

    def pending_in_mlflow(self, run_id: str, *, timeout_s: float) -> str:
        """Wait for MLflow to have all of a run; what to tell the user where it does not, else empty."""
        if not self.tracking_uri:
            return ""
        from rsprune_dagster.tracking.mlflow_sync import wait_for_sync

        run_log = RunLog(Path(self.run_log))
        last = wait_for_sync(run_log, self.tracking_uri, self.experiment, run_id, timeout_s)
        if not last.n_pending:
            return ""
        reason = last.error or f"MLflow has not taken them within {timeout_s:.0f} s"
        wait = "1 record waits" if last.n_pending == 1 else f"{last.n_pending} records wait"
        return f"{wait} in {run_log.root} for the next run: {reason}"

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Copy to MLflow what this run recorded. Dagster calls it once at a run's end, or once for a process's step."""
        if self._has_recorded and context.run:
            RunLog(Path(self.run_log)).end_run(context.run.run_id)
            if self.tracking_uri:
                self._start_sync(context.log)

    def sync_while_running(self, context: dg.AssetExecutionContext) -> None:
        """Show in MLflow that an asset has begun: with a run's first asset, then once a minute at most.

        An asset that begins within the minute is shown at its end, so a long training is not missing for hours.
        """
        now = time.monotonic()
        wait_s = max(0.0, (self._next_sync_at or now) - now)
        if not self.tracking_uri or wait_s > _SYNC_EVERY_S:  # the sync of the minute's end is on its way
            return
        from rsprune_dagster.tracking.mlflow_sync import last_sync

        if error := last_sync(RunLog(Path(self.run_log))).error:
            context.log.warning(f"{error}: records wait in {self.run_log} and are copied by a later sync")
        self._start_sync(context.log, wait_s)
        self._next_sync_at = now + wait_s + _SYNC_EVERY_S

    def _start_sync(self, log: "dg.DagsterLogManager | None", wait_s: float = 0.0) -> None:
        """Start a sync. What prevents it is a warning: the asset matters more, and the records wait."""
        from rsprune_dagster.tracking.mlflow_sync import start_sync

        project = Path(self.project) if self.project else None
        try:
            start_sync(RunLog(Path(self.run_log)), self.tracking_uri, self.experiment, project, wait_s=wait_s)
        except (OSError, subprocess.SubprocessError) as error:
            if log:
                log.warning(f"nothing is copied to MLflow now ({error}): records wait in {self.run_log}")

    def say(self, context: dg.AssetExecutionContext, told: str) -> None:
        """Tell the run's log, and a terminal that shows no log."""
        context.log.warning(told)
        if self.say_on == "terminal":
            warn(told)

    def project_of(self, layout: Layout) -> DvcProject | None:
        """The project whose dvc.yaml names these assets; None where they are of no project."""
        project = DvcProject(Path(self.project))
        ours = bool(self.project) and project.exists() and layout.assets == project.root / ASSETS
        return project if ours else None


def project_recorder(project: Path, tracking: TrackingParams, *, say_on: str = "log") -> RunRecorder:
    """The run log of a project, its versions, and MLflow: MLFLOW_TRACKING_URI, else params.yaml, else SQLite."""
    layout = Layout.of_project(project)
    uri = tracking.uri_in_effect or f"sqlite:///{layout.state / MLFLOW_DB}"
    return RunRecorder(
        run_log=str(layout.run_log),
        project=str(project),
        say_on=say_on,
        tracking_uri="" if uri == NO_TRACKING else uri,
        experiment=tracking.experiment,
    )


def folder_recorder(layout: Layout, tracking: TrackingParams) -> RunRecorder:
    """The run log beside a prune's results; MLflow only where one was named."""
    uri = tracking.uri_in_effect
    return RunRecorder(
        run_log=str(layout.run_log),
        tracking_uri="" if uri == NO_TRACKING else uri,
        experiment=tracking.experiment,
    )


@dataclass(frozen=True)
class AssetRecorder:
    """One asset being made in one run."""

    context: dg.AssetExecutionContext
    layout: Layout
    run_log: RunLog
    project: DvcProject | None
    recorder: RunRecorder

    @property
    def asset(self) -> str:
        return str(self.context.asset_key.to_user_string())

    @property
    def project_root(self) -> Path | None:
        """The folder of the project that this asset belongs to; None outside a project."""
        return self.project.root if self.project else None

    @property
    def record(self) -> Record:
        """As the run log has it now."""
        record = self.run_log.read(self.context.run.run_id, self.asset)
        assert record is not None, "begin() writes it"
        return record

    def begin(self, params: Mapping[str, Any]) -> None:
        """Write the record before anything is read."""
        commit = head(self.project.root if self.project else Path(__file__).parent)
        self.run_log.write(
            Record(
                run_id=self.context.run.run_id,
                asset=self.asset,
                status="RUNNING",
                started_at=time.time(),
                process=this_process(),
                attempt=self.context.retry_number + 1,
                code_version=self.context.assets_def.code_versions_by_key[self.context.asset_key] or "",
                git_commit=commit.sha,
                git_dirty=commit.dirty,
                params=params,
                departures=self._departures(params),
            )
        )
        self.recorder.sync_while_running(self.context)

    def record_inputs(self) -> None:
        """Record the current versions of the inputs, before the asset is made: later changes do not count.

        Raises:
            RunError: an upstream asset has not been materialized, or dvc.lock cannot be read.
        """
        if self.project:
            self.project.lock()  # a damaged dvc.lock is reported before the work, not after it
        trees = self.inputs()
        inputs = {name: tree.digest for name, tree in trees.items()}
        import_versions(inputs, self.context.instance, self.run_log)
        has_stage = self.project is not None and self.asset in self.project.stages()
        stage = self.project.stage_entry(self.asset, trees) if self.project and has_stage else {}
        self.run_log.write(replace(self.record, inputs=inputs, stage=stage))

    def inputs(self) -> dict[str, Tree]:
        """The upstream assets as they lie there now."""
        deps = self.context.assets_def.get_asset_spec(self.context.asset_key).deps
        names = [dep.asset_key.to_user_string() for dep in deps]
        return {name: tree_of(self.layout.folder(name), memory=self.run_log.memory(name)) for name in names}

    def present(self) -> str:
        """The hash of the asset's version that lies there now; to be asked where there is one."""
        return tree_of(self.layout.folder(self.asset), memory=self.run_log.memory(self.asset)).digest

    @contextmanager
    def replace(self) -> Iterator[Layout]:
        """The layout with an empty draft of the asset, which becomes its new version, as `replaced`."""
        with replaced(self.layout, self.asset, before=self._written) as folder:
            yield self.layout.with_draft(self.asset, folder)

    def finish(
        self,
        figures: Mapping[str, Any],
        pictures: Mapping[str, bytes | str],
        facts: Mapping[str, Any] | None = None,
        *,
        verdict: Mapping[str, Any] | None = None,
    ) -> Record:
        """Record the new version: in dvc.lock where it is the one that params.yaml asks for, and in the run log.

        Args:
            facts: plain JSON that later versions are compared with.
            verdict: of an evaluation: which checkpoint is the champion.
        """
        record = self.record
        for title, picture in pictures.items():
            self.run_log.add_picture(record, title, picture)
        note = self._why_not_versioned(record) or self._record_in_dvc(record)
        ended = replace(
            record,
            status="FINISHED",
            ended_at=time.time(),
            metrics=_numbers(figures),
            facts=dict(facts or {}),
            versioned=not note,
            versioned_note=note,
            dvc_lock_md5=self.project.lock_md5() if self.project else "",
            verdict=verdict or {},
        )
        self.run_log.write(ended)
        if note and self.project:
            self.context.log.warning(
                f"{self.asset} {record.data_version} is kept, but not recorded in dvc.lock: {note}"
            )
        return ended

    def fail(self, error: BaseException) -> None:
        """Record a failure, or the end of a run that was cancelled."""
        cancelled = isinstance(error, dg.DagsterExecutionInterruptedError | KeyboardInterrupt | SystemExit)
        record = replace(
            self.record,
            status="KILLED" if cancelled else "FAILED",
            ended_at=time.time(),
            message="cancelled" if cancelled else " ".join(str(error).split())[:2000],
        )
        self.run_log.write(record)

    def mlflow_link(self) -> str:
        """Where MLflow shows this materialization, or will once it is copied; empty where nothing is tracked."""
        if not self.recorder.tracking_uri:
            return ""
        from rsprune_dagster.tracking.mlflow_sync import run_link, search_link

        record = self.record
        return run_link(self.run_log, record) or search_link(
            self.run_log, record, self.recorder.tracking_uri, self.recorder.experiment
        )

    def _written(self, staging: Path) -> None:
        """The new version is whole and about to take its place: say so first, so that a kill in between can be told."""
        tree = tree_of(staging, memory=self.run_log.memory(self.asset))
        record = self.record
        stage = {**record.stage, "outs": outs(self.asset, tree)} if record.stage else {}
        self.run_log.write(
            replace(record, data_version=tree.digest, n_files=tree.n_files, size_bytes=tree.size_bytes, stage=stage)
        )
        if self.project:
            DvcCache.of(self.project.root).keep(staging, tree)

    def _record_in_dvc(self, record: Record) -> str:
        """Empty, or why dvc.lock could not be written."""
        assert self.project is not None
        try:
            self.project.record({self.asset: dict(record.stage)}, lambda told: self.recorder.say(self.context, told))
        except RunError as error:
            return str(error)
        return ""

    def _why_not_versioned(self, record: Record) -> str:
        if self.project is None:
            return "this is not the project's asset folder"
        if not record.stage:
            return f"dvc.yaml has no stage of it: `dvc add {ASSETS}/{self.asset}` versions it"
        if record.departures:
            return f"this run departs from params.yaml in {_names(record.departures)}"
        locked = self.project.lock()
        strange = [name for name, digest in record.inputs.items() if version_in(locked, name) != digest]
        if strange:
            return f"it was made from another version than dvc.lock holds of {_names(strange)}"
        moved = [name for name, tree in self.inputs().items() if tree.digest != record.inputs[name]]
        return f"{_names(moved)} changed while it was made: materialize it again" if moved else ""

    def _departures(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values in the current params.yaml of the parameters that this run changed."""
        if self.project is None:
            return {}
        asked = flat(load(self.project.root / "params.yaml").model_dump(mode="json"))
        return {name: asked.get(name) for name, value in params.items() if asked.get(name) != value}


def _plain(values: Section | Mapping[str, Any]) -> Mapping[str, Any]:
    return values.model_dump(mode="json") if isinstance(values, Section) else values


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _names(names: Any) -> str:
    return ", ".join(sorted(names))
