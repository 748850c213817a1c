"""super_resolution_checkpoint: the denoiser fine-tuned to enlarge images."""

import dagster as dg

from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.image_sources import scanner, super_resolution_sources
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "2"


def super_resolution_checkpoint_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="downstream",
        kinds={"python", "pytorch"},
        owners=["team:research"],
        code_version=CODE_VERSION,
        pool=gpu_pool(),
        deps=["raw_corpus", "pruned_subset", "diffusion_checkpoint"],
        config_schema=schema(defaults.super_resolution),
    )
    @surface_user_errors()
    def super_resolution_checkpoint(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """Diffusion super-resolution, fine-tuned from the checkpoint and measured on other images.

        Two outputs are compared with bicubic enlargement: the mean of all images that the input may come from, and a
        sample of them. The folder is a diffusers pipeline; `rsprune super-resolve` enlarges whole scenes with it.
        """
        from rsprune_dagster.evaluation.networks import named_networks
        from rsprune_dagster.stages.super_resolution_checkpoint import train_super_resolution
        from rsprune_dagster.viz.pictures import super_resolution_pictures

        layout, evaluation = store.open(), defaults.evaluation
        with recorder.record_asset(
            context,
            layout,
            {
                "super_resolution": run_params(context),
                "training": defaults.training,
                "evaluation": evaluation,
                "corpus": defaults.corpus,
                "compute": compute.for_record(),
            },
        ) as made:
            params, progress = validated_params(context, defaults.super_resolution), compute.progress(context)
            sources = super_resolution_sources(params, evaluation, layout, home=made.project_root, progress=progress)
            networks, _ = named_networks(
                evaluation.networks, image_size_px=evaluation.network_size_px, device=compute.device
            )
            with made.replace() as draft:
                report = train_super_resolution(
                    draft,
                    params,
                    defaults.training,
                    sources,
                    scanner(context, layout, compute, defaults.corpus, made.project_root),
                    networks,
                    seed=compute.seed,
                    device=compute.device,
                    progress=progress,
                )
                pictures = super_resolution_pictures(draft.folder("super_resolution_checkpoint"))
            return result(made, report.figures(), pictures, tables=())

    return super_resolution_checkpoint
