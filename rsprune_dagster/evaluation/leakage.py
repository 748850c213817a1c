"""Find evaluation tiles in the training set, including rotated, re-encoded or slightly shifted copies.

Exact copies have equal hashes; near-duplicates are found by the index that pruning uses, without comparing all pairs.
Tiles without detail (calm water) are never near-duplicates: see `near_duplicates`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rsprune_dagster.evaluation.image_set import ImageIds
from rsprune_dagster.pruning.near_duplicates import MIN_DETAIL, compared
from rsprune_dagster.pruning.thumbnail_detail import tones
from rsprune_dagster.pruning.thumbnail_index import candidate_pairs
from rsprune_dagster.utils.errors import RunError

NEAR_DUPLICATE_CORRELATION = 0.94
"""From which two images are near-duplicates: the default of pruning, for the same image rotated, flipped or encoded
again."""
N_CANDIDATES = 32
"""Candidates compared per tile: the nearest in the index, from either set."""
N_EXAMPLES = 3
LEAK_WARNING = (
    "Scores on tiles that were trained on flatter the model: take these out of one of the two sets and run again"
)


@dataclass(frozen=True)
class Leak:
    """An evaluation tile and its copy in the training set, as row numbers."""

    evaluation: int
    training: int
    exact: bool


def leaks(evaluation: ImageIds, training: ImageIds, *, correlation: float, workers: int = 1) -> tuple[Leak, ...]:
    """All evaluation tiles (n) that are training tiles (m), one leak each, in order.

    correlation: 0 to 1, as in `pruning.near_duplicates`. Memory grows with n + m, over 256 bytes per tile.
    """
    first = {md5: row for row, md5 in reversed(list(enumerate(training.md5)))}
    exact = {row: first[md5] for row, md5 in enumerate(evaluation.md5) if md5 in first}
    rest = np.asarray([row for row in range(len(evaluation.md5)) if row not in exact], np.int64)
    near = _near(evaluation.thumbnails[rest], training.thumbnails, correlation, workers) if len(rest) else {}
    found = [Leak(row, tile, True) for row, tile in exact.items()]
    found += [Leak(int(rest[row]), tile, False) for row, tile in near.items()]
    return tuple(sorted(found, key=lambda leak: leak.evaluation))


def shared_contents(evaluation: pa.Table, training: pa.Table) -> list[str]:
    """Sorted ids of the evaluation tiles whose content hash occurs in the training set; for tables of any length.

    Both have the columns `tile_id` and `content_md5`.
    """
    trained_on = pc.is_in(evaluation.column("content_md5"), value_set=pc.unique(training.column("content_md5")))
    return sorted(evaluation.column("tile_id").filter(trained_on).to_pylist())


def raise_on_leaks(found: Sequence[Leak], evaluation: ImageIds, training: ImageIds, *, what: str) -> None:
    """Raise RunError with counts and examples if there are leaks. `what`: name of the set, such as "reference"."""
    if found:
        raise RunError(f"{leaks_sentence(found, evaluation, training, what=what)} {LEAK_WARNING}")


def leaks_sentence(found: Sequence[Leak], evaluation: ImageIds, training: ImageIds, *, what: str) -> str:
    """A sentence with the number of leaks and the first few ids."""
    n_exact = sum(leak.exact for leak in found)
    examples = [f"{evaluation.names[leak.evaluation]} is {training.names[leak.training]}" for leak in found]
    more = ", ..." if len(examples) > N_EXAMPLES else ""
    return (
        f"{len(found):,} of {len(evaluation.md5):,} {what} tiles are in the training set ({n_exact:,} the same pixels, "
        f"{len(found) - n_exact:,} nearly): {', '.join(examples[:N_EXAMPLES])}{more}."
    )


def _near(
    evaluation: NDArray[np.uint8], training: NDArray[np.uint8], correlation: float, workers: int
) -> dict[int, int]:
    """Near-duplicates of evaluation thumbnails (n, 256) among training ones (m, 256): row to row."""
    m = len(training)
    thumbnails = np.ascontiguousarray(np.concatenate([training, evaluation]))
    means, details = tones(thumbnails)
    rows = np.flatnonzero(details >= MIN_DETAIL)
    if len(rows) < 2:
        return {}
    evidence = thumbnails, means, details, np.zeros((0, 0), np.float32), correlation, 0.0
    pairs = candidate_pairs(thumbnails, (means, details), rows, n_neighbours=N_CANDIDATES, workers=workers)
    pairs = pairs[pairs[:, 1] >= m]
    across, within = pairs[pairs[:, 0] < m], pairs[pairs[:, 0] >= m]
    found = _first_copies(across, compared(across, evidence, workers))
    # If a tile's neighbours are its own copies in the evaluation set, use the training tile of those copies.
    handed = [(found[a], b) for a, b in [*within.tolist(), *within[:, ::-1].tolist()] if a in found and b not in found]
    if handed:
        again = np.asarray(handed, np.int64)
        found |= _first_copies(again, compared(again, evidence, workers))
    return {row - m: tile for row, tile in found.items()}


def _first_copies(pairs: NDArray[np.int64], copies: NDArray[np.bool_]) -> dict[int, int]:
    """Map each later row to the first earlier row that it is a copy of."""
    found: dict[int, int] = {}
    for tile, row in pairs[copies].tolist():
        found[row] = min(tile, found.get(row, tile))
    return found
