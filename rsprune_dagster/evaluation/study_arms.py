"""The arms of a study: which tiles each trains on, chosen from one pruned corpus by one strategy."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rsprune_dagster.errors import UsageError
from rsprune_dagster.params import SelectionParams, suggest
from rsprune_dagster.pruning.baselines import BASELINES, drawn_in_turns
from rsprune_dagster.pruning.baselines import Candidates as Pool
from rsprune_dagster.pruning.steps.ledger import n_to_keep
from rsprune_dagster.pruning.steps.select import RSPRUNE, StageFolders, order_candidates

FULL: Final = "full"
STRATIFIED_RANDOM: Final = "stratified_random"
"""The scenes that RS-Prune finds take turns as its own do, but at random inside: its strata without its herding."""
NEEDS_TRUTH: Final = "label_balanced"
RANKED: Final = ("content_md5", "scene", "cluster_id", "rank", "near_copy_of")
STRATEGIES: Final = (FULL, RSPRUNE, STRATIFIED_RANDOM, *(name for name in BASELINES if name != NEEDS_TRUTH))


@dataclass(frozen=True)
class Arm:
    """A way to choose training tiles. UsageError: an unknown strategy, a fraction out of 0 to 1, a part called full."""

    strategy: str
    keep_fraction: float
    """Of the readable tiles; 1 for `full`."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            hint = suggest(self.strategy, STRATEGIES)
            raise UsageError(f"no arm is called {self.strategy}{hint}; there are {', '.join(STRATEGIES)}")
        if not 0 < self.keep_fraction <= 1:
            raise UsageError(f"{self.strategy} keeps {self.keep_fraction:g}, expected a share above 0, up to 1")
        if (self.strategy == FULL) != (self.keep_fraction == 1):
            raise UsageError(
                f"{self.strategy} keeps {self.keep_fraction:g}: the full corpus is the arm `{FULL}`, and every other "
                "arm keeps less than 1"
            )

    @property
    def name(self) -> str:
        """Also a partition key and a folder: `full`, `rsprune-0.15`."""
        return FULL if self.strategy == FULL else f"{self.strategy}-{self.keep_fraction:g}"


def parse_arm(name: str) -> Arm:
    """The arm of a name. UsageError: it is none."""
    strategy, _, fraction = name.partition("-")
    try:
        return Arm(strategy, float(fraction) if fraction else 1.0)
    except ValueError:
        raise UsageError(
            f"arm {name}: {fraction} is no number; write {FULL}, or strategy-fraction as rsprune-0.15"
        ) from None


@dataclass(frozen=True)
class PrunedCorpus:
    """What arms are chosen from: the assets of a prune."""

    folders: StageFolders
    ranking: pa.Table
    """ranking.parquet of pruned_subset: its candidates are what all arms but `full` choose from."""
    manifest: pa.Table
    """The readable tiles, in content order."""
    selection: SelectionParams

    @property
    def digest(self) -> str:
        """Changes with the readable tiles and with anything that pruning said of them."""
        hashed = hashlib.sha256(repr(self.selection).encode())
        for table, names in ((self.manifest, ("content_md5",)), (self.ranking, RANKED)):
            for name in names:
                hashed.update(json.dumps(table.column(name).to_pylist()).encode())
        return hashed.hexdigest()


def chosen_tiles(corpus: PrunedCorpus, arm: Arm, *, seed: int, workers: int) -> pa.Table:
    """Rows of the manifest that `arm` trains on, in content order. `scene` is one for all: the study is unconditional.

    Candidates are what survived the entropy threshold and the search for duplicates, for the method and its peers
    alike; `full` is every readable tile. The seed draws the peers' chance; RS-Prune has none of its own.

    Raises:
        UsageError: fewer tiles survive than the arm keeps.
    """
    if arm.strategy == FULL:
        rows = corpus.manifest
    else:
        kept = corpus.ranking.column("tile_id").take(pa.array(_kept_rows(corpus, arm, seed, workers)))
        rows = corpus.manifest.filter(pc.is_in(corpus.manifest.column("tile_id"), value_set=kept.combine_chunks()))
    return rows.append_column("scene", pa.array([""] * rows.num_rows))


def read_pruned(folders: StageFolders, subset: Path, selection: SelectionParams) -> PrunedCorpus:
    """The corpus as its assets lie there; `subset`: the folder of pruned_subset."""
    ranking = pq.read_table(subset / "ranking.parquet")
    return PrunedCorpus(folders, ranking, pq.read_table(folders.corpus / "manifest.parquet"), selection)


def _kept_rows(corpus: PrunedCorpus, arm: Arm, seed: int, workers: int) -> NDArray[np.int64]:
    """Rows of the ranking, best first."""
    candidates = np.flatnonzero(corpus.ranking.column("near_copy_of").is_null().to_numpy())
    n_wanted = n_to_keep(corpus.manifest.num_rows, arm.keep_fraction)
    if n_wanted > len(candidates):
        raise UsageError(
            f"{arm.name} keeps {n_wanted:,} tiles, but {len(candidates):,} survive the entropy threshold and the "
            "search for duplicates: ask for a smaller fraction"
        )
    return np.asarray(candidates[_order(corpus, arm, candidates, n_wanted, seed, workers)[:n_wanted]])


def _order(
    corpus: PrunedCorpus, arm: Arm, candidates: NDArray[np.int64], n_wanted: int, seed: int, workers: int
) -> NDArray[np.int64]:
    if arm.strategy == STRATIFIED_RANDOM:
        return _strata_in_turns(corpus, candidates, seed)
    params = corpus.selection.model_copy(update={"strategy": arm.strategy, "keep_fraction": arm.keep_fraction})
    return order_candidates(corpus.folders, candidates, params, n_wanted=n_wanted, seed=seed, workers=workers)


def _strata_in_turns(corpus: PrunedCorpus, candidates: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    scenes = np.asarray(corpus.ranking.column("scene").take(pa.array(candidates)).to_pylist())
    strata = np.unique(scenes, return_inverse=True)[1]

    def unread(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        raise AssertionError("a draw inside strata looks at no vectors")

    pool = Pool(unread, n_tiles=len(candidates), n_kept=len(candidates), seed=seed)
    return drawn_in_turns(pool, strata, exponent=corpus.selection.scene_exponent)
