"""Vectors on disk: (N, d) float16 as safetensors parts, written in any order, read by row, not memory-mapped.

Every part but the last holds ROWS_PER_PART rows and is a plain safetensors file with one tensor `vectors`, so the
position of a row follows from its number. The bytes do not depend on the order of writing.

Round trip: `read(write(v)) == float32(float16(v))`, exactly; nothing is renormalised, so writing what was read gives
the same bytes. A unit vector comes back with a norm within 2**-10 of 1 (half precision rounds each component by 2**-11
at most).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np

from rsprune_dagster.utils.errors import RunError

ROWS_PER_PART = 2**16
HALF = np.dtype("<f2")
DENSE = 16
"""If rows are closer than this on average, the whole span is read: one system call costs as much as 16 rows."""
SPAN_ROWS = 4096
"""Rows per read of a span."""


@dataclass(frozen=True)
class VectorFile:
    """A folder of parts that holds `n_rows` vectors of `dimension` components."""

    folder: Path
    n_rows: int
    dimension: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.dimension * HALF.itemsize

    def write_rows(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Write `vectors` (n, d) at the distinct row numbers `rows` (n,), in any order. OSError: the disk is full."""
        rows = np.asarray(rows, dtype=np.int64)
        self._check(rows, vectors)
        order = np.argsort(rows, kind="stable")
        rows, halves = rows[order], np.ascontiguousarray(vectors[order], dtype=HALF)
        for part, part_runs in groupby(runs(rows), key=lambda run: int(rows[run[0]]) // ROWS_PER_PART):
            with self._opened(part, os.O_WRONLY) as fd:
                for start, stop in part_runs:
                    write_all(fd, halves[start:stop].data.cast("B"), self._offset(int(rows[start])))

    def read(self, start: int, stop: int) -> np.ndarray:
        """The vectors of rows `start` to `stop` (not included) as float32 (stop - start, d)."""
        return self.read_rows(np.arange(start, stop))

    def read_rows(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of the ascending row numbers `rows` (n,) as float32 (n, d); adjacent rows are read together."""
        rows = np.asarray(rows, dtype=np.int64)
        self._check_range(rows)
        if np.any(np.diff(rows) <= 0):
            raise ValueError("row numbers must rise")
        halves = np.empty((len(rows), self.dimension), dtype=HALF)
        parts = rows // ROWS_PER_PART
        for part in np.unique(parts).tolist():
            first, last = np.searchsorted(parts, [part, part + 1]).tolist()
            with self._opened(part, os.O_RDONLY) as fd:
                dense = rows[last - 1] - rows[first] < DENSE * (last - first)
                (self._read_span if dense else self._read_scattered)(fd, rows[first:last], halves[first:last])
        return halves.astype(np.float32)

    def _read_span(self, fd: int, rows: np.ndarray, halves: np.ndarray) -> None:
        """Read rows of one part by reading their whole span in pieces."""
        base, end = self._offset(int(rows[0])), int(rows[-1]) + 1
        for start in range(int(rows[0]), end, SPAN_ROWS):
            piece = np.empty((min(SPAN_ROWS, end - start), self.dimension), HALF)
            read_all(fd, piece.view(np.uint8).reshape(-1).data, base + (start - int(rows[0])) * self.row_bytes)
            first, last = np.searchsorted(rows, [start, start + SPAN_ROWS])
            halves[first:last] = piece[rows[first:last] - start]

    def _read_scattered(self, fd: int, rows: np.ndarray, halves: np.ndarray) -> None:
        """Read rows of one part, one call per run of adjacent rows. A cluster's rows are far apart: mostly one each."""
        data = halves.view(np.uint8).reshape(-1).data
        starts, stops = np.array(runs(rows), np.int64).T
        offsets = self._offset(int(rows[0])) + (rows[starts] - rows[0]) * self.row_bytes
        places = (starts * self.row_bytes).tolist(), (stops * self.row_bytes).tolist(), offsets.tolist()
        for start, stop, offset in zip(*places, strict=True):
            if os.preadv(fd, (data[start:stop],), offset) != stop - start:
                read_all(fd, data[start:stop], offset)

    def _check(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        if vectors.shape != (len(rows), self.dimension):
            raise ValueError(f"{len(rows)} rows of {self.dimension} components expected, got {vectors.shape}")
        if not np.isfinite(vectors).all() or (vectors.size and np.abs(vectors).max() > 65504):
            raise ValueError("vectors must be finite and fit half precision")
        self._check_range(rows)
        if len(np.unique(rows)) != len(rows):
            raise ValueError("a row is given twice")

    def _check_range(self, rows: np.ndarray) -> None:
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n_rows):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked of {self.n_rows}")

    def _offset(self, row: int) -> int:
        part, within = divmod(row, ROWS_PER_PART)
        return len(header(rows_of(part, self.n_rows), self.dimension)) + within * self.row_bytes

    @contextmanager
    def _opened(self, part: int, flags: int) -> Iterator[int]:
        fd = os.open(part_path(self.folder, part), flags)
        try:
            yield fd
        finally:
            os.close(fd)


def create_vectors(folder: Path, n_rows: int, dimension: int) -> VectorFile:
    """Create the parts filled with zeros; sparse files take no disk space yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(n_parts(n_rows)):
        first = header(rows_of(part, n_rows), dimension)
        with part_path(folder, part).open("wb") as file:
            file.write(first)
            file.truncate(len(first) + rows_of(part, n_rows) * dimension * HALF.itemsize)
    return VectorFile(folder, n_rows, dimension)


def open_vectors(folder: Path) -> VectorFile:
    """Open the parts in `folder`. Raises RunError if one is missing, truncated or has another format."""
    paths = sorted(folder.glob("part-*.safetensors"))
    shapes = [read_shape(path) for path in paths]
    if not shapes:
        raise RunError(f"{folder} holds no vectors (part-*.safetensors): make the embeddings again")
    file = VectorFile(folder, sum(rows for rows, _ in shapes), shapes[0][1])
    expected = [(rows_of(part, file.n_rows), file.dimension) for part in range(n_parts(file.n_rows))]
    if shapes != expected or paths != [part_path(folder, part) for part in range(len(expected))]:
        raise RunError(f"{folder} holds parts of {shapes}, expected {expected}: make the embeddings again")
    return file


@cache
def header(n_rows: int, dimension: int) -> bytes:
    """The header of a safetensors file: length (8 bytes, little-endian), JSON, padded with blanks to a multiple of
    8."""
    entry = {"dtype": "F16", "shape": [n_rows, dimension], "data_offsets": [0, n_rows * dimension * HALF.itemsize]}
    text = json.dumps({"vectors": entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_shape(path: Path) -> tuple[int, int]:
    """Rows and components of one part, from its header. Raises RunError when the file is damaged."""
    damaged = RunError(f"{path} is damaged: make the embeddings again")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, 4096))
    try:
        n_rows, dimension = json.loads(text)["vectors"]["shape"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged from error
    first = header(n_rows, dimension)
    if first[8:] != text or path.stat().st_size != len(first) + n_rows * dimension * HALF.itemsize:
        raise damaged
    return n_rows, dimension


def n_parts(n_rows: int) -> int:
    """Number of parts; at least one, which stores the dimension."""
    return max(1, -(-n_rows // ROWS_PER_PART))


def rows_of(part: int, n_rows: int) -> int:
    """Number of rows of part number `part`."""
    return min(ROWS_PER_PART, n_rows - part * ROWS_PER_PART)


def part_path(folder: Path, part: int) -> Path:
    """File of part number `part`."""
    return folder / f"part-{part:05d}.safetensors"


def runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) positions of runs of consecutive row numbers within one part, in the ascending `rows`."""
    if not len(rows):
        return []
    cuts = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] % ROWS_PER_PART == 0)) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True))


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all bytes at `offset`: one call may write fewer than requested."""
    while len(data):
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def read_all(fd: int, data: memoryview, offset: int) -> None:
    """Fill `data` from `offset`: one call may read fewer than requested. Raises RunError at the end of the file."""
    while len(data):
        n_read = os.preadv(fd, [data], offset)
        if n_read == 0:
            raise RunError("a part of the vectors ends early: make the embeddings again")
        data, offset = data[n_read:], offset + n_read
