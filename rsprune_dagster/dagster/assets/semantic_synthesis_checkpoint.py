"""semantic_synthesis_checkpoint: the denoiser fine-tuned to draw images of masks."""

import dagster as dg

from rsprune_dagster.config.params import Params, SemanticSynthesisParams
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.image_sources import pair_sources
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "5"


def semantic_synthesis_checkpoint_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="downstream",
        kinds={"python", "pytorch"},
        owners=["team:research"],
        code_version=CODE_VERSION,
        pool=gpu_pool(),
        deps=["diffusion_checkpoint"],
        config_schema=schema(defaults.semantic_synthesis, _check_palette),
    )
    @surface_user_errors()
    def semantic_synthesis_checkpoint(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """Semantic image synthesis: the checkpoint, fine-tuned to draw images of land-cover masks.

        Segmenters that know real images are asked for the masks of drawn ones. Others learn from real and drawn
        images. The folder is a diffusers pipeline; `rsprune synthesize` draws images of whole masks.
        """
        from rsprune_dagster.evaluation.networks import named_networks
        from rsprune_dagster.stages.semantic_synthesis_checkpoint import train_synthesis
        from rsprune_dagster.viz.pictures import synthesis_pictures

        layout, evaluation = store.open(), defaults.evaluation
        with recorder.record_asset(
            context,
            layout,
            {
                "semantic_synthesis": run_params(context),
                "training": defaults.training,
                "evaluation": evaluation,
                "compute": compute.for_record(),
            },
        ) as made:
            params, progress = validated_params(context, defaults.semantic_synthesis), compute.progress(context)
            sources = pair_sources(params, layout, home=made.project_root, progress=progress)
            networks, _ = named_networks(
                evaluation.networks, image_size_px=evaluation.network_size_px, device=compute.device
            )
            with made.replace() as draft:
                report = train_synthesis(
                    draft,
                    params,
                    defaults.training,
                    sources,
                    networks,
                    seed=compute.seed,
                    device=compute.device,
                    progress=progress,
                )
                pictures = synthesis_pictures(draft.folder("semantic_synthesis_checkpoint"))
            return result(made, report.figures(), pictures, tables=())

    return semantic_synthesis_checkpoint


def _check_palette(params: SemanticSynthesisParams) -> None:
    from rsprune_dagster.downstream.masks import Palette

    Palette.of(params.classes)
