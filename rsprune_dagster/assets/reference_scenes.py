"""reference_scenes: the labelled scene set."""

from dataclasses import asdict

import dagster as dg

from rsprune_dagster.assets.config import in_effect, schema
from rsprune_dagster.assets.wiring import named_sources, result, scanner
from rsprune_dagster.params import Params, ReferenceParams
from rsprune_dagster.resources.settings import Compute, Store

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
    def reference_scenes(
        context: dg.AssetExecutionContext, store: Store, compute: Compute
    ) -> dg.MaterializeResult[None]:
        """The labelled scene set that tells the method what scenes there are: a manifest like the corpus', with labels.

        It calibrates the entropy threshold, gives the strata, and measures the clustering. None is needed: without a
        reference the whole corpus is one stratum.
        """
        from rsprune_dagster.pruning.steps.scan import scan, without_tiles
        from rsprune_dagster.report.galleries import reference_pictures

        assets = store.open()
        sources = named_sources(in_effect(context, ReferenceParams).sources, assets, part="reference")
        reader = scanner(context, assets, compute, defaults.corpus)
        with assets.replace("reference_scenes") as folder:
            if sources:
                report = scan(sources, folder, reader, labelled=True, label="reference_scenes")
            else:
                report = without_tiles(folder)
        return result(assets, "reference_scenes", asdict(report), reference_pictures(assets.folder("reference_scenes")))

    return reference_scenes
