"""Cache of vectors by content hash: after a moved file or a new threshold only new content is embedded.

A block is a safetensors file with checksum: `md5` (n, 16) uint8, ascending, and `vectors` (n, d) float16.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load, save

from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.sealed_files import KEY, UNSEALED, read_intact, sealed

DIGEST = np.dtype("S16")
"""A binary md5. numpy orders S16 by bytes, like the hexadecimal strings."""


def digests(content_md5: list[str]) -> np.ndarray:
    """(n,) S16 from hexadecimal md5 strings, in the same order."""
    return np.frombuffer(bytes.fromhex("".join(content_md5)), dtype=DIGEST)


def find(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Positions of `wanted` (n,) S16 in the ascending `among` (m,) S16, -1 if absent: (n,) int64."""
    if not len(among):
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
    return np.where(among[at] == wanted, at, -1)


@dataclass(frozen=True)
class EmbeddingCache:
    """The blocks of one encoder; the folder name is the hash of everything that a vector depends on but the tile."""

    folder: Path

    def add(self, md5: np.ndarray, vectors: np.ndarray) -> None:
        """Store a chunk atomically: (n,) S16 distinct digests and (n, d) vectors, in any order."""
        order = np.argsort(md5)
        raw = np.ascontiguousarray(md5[order]).view(np.uint8).reshape(-1, DIGEST.itemsize)
        tensors: dict[str, np.ndarray] = {
            "md5": raw,
            "vectors": np.ascontiguousarray(vectors[order], dtype=np.float16),
        }
        with atomic_write(self.folder / f"{hashlib.sha256(raw.tobytes()).hexdigest()}.safetensors") as draft:
            draft.write_bytes(sealed(save(tensors, {KEY: UNSEALED})))  # save_file does not report a full disk

    def known(self) -> np.ndarray:
        """The digests with cached vectors, (m,) S16, ascending and distinct."""
        return np.unique(
            np.concatenate(
                [np.zeros(0, DIGEST), *(tensors[0].reshape(-1).view(DIGEST) for tensors in self._read("md5"))]
            )
        )

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(md5 (n,) S16, vectors (n, d) float16) block by block; a digest may occur in more than one."""
        for md5, vectors in self._read("md5", "vectors"):
            yield md5.reshape(-1).view(DIGEST), vectors

    def _read(self, *names: str) -> Iterator[list[np.ndarray]]:
        """Block by block. A damaged block is removed with a warning; its tiles are no longer cached."""
        for block in sorted(self.folder.glob("*.safetensors")):
            if (data := read_intact(block)) is not None:
                tensors = load(data)
                yield [tensors[name] for name in names]


def read_digests(index: Path) -> np.ndarray:
    """(N,) S16: the content digest of each row of an index, read in batches to save memory."""
    batches = pq.ParquetFile(index).iter_batches(columns=["content_md5"])
    return np.concatenate([np.zeros(0, DIGEST), *(digests(batch.column(0).to_pylist()) for batch in batches)])
