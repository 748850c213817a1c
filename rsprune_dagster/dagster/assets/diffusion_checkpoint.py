"""diffusion_checkpoint: the denoiser trained on the kept tiles."""

from dataclasses import asdict

import dagster as dg

from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "3"


def diffusion_checkpoint_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="training",
        kinds={"python", "pytorch"},
        owners=["team:research"],
        code_version=CODE_VERSION,
        pool=gpu_pool(),
        deps=["raw_corpus", "pruned_subset"],
        config_schema=schema(defaults.training),
    )
    @surface_user_errors()
    def diffusion_checkpoint(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """A diffusion model trained from scratch on the kept tiles, which are read in place.

        The folder is a diffusers pipeline that `DiffusionPipeline.from_pretrained` loads, with a model card, the loss
        curve and the names of the scenes. An interrupted training resumes from its last saved state.
        """
        from rsprune_dagster.stages.diffusion_checkpoint import train_checkpoint
        from rsprune_dagster.viz.pictures import checkpoint_pictures

        layout = store.open()
        with recorder.record_asset(
            context, layout, {"training": run_params(context), "compute": compute.for_record()}
        ) as made:
            params = validated_params(context, defaults.training)
            with made.replace() as draft:
                report = train_checkpoint(
                    draft,
                    params,
                    subset_version=made.record.inputs["pruned_subset"],
                    seed=compute.seed,
                    device=compute.device,
                    progress=compute.progress(context),
                )
                pictures = checkpoint_pictures(draft.folder("diffusion_checkpoint"))
            return result(made, asdict(report), pictures, tables=())

    return diffusion_checkpoint
