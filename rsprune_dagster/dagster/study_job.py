"""The studies in the web UI: for each a job with a partition for each arm and seed, and an asset that the job fills.

"Materialize all" is to bring a checkout from the corpus to the report, not to train for hours on every arm: so the web
UI shows the studies without a button of their own. On the command line they are assets like others.
"""

from collections.abc import Sequence

import dagster as dg

from rsprune_dagster.config.layout import STUDIES
from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.assets.pruning_study import study_partitions
from rsprune_dagster.dagster.materialize import COMMAND, PROCESS
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_log import this_process
from rsprune_dagster.tracking.run_recorder import RunRecorder

ONE_AT_A_TIME = {"rsprune/study": "arm"}
"""A tag that dagster.yaml lets one run have at a time. The others wait in the queue."""


def with_external_studies(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The assets for the web UI; the studies are external assets, as only their jobs materialize them."""
    return [made.get_asset_spec() if _name(made) in STUDIES else made for made in assets]


def study_jobs(params: Params, assets: Sequence[dg.AssetsDefinition]) -> list[dg.JobDefinition]:
    """A job for each study: `study` for pruning_study, and those of downstream tasks."""
    return [_study_job(params, made) for made in assets if _name(made) in STUDIES]


def _study_job(params: Params, study: dg.AssetsDefinition) -> dg.JobDefinition:
    """A run trains one arm under one seed; a backfill of all partitions is the whole study."""
    name = _name(study)

    @dg.op(name=f"{name}_arm", out=dg.Out(dg.Nothing))  # the pool is the asset's: with both, each waits for the other
    @surface_user_errors()
    def train_and_measure_an_arm(
        context: dg.OpExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> None:
        """Train on the tiles of one arm under one seed, measure, and add the result to the study.

        The asset is materialized in a run of its own, which is tagged with this one's id.
        """
        run = dg.materialize(
            [study],
            partition_key=context.partition_key,
            instance=context.instance,
            resources={"store": store, "compute": compute, "recorder": recorder},
            tags={COMMAND: context.run_id, PROCESS: this_process()},
        )
        context.log.info(f"{context.partition_key}: done in run {run.run_id}")

    @dg.job(
        name="study" if name == "pruning_study" else f"study_{name.removesuffix('_study')}",
        partitions_def=study_partitions(params.study, name),
        description=study.descriptions_by_key[study.key],
        tags=ONE_AT_A_TIME,
    )
    def study_of_arms() -> None:
        train_and_measure_an_arm()

    return study_of_arms


def _name(made: dg.AssetsDefinition) -> str:
    return made.key.to_user_string()
