"""pruning_study: the same training on the full corpus, on random subsets and on pruned subsets, compared."""

import dagster as dg

from rsprune_dagster.config.params import Params, StudyParams
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.image_sources import named_sources, scanner
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "1"
ARM, SEED = "arm", "seed"


def study_partitions(params: StudyParams, study: str) -> dg.MultiPartitionsDefinition:
    """One partition per arm and seed: they run, fail and resume independently."""
    return dg.MultiPartitionsDefinition(
        {
            ARM: dg.StaticPartitionsDefinition(list(params.arms_of(study))),
            SEED: dg.StaticPartitionsDefinition([str(seed) for seed in params.seeds]),
        }
    )


def partition_of(partitions: dg.MultiPartitionsDefinition, key: str) -> tuple[str, int]:
    """The arm and the seed of a partition's key."""
    by_dimension = partitions.get_partition_key_from_str(key).keys_by_dimension
    return by_dimension[ARM], int(by_dimension[SEED])


def pruning_study_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""
    partitions = study_partitions(defaults.study, "pruning_study")

    @dg.asset(
        group_name="evaluation",
        kinds={"python", "pytorch"},
        owners=["team:research"],
        code_version=CODE_VERSION,
        pool=gpu_pool(),
        deps=["raw_corpus", "entropy_scores", "embeddings", "scene_clusters", "pruned_subset"],
        partitions_def=partitions,
        config_schema=schema(defaults.study),
    )
    @surface_user_errors()
    def pruning_study(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """Whether pruning helps: the same denoiser trained on the tiles of each arm and evaluated at several
        checkpoints.

        A partition is one arm with one seed. Each materialization adds its run and summarizes all runs so far: the
        score over training images with intervals over seeds, differences to the full corpus and to random tiles, and
        the images needed to reach the full corpus' final score. An interrupted run resumes.
        """
        from rsprune_dagster.stages.pruning_study import study_arm
        from rsprune_dagster.viz.pictures import study_pictures

        layout = store.open()
        with recorder.record_asset(
            context,
            layout,
            {
                "study": run_params(context),
                "training": defaults.training,
                "evaluation": defaults.evaluation,
                "selection": defaults.selection,
                "corpus": defaults.corpus,
            },
        ) as made:
            study, progress = validated_params(context, defaults.study), compute.progress(context)
            arm, seed = partition_of(partitions, context.partition_key)
            with made.replace() as draft:
                report = study_arm(
                    draft,
                    named_sources(
                        defaults.evaluation.sources, layout, part="held_out", home=made.project_root, progress=progress
                    ),
                    defaults.model_copy(update={"study": study}),
                    scanner(context, layout, compute, defaults.corpus, made.project_root),
                    arm=arm,
                    seed=seed,
                    device=compute.device,
                    progress=progress,
                )
                pictures = study_pictures(draft.folder("pruning_study"))
            for sentence in report.summary.verdicts():
                context.log.info(sentence)
            return result(made, report.figures(), pictures, tables=())

    return pruning_study
