"""The whole method on folders: from the sources of a corpus to its pruned subset, without Dagster."""

import os
import shutil
from pathlib import Path

from rsprune_dagster.config.params import Params
from rsprune_dagster.pruning.strategies import StageFolders, check_strategy
from rsprune_dagster.stages.embeddings import embed_corpus
from rsprune_dagster.stages.entropy_scores import score
from rsprune_dagster.stages.pruned_subset import SelectReport, select
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.stages.reference_scenes import scan_reference
from rsprune_dagster.stages.scene_clusters import cluster
from rsprune_dagster.utils.progress import Progress, silent
from rsprune_dagster.viz.folders import PRUNING


def prune(params: Params, root: Path, cache_root: Path, *, progress: Progress = silent) -> SelectReport:
    """Write one folder per stage below `root`, named like its asset. Earlier folders of these names are replaced.

    The tables have the same bytes as those of the Dagster run. Pictures, checks and records are left out. The
    centroids are always trained.

    Args:
        cache_root: finished work is kept here and reused.

    Raises:
        UsageError: an unknown strategy or encoder, or sources without images.
        RunError: no tile can be used, or a tile changed during the run.
    """
    check_strategy(params.selection.strategy)
    corpus, reference, scores, embeddings, clusters, subset = (_empty(root / name) for name in PRUNING)
    workers = params.compute.workers or len(os.sched_getaffinity(0))
    seed, device = params.compute.seed, params.compute.device
    scanner = Scanner.of(params.corpus, cache_root, workers, progress)
    scan(params.corpus.sources, corpus, scanner, labelled=False, label="raw_corpus")
    scan_reference(params.reference.sources, reference, scanner)
    score(corpus, reference, scores, params.entropy)
    embed_corpus(
        corpus=corpus,
        reference=reference,
        scores=scores,
        folder=embeddings,
        params=params.embedding,
        cache_root=cache_root,
        device=device,
        progress=progress,
    )
    cluster(embeddings, clusters, params.clustering, seed=seed, use_gpu=_has_gpu(device), progress=progress)
    return select(StageFolders.below(root), subset, params.selection, seed=seed, workers=workers, progress=progress)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _has_gpu(device: str) -> bool:
    import torch

    return device != "cpu" and torch.cuda.is_available()
