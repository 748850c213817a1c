"""pruning_report: one HTML page on what was kept and dropped, why, and whether the result is better."""

from typing import Any

import dagster as dg

from rsprune_dagster.config.layout import REPORT_HTML
from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "1"


def pruning_report_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="evaluation",
        kinds={"python", "html"},
        owners=["team:research"],
        code_version=CODE_VERSION,
        # pruning_study takes days: the report shows it if it exists, but does not depend on it
        deps=[
            "raw_corpus",
            "reference_scenes",
            "entropy_scores",
            "embeddings",
            "scene_clusters",
            "pruned_subset",
            "diffusion_checkpoint",
            "evaluation_metrics",
            "super_resolution_checkpoint",
            "semantic_synthesis_checkpoint",
        ],
        config_schema=schema(defaults.report),
    )
    @surface_user_errors()
    def pruning_report(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """One self-contained HTML page to share: the corpus, the kept tiles, and why the others were dropped.

        `report.html` needs no network and no other file; `report.json` has its numbers. The page says which parts
        (evaluation, study) have not been materialized yet.
        """
        from rsprune_dagster.stages.pruning_report import write_report
        from rsprune_dagster.tracking.report_origins import origins_of
        from rsprune_dagster.viz.pictures import report_pictures

        layout = store.open()
        recorded: dict[str, Any] = {
            "report": run_params(context),
            "clustering": defaults.clustering,
            "compute": compute.for_record(),
        }
        with recorder.record_asset(context, layout, recorded) as made:
            params = validated_params(context, defaults.report, defaults)
            origins = origins_of(layout)
            with made.replace() as draft:
                report = write_report(draft, origins, params, clustering=defaults.clustering, seed=compute.seed)
            page = {"page": dg.MetadataValue.path(layout.folder("pruning_report") / REPORT_HTML)}
            return result(made, {**report.figures(), **page}, report_pictures(layout), tables=())

    return pruning_report
