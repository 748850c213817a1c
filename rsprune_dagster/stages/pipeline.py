"""The whole method on folders: from the sources of a corpus to its pruned subset, without Dagster."""

import os
import shutil

from rsprune_dagster.config.layout import PRUNING, Layout
from rsprune_dagster.config.params import Params
from rsprune_dagster.pruning.strategies import check_strategy
from rsprune_dagster.stages.embeddings import embed_corpus
from rsprune_dagster.stages.entropy_scores import score
from rsprune_dagster.stages.pruned_subset import SelectReport, select
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.stages.reference_scenes import scan_reference
from rsprune_dagster.stages.scene_clusters import cluster
from rsprune_dagster.utils.progress import Progress, silent


def prune(params: Params, layout: Layout, *, progress: Progress = silent) -> SelectReport:
    """Write the folders of the pruning's assets. Earlier folders are replaced; finished work in the cache is reused.

    The tables have the same bytes as those of the Dagster run. Pictures, checks and records are left out. The
    centroids are always trained.

    Raises:
        UsageError: an unknown strategy or encoder, or sources without images.
        RunError: no tile can be used, or a tile changed during the run.
    """
    check_strategy(params.selection.strategy)
    for asset in PRUNING:
        shutil.rmtree(layout.assets / asset, ignore_errors=True)
        (layout.assets / asset).mkdir(parents=True)
    workers = params.compute.workers or len(os.sched_getaffinity(0))
    seed, device = params.compute.seed, params.compute.device
    scanner = Scanner.of(params.corpus, layout.cache, workers, progress)
    scan(params.corpus.sources, layout.folder("raw_corpus"), scanner, labelled=False, label="raw_corpus")
    scan_reference(params.reference.sources, layout.folder("reference_scenes"), scanner)
    score(layout, params.entropy)
    embed_corpus(layout, params.embedding, device=device, progress=progress)
    cluster(layout, params.clustering, seed=seed, use_gpu=_has_gpu(device), progress=progress)
    return select(layout, params.selection, seed=seed, workers=workers, progress=progress)


def _has_gpu(device: str) -> bool:
    import torch

    return device != "cpu" and torch.cuda.is_available()
