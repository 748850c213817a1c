"""Vectors are kept by content, block by block."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsprune_dagster.pruning.encoders.embedding_cache import DIGEST, EmbeddingCache, digests, find

HEXES = st.lists(st.integers(0, 10_000).map(lambda i: hashlib.md5(str(i).encode()).hexdigest()), unique=True)


def some(n: int, start: int = 0) -> np.ndarray:
    return digests([hashlib.md5(str(i).encode()).hexdigest() for i in range(start, start + n)])


@given(HEXES)
def test_digests_sort_as_their_hexadecimal_strings(hexes: list[str]) -> None:
    assert np.array_equal(np.sort(digests(hexes)), digests(sorted(hexes)))


@given(HEXES, HEXES)
def test_find_is_a_lookup(wanted: list[str], among: list[str]) -> None:
    listed = sorted(among)
    expected = [listed.index(one) if one in listed else -1 for one in wanted]
    assert find(digests(wanted), digests(listed)).tolist() == expected


def test_digests_with_zero_bytes_at_either_end_stay_apart() -> None:
    edge = digests(sorted(["00" * 16, "00" * 15 + "01", "01" + "00" * 15, "ff" * 16]))
    assert len(np.unique(edge)) == 4
    assert find(edge, edge).tolist() == [0, 1, 2, 3]


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    vectors = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float16)
    cache.add(some(20), vectors[:20])
    cache.add(some(15, 15), vectors[15:])
    assert np.array_equal(cache.known(), np.sort(some(30)))
    for md5, values in cache.blocks():
        assert np.array_equal(values, vectors[[some(30).tolist().index(one) for one in md5.tolist()]])


def test_an_empty_cache_knows_nothing(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "nowhere")
    assert cache.known().dtype == DIGEST
    assert len(cache.known()) == 0
    assert list(cache.blocks()) == []


@pytest.mark.parametrize("read", [EmbeddingCache.known, lambda cache: list(cache.blocks())])
def test_a_damaged_block_is_forgotten_not_trusted(
    tmp_path: Path, read: Callable[[EmbeddingCache], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Cut off, emptied, or with a bit flipped: every 997th, so in the header, the digests and the signs of vectors."""
    cache = EmbeddingCache(tmp_path)
    cache.add(some(5), np.random.default_rng(0).normal(size=(5, 400)))
    cache.add(some(5, 100), np.ones((5, 4)))
    broken = sorted(tmp_path.iterdir())[0]
    whole = broken.read_bytes()
    flips = [
        whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]
        for bit in range(0, 8 * len(whole), 997)
    ]
    for damaged in (whole[:-10], b"", bytes(len(whole)), *flips):
        broken.write_bytes(damaged)
        caplog.clear()
        read(cache)
        assert not broken.exists()
        assert [record.getMessage() for record in caplog.records] == [f"{broken} is damaged: its work is done again"]
        assert len(cache.known()) == 5
