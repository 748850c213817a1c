"""Checks of embeddings: one finite unit vector per informative tile. One pass over the vectors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.pruning.checks.verdict import Verdict, row, within_bounds
from rsprune_dagster.pruning.encoders.vectors import open_vectors

CHUNK_ROWS: Final = 2**14
"""Vectors in memory at a time."""
_PARTS: Final = ("vectors", "reference_vectors")


@dataclass(frozen=True)
class Lengths:
    """Statistics of the lengths of all vectors, those of the reference included, from one pass."""

    n_vectors: int
    n_not_finite: int
    n_off: int
    largest_error: float  # largest deviation of a finite vector's length from 1


def measure(layout: Layout, *, norm_tolerance: float) -> Lengths:
    """Read all vectors once, a chunk at a time."""
    n_vectors = n_not_finite = n_off = 0
    largest = 0.0
    for vectors in _chunks(layout):
        finite = np.isfinite(vectors).all(axis=1)
        errors = np.abs(np.linalg.norm(vectors[finite].astype(np.float64), axis=1) - 1)
        n_vectors, n_not_finite = n_vectors + len(vectors), n_not_finite + int((~finite).sum())
        n_off += int((errors > norm_tolerance).sum())
        largest = max(largest, float(errors.max(initial=0.0)))
    return Lengths(n_vectors, n_not_finite, n_off, largest)


def finite(lengths: Lengths) -> Verdict:
    """No component is NaN or infinite."""
    todo = "the encoder's arithmetic overflowed: set embedding.precision to float32, or check its weights file"
    return within_bounds({"hold NaN or infinity": lengths.n_not_finite}, lengths.n_vectors, what="vectors", todo=todo)


def unit_norms(lengths: Lengths, *, norm_tolerance: float) -> Verdict:
    """Every vector has length 1 up to half-precision rounding."""
    todo = (
        "nearest tiles would be wrong: materialize embeddings again, from an empty cache (.state/cache/work/embeddings)"
    )
    faults = {f"differ from length 1 by more than {norm_tolerance:g}": lengths.n_off}
    verdict = within_bounds(faults, lengths.n_vectors, what="vectors", todo=todo)
    return Verdict(verdict.passed, verdict.sentence, {**verdict.figures, "largest_norm_error": lengths.largest_error})


def embedded_once(layout: Layout) -> Verdict:
    """The index has one row and one vector per informative tile (exact copies once), in content order."""
    from rsprune_dagster.pruning.encoders.embedding_cache import read_digests

    found = row(
        """
        WITH wanted AS (SELECT tile_id, content_md5 FROM scores WHERE informative AND copy_of IS NULL),
             have AS (SELECT tile_id, content_md5 FROM index_rows)
        SELECT (SELECT count(*) FROM wanted) AS n,
               (SELECT count(*) FROM wanted ANTI JOIN have USING (tile_id, content_md5)) AS missing,
               (SELECT count(*) FROM have ANTI JOIN wanted USING (tile_id, content_md5)) AS strange
        """,
        {"index_rows": layout.file("index"), **layout.tables("scores")},
    )
    content = read_digests(layout.file("index"))
    faults = {
        "have no row in the index": found["missing"],
        "rows of the index are of tiles that were to have none": found["strange"],
        "rows are out of content order or repeated": int((content[1:] <= content[:-1]).sum()),
        "vectors are too many or too few": abs(open_vectors(layout.file("vectors")).n_rows - len(content)),
    }
    return within_bounds(faults, found["n"], what="informative tiles", todo="materialize embeddings again")


def _chunks(layout: Layout) -> Iterator[NDArray[np.float32]]:
    for part in _PARTS:
        if (folder := layout.file(part)).is_dir():
            vectors = open_vectors(folder)
            for start in range(0, vectors.n_rows, CHUNK_ROWS):
                yield vectors.read(start, min(start + CHUNK_ROWS, vectors.n_rows))
