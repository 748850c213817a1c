"""entropy_scores: stage 1 of RS-Prune."""

from dataclasses import asdict

import dagster as dg

from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "2"


def entropy_scores_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="pruning",
        kinds={"python", "duckdb"},
        owners=["team:data"],
        code_version=CODE_VERSION,
        deps=["raw_corpus", "reference_scenes"],
        config_schema=schema(defaults.entropy),
    )
    @surface_user_errors()
    def entropy_scores(
        context: dg.AssetExecutionContext, store: Store, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """Shannon entropy of each tile's grey levels, in bits, and whether it reaches the threshold.

        Blank, constant and nodata tiles are dropped. The threshold is calibrated on the reference, so that none of its
        scenes is erased.
        """
        from rsprune_dagster.stages.entropy_scores import score
        from rsprune_dagster.viz.pictures import entropy_pictures

        layout = store.open()
        with recorder.record_asset(context, layout, {"entropy": run_params(context)}) as made:
            params = validated_params(context, defaults.entropy, defaults)
            with made.replace() as draft:
                report = score(draft, params)
                pictures = entropy_pictures(draft)
            context.log.info("threshold %.2f bits: %s", report.threshold_bits, report.threshold_origin)
            return result(made, asdict(report), pictures, tables=[layout.file("scores")])

    return entropy_scores
