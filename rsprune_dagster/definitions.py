"""The one Definitions object: what Dagster loads."""

import dagster as dg

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params, load, project_root
from rsprune_dagster.dagster.asset_checks import build_checks
from rsprune_dagster.dagster.assets import build_assets
from rsprune_dagster.dagster.automation_conditions import with_conditions
from rsprune_dagster.dagster.jobs import JOBS
from rsprune_dagster.dagster.query_jobs import QUERY_JOBS
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.sensors import follow_up, new_tiles, weekly_refresh
from rsprune_dagster.dagster.study_job import study_jobs, with_external_studies
from rsprune_dagster.dagster.webhook import tell_failure
from rsprune_dagster.tracking.run_recorder import RunRecorder, project_recorder


def build_defs(params: Params, layout: Layout, *, recorder: RunRecorder, progress_on: str = "log") -> dg.Definitions:
    """Build the definitions over an asset folder; tests pass their own."""
    assets = with_conditions(build_assets(params), params.automation)
    return dg.Definitions(
        assets=with_external_studies(assets),
        asset_checks=build_checks(params, assets),
        jobs=[*JOBS, *QUERY_JOBS, *study_jobs(params, assets)],
        schedules=[weekly_refresh(params.automation)],
        sensors=[new_tiles(params), follow_up(params.automation), tell_failure(params.automation)],
        # A step uses all cores by itself: two at a time would be no faster and take twice the memory.
        executor=dg.in_process_executor,
        resources={
            "store": Store.of(layout),
            "compute": Compute(progress_on=progress_on, **params.compute.model_dump()),
            "recorder": recorder,
        },
    )


def _project_defs() -> dg.Definitions:
    project = project_root()
    params = load(project / "params.yaml")
    return build_defs(params, Layout.of_project(project), recorder=project_recorder(project, params.tracking))


defs = _project_defs()
