"""Software-defined assets, one thin module each: load, call the library, report."""

import dagster as dg

from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.assets.diffusion_checkpoint import diffusion_checkpoint_asset
from rsprune_dagster.dagster.assets.downstream_studies import (
    semantic_synthesis_study_asset,
    super_resolution_study_asset,
)
from rsprune_dagster.dagster.assets.embeddings import embeddings_asset
from rsprune_dagster.dagster.assets.entropy_scores import entropy_scores_asset
from rsprune_dagster.dagster.assets.evaluation_metrics import evaluation_metrics_asset
from rsprune_dagster.dagster.assets.pruned_subset import pruned_subset_asset
from rsprune_dagster.dagster.assets.pruning_report import pruning_report_asset
from rsprune_dagster.dagster.assets.pruning_study import pruning_study_asset
from rsprune_dagster.dagster.assets.raw_corpus import raw_corpus_asset
from rsprune_dagster.dagster.assets.reference_scenes import reference_scenes_asset
from rsprune_dagster.dagster.assets.scene_clusters import scene_clusters_asset
from rsprune_dagster.dagster.assets.semantic_synthesis_checkpoint import semantic_synthesis_checkpoint_asset
from rsprune_dagster.dagster.assets.super_resolution_checkpoint import super_resolution_checkpoint_asset

PRUNING_FACTORIES = (
    raw_corpus_asset,
    reference_scenes_asset,
    entropy_scores_asset,
    embeddings_asset,
    scene_clusters_asset,
    pruned_subset_asset,
)
FACTORIES = (
    *PRUNING_FACTORIES,
    diffusion_checkpoint_asset,
    evaluation_metrics_asset,
    super_resolution_checkpoint_asset,
    semantic_synthesis_checkpoint_asset,
    pruning_report_asset,
    pruning_study_asset,
    super_resolution_study_asset,
    semantic_synthesis_study_asset,
)


def build_assets(defaults: Params) -> list[dg.AssetsDefinition]:
    """All assets in topological order, with the values of params.yaml as defaults."""
    return [factory(defaults) for factory in FACTORIES]


def build_pruning_assets(defaults: Params) -> list[dg.AssetsDefinition]:
    """The assets of the groups corpus and pruning."""
    return [factory(defaults) for factory in PRUNING_FACTORIES]
