"""scene_clusters: stage 2 of RS-Prune."""

import dagster as dg

from rsprune_dagster.assets.config import given, in_effect, schema
from rsprune_dagster.assets.failures import said_plainly
from rsprune_dagster.assets.wiring import result
from rsprune_dagster.params import Params
from rsprune_dagster.resources.lineage import Lineage
from rsprune_dagster.resources.settings import Compute, Store

CODE_VERSION = "1"


def scene_clusters_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="pruning",
        kinds={"python", "faiss"},
        owners=["team:data"],
        code_version=CODE_VERSION,
        deps=["embeddings"],
        config_schema=schema(defaults.clustering),
    )
    @said_plainly()
    def scene_clusters(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, lineage: Lineage
    ) -> dg.MaterializeResult[None]:
        """Scene, cluster and distance of each tile.

        The reference gives the scenes without any training; a sample with the same number of tiles from each scene
        trains the centroids, so rare scenes get their own; then every tile goes to its nearest one.
        """
        from rsprune_dagster.pruning.steps.cluster import cluster, figures
        from rsprune_dagster.report.galleries import cluster_pictures

        assets = store.open()
        use_gpu, progress = compute.has_gpu(), compute.progress(context)
        with lineage.materialization(
            context, assets, {"clustering": given(context), "compute": compute.drawn()}
        ) as made:
            params = in_effect(context, defaults.clustering)
            with made.replace() as folder:
                embeddings = assets.folder("embeddings")
                found = cluster(embeddings, folder, params, seed=compute.seed, use_gpu=use_gpu, progress=progress)
                pictures = cluster_pictures(assets.folder("raw_corpus"), folder)
            context.log.info(found.note)
            return result(made, figures(found), pictures, tables=("assignment.parquet",))

    return scene_clusters
