"""pruned_subset: the kept tiles, and the ledger of every decision."""

import dagster as dg

from rsprune_dagster.config.params import Params, SelectionParams
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.asset_history import KEPT_BY_SCENE, STRATA
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "2"


def _check(params: SelectionParams) -> None:
    """Raise UsageError for an unknown strategy."""
    from rsprune_dagster.pruning.strategies import check_strategy

    check_strategy(params.strategy)


def pruned_subset_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="pruning",
        kinds={"python", "parquet"},
        owners=["team:data"],
        code_version=CODE_VERSION,
        deps=["raw_corpus", "entropy_scores", "embeddings", "scene_clusters"],
        config_schema=schema(defaults.selection, _check),
    )
    @surface_user_errors()
    def pruned_subset(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """The tiles worth training on, best first, and the reason for every other tile.

        `pruned_subset.parquet` is an index from which a training loader reads the tiles in place. `decisions.parquet`
        has one row per tile of the corpus. `ranking.parquet` ranks all candidates: a smaller keep fraction is a prefix
        of a larger one.
        """
        from rsprune_dagster.pruning.checks.scene_coverage import kept_by_scene, strata_of
        from rsprune_dagster.stages.pruned_subset import select
        from rsprune_dagster.viz.pictures import subset_pictures

        layout = store.open()
        workers, progress = compute.n_workers(), compute.progress(context)
        with recorder.record_asset(
            context, layout, {"selection": run_params(context), "compute": compute.for_record()}
        ) as made:
            params = validated_params(context, defaults.selection, defaults)
            with made.replace() as draft:
                report = select(draft, params, seed=compute.seed, workers=workers, progress=progress)
                pictures = subset_pictures(draft)
            if report.shortfall():
                context.log.warning("%s", report.shortfall())
            facts = {KEPT_BY_SCENE: kept_by_scene(layout), STRATA: strata_of(layout)}
            tables = [layout.file(name) for name in ("subset", "decisions", "ranking")]
            return result(made, report.metadata(), pictures, tables=tables, facts=facts)

    return pruned_subset
