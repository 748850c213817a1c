"""evaluation_metrics: quality of the checkpoint's samples, and whether they are copies."""

import dagster as dg

from rsprune_dagster.config.layout import SAMPLES
from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.image_sources import named_sources, scanner
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "2"


def evaluation_metrics_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="evaluation",
        kinds={"python", "pytorch"},
        owners=["team:research"],
        code_version=CODE_VERSION,
        pool=gpu_pool(),
        deps=["raw_corpus", "pruned_subset", "diffusion_checkpoint"],
        config_schema=schema(defaults.evaluation),
    )
    @surface_user_errors()
    def evaluation_metrics(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """Distances between samples of the checkpoint and held-out tiles, overall and per scene; and memorization.

        Every score has a confidence interval and a protocol; scores that could not be measured are listed with the
        reason. The evaluation fails if held-out tiles are in the training set. If the deciding score is better than the
        champion's, the checkpoint becomes the champion in MLflow's model registry.
        """
        from rsprune_dagster.stages.evaluation_metrics import evaluate_checkpoint
        from rsprune_dagster.tracking.champion import judge
        from rsprune_dagster.viz.pictures import evaluation_pictures

        layout = store.open()
        with recorder.record_asset(
            context,
            layout,
            {"evaluation": run_params(context), "corpus": defaults.corpus, "compute": compute.for_record()},
        ) as made:
            params, progress = validated_params(context, defaults.evaluation), compute.progress(context)
            inputs = made.record.inputs
            with made.replace() as draft:
                report = evaluate_checkpoint(
                    draft,
                    named_sources(params.sources, layout, part="held_out", home=made.project_root, progress=progress),
                    params,
                    scanner(context, layout, compute, defaults.corpus, made.project_root),
                    subset_version=inputs["pruned_subset"],
                    seed=compute.seed,
                    device=compute.device,
                    progress=progress,
                )
                pictures = evaluation_pictures(draft)
            checkpoint, figures = inputs["diffusion_checkpoint"], report.metrics
            verdict = judge(made.run_log, checkpoint, report.scores, figures, report.left_out, params)
            for sentence in (*report.leaks, verdict.reason):
                context.log.info(sentence)
            samples = layout.folder("evaluation_metrics") / SAMPLES
            return result(made, report.figures(), pictures, tables=[samples], verdict=verdict)

    return evaluation_metrics
