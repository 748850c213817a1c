"""reference_scenes: the labelled scene set."""

from dataclasses import asdict

import dagster as dg

from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.image_sources import named_sources, scanner
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "1"


def reference_scenes_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="corpus",
        kinds={"python", "parquet"},
        owners=["team:data"],
        code_version=CODE_VERSION,
        config_schema=schema(defaults.reference),
    )
    @surface_user_errors()
    def reference_scenes(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """The labelled scene set, the reference of the method: a manifest like that of the corpus, with labels.

        It calibrates the entropy threshold, defines the strata and measures the clustering quality. It is optional:
        without a reference the corpus is one stratum.
        """
        from rsprune_dagster.stages.reference_scenes import scan_reference
        from rsprune_dagster.viz.pictures import reference_pictures

        layout = store.open()
        with recorder.record_asset(
            context, layout, {"reference": run_params(context), "corpus": defaults.corpus}
        ) as made:
            params = validated_params(context, defaults.reference)
            sources = named_sources(
                params.sources, layout, part="reference", home=made.project_root, progress=compute.progress(context)
            )
            reader = scanner(context, layout, compute, defaults.corpus, made.project_root)
            with made.replace() as draft:
                report = scan_reference(sources, draft.folder("reference_scenes"), reader)
                pictures = reference_pictures(draft)
            return result(made, asdict(report), pictures, tables=[layout.file("reference")])

    return reference_scenes
