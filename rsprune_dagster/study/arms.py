"""The arms of a study: the training tiles of each, selected from one pruned corpus."""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import NO_FOUNDATION, SelectionParams, suggest
from rsprune_dagster.pruning.baselines import BASELINES, drawn_in_turns
from rsprune_dagster.pruning.baselines import Candidates as Pool
from rsprune_dagster.pruning.ledger import n_to_keep
from rsprune_dagster.pruning.strategies import RSPRUNE, order_candidates
from rsprune_dagster.utils.errors import UsageError

FULL: Final = "full"
SHARES: Final = {FULL: 1.0, NO_FOUNDATION: 0.0}
"""Arms whose names have no fraction."""
STRATIFIED_RANDOM: Final = "stratified_random"
"""The strata and quotas of RS-Prune with random selection inside instead of herding."""
NEEDS_TRUTH: Final = "label_balanced"
RANKED: Final = ("content_md5", "scene", "cluster_id", "rank", "near_copy_of")
STRATEGIES: Final = (
    FULL,
    NO_FOUNDATION,
    RSPRUNE,
    STRATIFIED_RANDOM,
    *(name for name in BASELINES if name != NEEDS_TRUTH),
)


@dataclass(frozen=True)
class Arm:
    """A strategy and keep fraction. UsageError: an unknown strategy or an invalid fraction."""

    strategy: str
    keep_fraction: float
    """Share of the readable tiles; 1 for `full`, 0 for `none`."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            hint = suggest(self.strategy, STRATEGIES)
            raise UsageError(f"no arm is called {self.strategy}{hint}; there are {', '.join(STRATEGIES)}")
        if self.keep_fraction == SHARES.get(self.strategy):
            return
        if self.strategy == NO_FOUNDATION:
            raise UsageError(f"{self.strategy} keeps {self.keep_fraction:g}, expected none, without a share")
        if not 0 < self.keep_fraction <= 1:
            raise UsageError(f"{self.strategy} keeps {self.keep_fraction:g}, expected a share above 0, up to 1")
        if self.strategy == FULL or self.keep_fraction == 1:
            raise UsageError(
                f"{self.strategy} keeps {self.keep_fraction:g}: the full corpus is the arm `{FULL}`, and every other "
                "arm keeps less than 1"
            )

    @property
    def name(self) -> str:
        """Name, partition key and folder: `full`, `rsprune-0.15`."""
        return self.strategy if self.strategy in SHARES else f"{self.strategy}-{self.keep_fraction:g}"


def parse_arm(name: str) -> Arm:
    """Parse the name of an arm. UsageError: it is invalid."""
    strategy, _, fraction = name.partition("-")
    try:
        return Arm(strategy, float(fraction) if fraction else SHARES.get(strategy, 1.0))
    except ValueError:
        raise UsageError(
            f"arm {name}: {fraction} is no number; write {FULL}, or strategy-fraction as rsprune-0.15"
        ) from None


@dataclass(frozen=True)
class PrunedCorpus:
    """The assets of a prune, from which arms are selected."""

    layout: Layout
    ranking: pa.Table
    """ranking.parquet of pruned_subset, with the candidates of all arms but `full`."""
    manifest: pa.Table
    """The readable tiles, in content order."""
    selection: SelectionParams

    @property
    def digest(self) -> str:
        """A hash of the readable tiles and of their pruning results."""
        hashed = hashlib.sha256(repr(self.selection).encode())
        for table, names in ((self.manifest, ("content_md5",)), (self.ranking, RANKED)):
            for name in names:
                hashed.update(json.dumps(table.column(name).to_pylist()).encode())
        return hashed.hexdigest()


def chosen_tiles(corpus: PrunedCorpus, arm: Arm, *, seed: int, workers: int) -> pa.Table:
    """Manifest rows of the arm's training tiles, in content order, with one common `scene` (unconditional study).

    Candidates are the survivors of the entropy threshold and of the duplicate search, for RS-Prune and baselines
    alike; `full` is every readable tile. The seed affects the baselines only.

    Raises:
        UsageError: fewer tiles survive than the arm keeps, or the arm has no tiles.
    """
    if arm.strategy == NO_FOUNDATION:
        raise UsageError(
            f"the arm {NO_FOUNDATION} has no tiles to train on: it is an arm of the studies of downstream tasks"
        )
    if arm.strategy == FULL:
        rows = corpus.manifest
    else:
        kept = corpus.ranking.column("tile_id").take(pa.array(_kept_rows(corpus, arm, seed, workers)))
        rows = corpus.manifest.filter(pc.is_in(corpus.manifest.column("tile_id"), value_set=kept.combine_chunks()))
    return rows.append_column("scene", pa.array([""] * rows.num_rows))


def read_pruned(layout: Layout, selection: SelectionParams) -> PrunedCorpus:
    """Read the pruned corpus from the assets."""
    ranking, manifest = pq.read_table(layout.file("ranking")), pq.read_table(layout.file("manifest"))
    return PrunedCorpus(layout, ranking, manifest, selection)


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
    return order_candidates(corpus.layout, candidates, params, n_wanted=n_wanted, seed=seed, workers=workers)


def _strata_in_turns(corpus: PrunedCorpus, candidates: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    scenes = np.asarray(corpus.ranking.column("scene").take(pa.array(candidates)).to_pylist())
    strata = np.unique(scenes, return_inverse=True)[1]

    def unread(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        raise AssertionError("stratified sampling reads no vectors")

    pool = Pool(unread, n_tiles=len(candidates), n_kept=len(candidates), seed=seed)
    return drawn_in_turns(pool, strata, exponent=corpus.selection.scene_exponent)
