"""What starts by itself once `automation.enabled` is true: the weekly refresh, the look for new tiles, what follows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import dagster as dg

from rsprune_dagster.config.params import AutomationParams, Params
from rsprune_dagster.corpus.fingerprint import Fingerprint, fingerprint_of
from rsprune_dagster.dagster.image_sources import watched_sources
from rsprune_dagster.dagster.jobs import prune
from rsprune_dagster.dagster.resources import Store
from rsprune_dagster.tracking.asset_history import AssetHistory
from rsprune_dagster.tracking.run_recorder import RunRecorder

BUSY: Final = "the job prune still runs"
IN_PROGRESS: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class NewTilesCursor:
    """The cursor of the sensor: the last listing, the listing of the last requested run, and the number of requests."""

    seen: str = ""
    asked: str = ""
    n_asked: int = 0

    @classmethod
    def parse(cls, cursor: str | None) -> "NewTilesCursor":
        """From Dagster's cursor; the first look where there is none, or one of an older form."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (ValueError, TypeError):
            return cls()

    def next(self, now: Fingerprint, scanned: Mapping[str, Any]) -> tuple["NewTilesCursor", str, str]:
        """The memory after this look, the key of the run to start or empty, and why.

        Args:
            scanned: the listing that the corpus was last scanned from; empty: never.
        """
        remembered = NewTilesCursor(now.fingerprint, self.asked, self.n_asked)
        if now.fingerprint == scanned.get("fingerprint"):
            return remembered, "", f"{now.n_files:,} files, as when the corpus was last scanned"
        if now.fingerprint == self.asked:
            return remembered, "", "a run was started for these files; the weekly refresh tries again"
        if now.fingerprint != self.seen:
            return remembered, "", f"{now.n_files:,} files, not those that were scanned: waiting until they stand still"
        asking = NewTilesCursor(now.fingerprint, now.fingerprint, self.n_asked + 1)
        return asking, f"{asking.n_asked}-{now.fingerprint}", change_summary(now, scanned)


def change_summary(now: Fingerprint, scanned: Mapping[str, Any]) -> str:
    """What changed, for the run's tag."""
    before = scanned.get("n_files")
    return f"{now.n_files:,} files" + ("" if before is None else f", {before:,} when the corpus was last scanned")


def weekly_refresh(params: AutomationParams) -> dg.ScheduleDefinition:
    """Prune on a schedule; only new tiles are computed, all others come from the cache."""

    @dg.schedule(
        name="weekly_refresh",
        job=prune,
        cron_schedule=params.schedule,
        execution_timezone=params.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING if params.enabled else dg.DefaultScheduleStatus.STOPPED,
        description="Prunes what the sources hold now. Trainings follow where the subset changed and is sound.",
    )
    def refresh(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return dg.SkipReason(BUSY) if is_pruning(context.instance) else dg.RunRequest()

    return refresh


def is_pruning(instance: dg.DagsterInstance) -> bool:
    """Whether a run of the job prune waits or runs: a second one beside it would do the same work again."""
    unfinished = dg.RunsFilter(job_name=prune.name, statuses=IN_PROGRESS)
    return bool(instance.get_run_records(unfinished, limit=1))


def new_tiles(params: Params) -> dg.SensorDefinition:
    """Find new, changed and missing files by listing the sources; no tile is read."""

    @dg.sensor(
        name="new_tiles",
        job=prune,
        minimum_interval_seconds=params.automation.look_every_s,
        default_status=sensor_status(params.automation),
        description="Starts the job `prune` when the sources changed and two listings in a row agree.",
    )
    def look(context: dg.SensorEvaluationContext, store: Store, recorder: RunRecorder) -> dg.SensorResult:
        sources = watched_sources(params.corpus.sources, Path(recorder.project) if recorder.project else None)
        if not sources:
            return dg.SensorResult(skip_reason=dg.SkipReason("the synthetic corpus gets no new tiles"))
        if is_pruning(context.instance):
            return dg.SensorResult(skip_reason=dg.SkipReason(BUSY), cursor=context.cursor)
        scanned = AssetHistory.of(recorder, store.open()).listing()
        memory, key, why = NewTilesCursor.parse(context.cursor).next(fingerprint_of(sources), scanned)
        cursor = json.dumps(asdict(memory))
        if not key:
            return dg.SensorResult(skip_reason=dg.SkipReason(why), cursor=cursor)
        return dg.SensorResult([dg.RunRequest(run_key=key, tags={"rsprune/new_tiles": why})], cursor=cursor)

    return look


def follow_up(params: AutomationParams) -> dg.AutomationConditionSensorDefinition:
    """Makes what follows from a changed asset, as `conditions.py` says of each."""
    return dg.AutomationConditionSensorDefinition(
        name="follow_up",
        target=dg.AssetSelection.all(),
        default_status=sensor_status(params),
        minimum_interval_seconds=min(30, params.look_every_s),
        description="Makes what follows from a changed asset whose blocking checks passed.",
    )


def sensor_status(params: AutomationParams) -> dg.DefaultSensorStatus:
    """Running only where params.yaml turns automation on."""
    return dg.DefaultSensorStatus.RUNNING if params.enabled else dg.DefaultSensorStatus.STOPPED
