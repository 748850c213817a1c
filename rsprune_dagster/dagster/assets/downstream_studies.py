"""super_resolution_study and semantic_synthesis_study: equal fine-tuning from the foundations of several arms."""

from typing import TYPE_CHECKING

import dagster as dg

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params, SemanticSynthesisParams, SuperResolutionParams
from rsprune_dagster.dagster.assets.pruning_study import partition_of, study_partitions
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.image_sources import pair_sources, scanner, super_resolution_sources
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import AssetRecorder, RunRecorder

if TYPE_CHECKING:
    from rsprune_dagster.evaluation.features import FeatureNetwork
    from rsprune_dagster.stages.downstream_study import DownstreamTask

CODE_VERSIONS = {"super_resolution": "1", "semantic_synthesis": "2"}
DESCRIPTION = """Whether pruning helps downstream: {task} fine-tuned from the foundations of several arms.

A partition is one arm with one seed: a foundation is trained on the tiles of the arm, then fine-tuned and measured as
{task}_checkpoint is. The arm `none` starts from random weights. Each materialization adds its run and summarizes all
runs so far, with intervals over seeds and differences between arms. An interrupted run resumes.
"""


def super_resolution_study_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""
    return _study_asset(defaults, "super_resolution", defaults.super_resolution)


def semantic_synthesis_study_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""
    return _study_asset(defaults, "semantic_synthesis", defaults.semantic_synthesis)


def _study_asset(
    defaults: Params, task: str, section: SuperResolutionParams | SemanticSynthesisParams
) -> dg.AssetsDefinition:
    name = f"{task}_study"
    partitions = study_partitions(defaults.study, name)

    @dg.asset(
        name=name,
        description=DESCRIPTION.format(task=task),
        group_name="evaluation",
        kinds={"python", "pytorch"},
        owners=["team:research"],
        code_version=CODE_VERSIONS[task],
        pool=gpu_pool(),
        deps=["raw_corpus", "entropy_scores", "embeddings", "scene_clusters", "pruned_subset"],
        partitions_def=partitions,
        config_schema=schema(section),
    )
    @surface_user_errors()
    def downstream_study(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        from rsprune_dagster.evaluation.networks import named_networks
        from rsprune_dagster.stages.downstream_study import study_downstream_arm
        from rsprune_dagster.viz.pictures import downstream_study_pictures

        layout, evaluation = store.open(), defaults.evaluation
        with recorder.record_asset(
            context,
            layout,
            {
                task: run_params(context),
                "study": defaults.study,
                "training": defaults.training,
                "evaluation": evaluation,
                "selection": defaults.selection,
                "corpus": defaults.corpus,
            },
        ) as made:
            params = defaults.model_copy(update={task: validated_params(context, section)})
            arm, seed = partition_of(partitions, context.partition_key)
            networks, _ = named_networks(
                evaluation.networks, image_size_px=evaluation.network_size_px, device=compute.device
            )
            with made.replace() as draft:
                report = study_downstream_arm(
                    draft,
                    params,
                    _task(task, context, draft, made, params, compute, networks),
                    networks,
                    arm=arm,
                    seed=seed,
                    workers=compute.n_workers(),
                    device=compute.device,
                    progress=compute.progress(context),
                )
                pictures = downstream_study_pictures(draft.folder(name))
            return result(made, report.figures(), pictures, tables=())

    return downstream_study


def _task(
    task: str,
    context: dg.AssetExecutionContext,
    draft: Layout,
    made: AssetRecorder,
    params: Params,
    compute: Compute,
    networks: "list[FeatureNetwork]",
) -> "DownstreamTask":
    """The task with its images."""
    from rsprune_dagster.stages.downstream_study import super_resolution_task, synthesis_task

    home, progress = made.project_root, compute.progress(context)
    if task == "semantic_synthesis":
        pairs = pair_sources(params.semantic_synthesis, draft, home=home, progress=progress)
        return synthesis_task(params, pairs, networks)
    images = super_resolution_sources(params.super_resolution, params.evaluation, draft, home=home, progress=progress)
    reader = scanner(context, draft, compute, params.corpus, home)
    return super_resolution_task(draft, params, images, reader, networks)
