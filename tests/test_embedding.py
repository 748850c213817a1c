"""Vectors are of the tiles that were scanned; the stream gives them in order and leaves no thread behind."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.shards import ShardCache
from rsprune_dagster.pruning.encoders.embedding import ahead, embed_stream
from rsprune_dagster.pruning.encoders.encoder import Encoder, load_encoder
from rsprune_dagster.pruning.encoders.vectors import open_vectors
from rsprune_dagster.stages.embeddings import Embedder, TileTable, embed
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.utils.progress import silent


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("descriptor", image_size_px=64)


def tiles(n_tiles: int, seed: int = 0) -> list[np.ndarray]:
    """Noise of several sizes."""
    rng = np.random.default_rng(seed)
    sides = rng.choice([40, 64, 70], size=(n_tiles, 2))
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sides]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "ahead"]


def test_stream_equals_the_encoder(encoder: Encoder) -> None:
    whole = tiles(50)
    batches = [whole[:7], whole[7:8], [], whole[8:50]]
    vectors = list(embed_stream(iter(batches), encoder))
    assert [len(found) for found in vectors] == [7, 1, 0, 42]
    assert np.array_equal(np.concatenate(vectors), encoder.embed(whole))


@pytest.mark.parametrize("n_before", [0, 1, 9])
def test_an_error_of_the_source_comes_after_what_was_ready(encoder: Encoder, n_before: int) -> None:
    def failing() -> Iterator[list[np.ndarray]]:
        for seed in range(n_before):
            yield tiles(1, seed)
        raise OSError("disk gone")

    found: list[np.ndarray] = []
    with pytest.raises(OSError, match="disk gone"):
        found.extend(embed_stream(failing(), encoder, prefetch=2))
    assert len(found) == n_before
    assert not threads()


def test_closing_early_stops_the_thread_and_closes_the_source(encoder: Encoder) -> None:
    closed = threading.Event()

    def endless() -> Iterator[list[np.ndarray]]:
        try:
            while True:
                yield tiles(2)
        finally:
            closed.set()

    stream = embed_stream(endless(), encoder, prefetch=1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert not threads()


def test_an_error_of_the_reader_stops_the_thread() -> None:
    with pytest.raises(ZeroDivisionError), ahead(iter(range(1000)), 2) as numbers:
        next(numbers)
        raise ZeroDivisionError
    assert not threads()


def test_no_more_than_the_bound_is_made_ahead() -> None:
    made = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with ahead(numbers(), 3) as ready:
        assert next(ready) == 0
        time.sleep(0.3)
        assert len(made) <= 1 + 3 + 1
        assert list(ready) == list(range(1, 100))


def test_the_source_runs_beside_the_reader() -> None:
    def slow() -> Iterator[int]:
        for number in range(10):
            time.sleep(0.03)
            yield number

    started = time.monotonic()
    with ahead(slow(), 2) as numbers:
        for _ in numbers:
            time.sleep(0.03)
    assert time.monotonic() - started < 0.55  # one after the other it takes 0.6 s


def test_a_tile_that_changed_after_its_scan_gets_no_vector_under_its_old_hash(encoder: Encoder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, tile in enumerate(tiles(6)):
        Image.fromarray(tile).save(corpus / f"{number}.png")
    scanned = scanned_corpus(corpus, tmp_path / "scanned")
    Image.fromarray(tiles(1, seed=1)[0]).save(corpus / "3.png")
    embedder = Embedder(encoder, ReadOptions(), tmp_path / "cache", 1, 1)
    targets = tmp_path / "embedded" / "index.parquet", tmp_path / "embedded" / "vectors"
    with pytest.raises(RunError, match=r"^3.png is not what it was when the corpus was scanned \(changed.*: run again"):
        embed(embedder, scanned, *targets, "test")
    embed(embedder, scanned_corpus(corpus, tmp_path / "again"), *targets, "test")
    vectors = open_vectors(targets[1]).read(0, 6)
    seen = [np.asarray(Image.open(corpus / name)) for name in tile_ids(tmp_path / "embedded")]
    assert np.array_equal(vectors, encoder.embed(seen).astype(np.float16).astype(np.float32))


def scanned_corpus(corpus: Path, folder: Path) -> TileTable:
    folder.mkdir()
    scanner = Scanner(ReadOptions(), 8, ShardCache(corpus.parent / "cache"), 1, silent)
    scan([str(corpus)], folder, scanner, labelled=False, label="test")
    return TileTable("SELECT * FROM manifest", {"manifest": folder / "manifest.parquet"})


def tile_ids(folder: Path) -> list[str]:
    return pq.read_table(folder / "index.parquet").column("tile_id").to_pylist()  # type: ignore[no-any-return]
