"""scene_clusters: stage 2 of RS-Prune."""

import dagster as dg

from rsprune_dagster.config.params import AutomationParams, ClusteringParams, Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.asset_history import CENTROIDS_FROM
from rsprune_dagster.tracking.run_recorder import AssetRecorder, RunRecorder

CODE_VERSION = "3"


def scene_clusters_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="pruning",
        kinds={"python", "faiss"},
        owners=["team:data"],
        code_version=CODE_VERSION,
        pool=gpu_pool(),
        deps=["embeddings"],
        config_schema=schema(defaults.clustering),
    )
    @surface_user_errors()
    def scene_clusters(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """Scene, cluster and distance to the centroid of each tile.

        Scenes are assigned by closed-form statistics of the reference. A stratified sample, with the same number of
        tiles per scene, trains the centroids, so that rare scenes get their own. Every tile is assigned to the nearest
        centroid. With automation on, new tiles are assigned to the existing centroids until the pool has drifted.
        """
        from rsprune_dagster.stages.scene_clusters import cluster
        from rsprune_dagster.viz.pictures import cluster_pictures

        layout = store.open()
        use_gpu, progress = compute.has_gpu(), compute.progress(context)
        with recorder.record_asset(
            context,
            layout,
            {
                "clustering": run_params(context),
                "compute": compute.for_record(),
                "automation": defaults.automation.model_dump(include={"enabled"}),
            },
        ) as made:
            params = validated_params(context, defaults.clustering, defaults)
            last = last_version(made, params, defaults.automation)
            with made.replace() as draft:
                found = cluster(
                    draft,
                    params,
                    seed=compute.seed,
                    use_gpu=use_gpu,
                    last=layout if last else None,
                    progress=progress,
                )
                pictures = cluster_pictures(draft)
            context.log.info(f"{found.clusters.note} Centroids: {found.origin}.")
            facts = {CENTROIDS_FROM: last} if last and found.kept else {}
            return result(made, found.figures(), pictures, tables=[layout.file("assignment")], facts=facts)

    return scene_clusters


def last_version(made: AssetRecorder, params: ClusteringParams, automation: AutomationParams) -> str:
    """The version whose centroids are reused; empty if they are to be trained or there is no version."""
    wanted = params.recluster == "never" or (params.recluster == "auto" and automation.enabled)
    return made.present() if wanted and made.layout.has(made.asset) else ""
