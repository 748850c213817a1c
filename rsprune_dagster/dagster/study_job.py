"""The study in the web UI: a job with a partition for each arm and seed, and pruning_study as an asset that it fills.

"Materialize all" is to bring a checkout from the corpus to the report, not to train for hours on every arm: so the web
UI shows pruning_study without a button of its own. On the command line it is an asset like others.
"""

from collections.abc import Sequence

import dagster as dg

from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.assets.pruning_study import study_partitions
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.materialize import COMMAND, PROCESS
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_log import this_process
from rsprune_dagster.tracking.run_recorder import RunRecorder

STUDY = "pruning_study"


def with_external_study(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The assets for the web UI; pruning_study is an external asset, as only the job `study` materializes it."""
    return [made.get_asset_spec() if _is_study(made) else made for made in assets]


def study_job(params: Params, assets: Sequence[dg.AssetsDefinition]) -> dg.JobDefinition:
    """The job `study`. A run trains one arm under one seed; a backfill of all partitions is the whole study."""
    study = next(made for made in assets if _is_study(made))

    @dg.op(pool=gpu_pool(), out=dg.Out(dg.Nothing))
    @surface_user_errors()
    def train_and_measure_an_arm(
        context: dg.OpExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> None:
        """Train on the tiles of one arm under one seed, measure, and add the result to pruning_study.

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
        name="study",
        partitions_def=study_partitions(params.study),
        description="Does pruning pay: train on each arm under each seed, a partition each, and compare. "
        "Arms, seeds and lengths are those of `study:` in params.yaml.",
    )
    def study_of_arms() -> None:
        train_and_measure_an_arm()

    return study_of_arms


def _is_study(made: dg.AssetsDefinition) -> bool:
    return made.key.to_user_string() == STUDY
