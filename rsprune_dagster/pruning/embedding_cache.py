"""Vectors already computed, by the content they are of: a moved file or a new threshold costs only what is new.

A block is a sealed safetensors file with one chunk of work: `md5` (n, 16) uint8, rising, `vectors` (n, d) float16.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from rsprune_dagster.corpus.seal import KEY, UNSEALED, read_whole, sealed
from rsprune_dagster.corpus.shards import written_whole

DIGEST = np.dtype("S16")
"""A raw md5. numpy orders S16 by bytes, as the hexadecimal strings are ordered."""


def digests(content_md5: list[str]) -> np.ndarray:
    """(n,) S16 from hexadecimal md5 strings, in their order."""
    return np.frombuffer(bytes.fromhex("".join(content_md5)), dtype=DIGEST)


def find(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Positions of `wanted` (n,) S16 in the rising `among` (m,) S16, -1 where absent: (n,) int64."""
    if not len(among):
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
    return np.where(among[at] == wanted, at, -1)


@dataclass(frozen=True)
class EmbeddingCache:
    """The blocks of one encoder; its folder is named by the hash of all that decides a vector but the tile."""

    folder: Path

    def add(self, md5: np.ndarray, vectors: np.ndarray) -> None:
        """Keep a chunk, whole or not at all: (n,) S16 distinct digests and (n, d) vectors, in any order."""
        order = np.argsort(md5)
        raw = np.ascontiguousarray(md5[order]).view(np.uint8).reshape(-1, DIGEST.itemsize)
        tensors: dict[str, np.ndarray] = {
            "md5": raw,
            "vectors": np.ascontiguousarray(vectors[order], dtype=np.float16),
        }
        with written_whole(self.folder / f"{hashlib.sha256(raw.tobytes()).hexdigest()}.safetensors") as draft:
            draft.write_bytes(sealed(save(tensors, {KEY: UNSEALED})))  # save_file hides that the disk is full

    def known(self) -> np.ndarray:
        """(m,) S16, rising and distinct: what there are vectors of."""
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
        """Block by block. A damaged block is removed, with a warning: its tiles have no vectors any more."""
        for block in sorted(self.folder.glob("*.safetensors")):
            if (data := read_whole(block)) is not None:
                tensors = load(data)
                yield [tensors[name] for name in names]
