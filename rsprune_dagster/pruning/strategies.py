"""The strategy that orders the candidates: RS-Prune, or one of its peers."""

import numpy as np

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import SelectionParams, suggest
from rsprune_dagster.pruning.assignment import read_clusters, read_reference
from rsprune_dagster.pruning.baselines import BASELINES, Candidates
from rsprune_dagster.pruning.encoders.vectors import open_vectors
from rsprune_dagster.pruning.pipeline import rank_pool
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import Progress, silent

RSPRUNE = "rsprune"


def order_candidates(
    layout: Layout,
    candidates: np.ndarray,
    params: SelectionParams,
    *,
    n_wanted: int,
    seed: int,
    workers: int,
    progress: Progress = silent,
) -> np.ndarray:
    """Positions in `candidates` (n,), best first, by the strategy in params.yaml."""
    vectors = open_vectors(layout.file("vectors"))

    def read(rows: np.ndarray) -> np.ndarray:
        return vectors.read_rows(candidates[rows])

    if params.strategy == RSPRUNE:
        reference = read_reference(layout)
        return rank_pool(
            read,
            read_clusters(layout).of(candidates),
            reference.vectors,
            reference.labels,
            params,
            workers=workers,
            progress=progress,
        )
    check_strategy(params.strategy)
    pool = Candidates(read, n_tiles=len(candidates), n_kept=min(n_wanted, len(candidates)), seed=seed)
    return BASELINES[params.strategy](pool)


def check_strategy(name: str) -> None:
    """Raise UsageError for a strategy that is unknown or needs labels of the pool."""
    if name == "label_balanced":
        raise UsageError("strategy label_balanced needs the true labels of the pool, which only benchmarks know")
    known = (RSPRUNE, *(baseline for baseline in BASELINES if baseline != "label_balanced"))
    if name not in known:
        raise UsageError(f"unknown strategy {name}{suggest(name, known)}; expected one of {', '.join(known)}")
