"""embeddings: tiles as unit vectors."""

from dataclasses import asdict

import dagster as dg

from rsprune_dagster.config.params import EmbeddingParams, Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.gpu_pool import gpu_pool
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder

CODE_VERSION = "1"


def _check(params: EmbeddingParams) -> None:
    """Raise UsageError for an unknown encoder. Checking the descriptor does not import torch."""
    if params.backbone != "descriptor":
        from rsprune_dagster.pruning.encoders.encoder import check_backbone

        check_backbone(params.backbone)


def embeddings_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="pruning",
        kinds={"python", "pytorch"},
        owners=["team:data"],
        code_version=CODE_VERSION,
        pool=gpu_pool(),
        deps=["raw_corpus", "reference_scenes", "entropy_scores"],
        config_schema=schema(defaults.embedding, _check),
    )
    @surface_user_errors()
    def embeddings(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """Unit vectors of the informative tiles and of the reference, from a frozen encoder.

        Exact copies are embedded once. Vectors are cached by content hash: a new run embeds only new tiles.
        """
        from rsprune_dagster.stages.embeddings import embed_corpus

        layout = store.open()
        with recorder.record_asset(context, layout, {"embedding": run_params(context)}) as made:
            params = validated_params(context, defaults.embedding, defaults)
            with made.replace() as draft:
                report = embed_corpus(draft, params, device=compute.device, progress=compute.progress(context))
            return result(made, asdict(report), tables=[layout.file("index")])

    return embeddings
