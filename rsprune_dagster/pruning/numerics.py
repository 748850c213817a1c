"""Reproducible matrix products: bit-identical for any number of threads and any chunking of rows."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

BLOCK_ROWS = 1024


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread: sums split over threads differ in their last bits."""
    with _loaded_libraries(len(sys.modules)).limit(limits=1):
        yield


@lru_cache(maxsize=1)
def _loaded_libraries(n_modules: int) -> ThreadpoolController:
    """The BLAS and OpenMP libraries of this process, looked up again after an import: that takes milliseconds."""
    return ThreadpoolController()


def blocks(n_rows: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Slices of `size` rows that cover `n_rows`; the last may be shorter."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def padded(vectors: np.ndarray, size: int = BLOCK_ROWS) -> np.ndarray:
    """`vectors` (n <= size, d) as float64 (size, d), zero-padded: equal shapes use the same BLAS kernel."""
    block = np.zeros((size, vectors.shape[1]))
    block[: len(vectors)] = vectors
    return block
