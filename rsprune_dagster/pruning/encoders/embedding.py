"""Embed a stream of tiles: the next batches are decoded and resized while the encoder processes the current one."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

import numpy as np

from rsprune_dagster.pruning.encoders.encoder import Prepared, TileEncoder

T = TypeVar("T")

POLL_S = 0.05
"""Interval at which a waiting thread checks whether it should stop."""


def embed_stream(
    batches: Iterator[Sequence[np.ndarray]], encoder: TileEncoder, *, prefetch: int = 4
) -> Iterator[np.ndarray]:
    """Unit vectors, float32 (n, d), of each batch of RGB tiles, uint8 (h, w, 3) of any sizes, in order.

    `batches` runs in its own thread, at most `prefetch` + 2 batches ahead; its exceptions are raised here. Batch sizes
    that are multiples of `encoders.FORWARD_TILES` avoid padding. Close or exhaust the stream to stop the thread.
    """
    with ahead(prepared(batches, encoder), prefetch) as ready:
        for batch in ready:
            yield encoder.embed_prepared(batch)


def prepared(batches: Iterator[Sequence[np.ndarray]], encoder: TileEncoder) -> Iterator[Prepared]:
    """Every batch as the encoder's input; `batches` is closed with this generator."""
    try:
        for batch in batches:
            yield encoder.prepare(batch)
    finally:
        if isinstance(batches, Generator):
            batches.close()


@contextmanager
def ahead(items: Iterator[T], n_ahead: int) -> Iterator[Iterator[T]]:
    """Run `items` in a thread that is at most `n_ahead` items ahead; leaving the context stops and joins it."""
    producer = PrefetchThread(items, n_ahead)
    producer.thread.start()
    try:
        yield producer.results()
    finally:
        producer.stop.set()
        producer.thread.join()


class PrefetchThread(Generic[T]):
    """A thread that fills a bounded queue, until the items end, raise an error, or it is stopped."""

    def __init__(self, items: Iterator[T], n_ahead: int) -> None:
        self.items = items
        self.queue: Queue[T] = Queue(max(1, n_ahead))
        self.stop = Event()
        self.finished = Event()
        self.error: BaseException | None = None
        self.thread = Thread(target=self._run, name="ahead", daemon=True)

    def results(self) -> Iterator[T]:
        """The items in order; then raises the thread's error, if any."""
        while True:
            finished = self.finished.is_set()  # read before the queue, so that the last items are not lost
            try:
                yield self.queue.get(timeout=0 if finished else POLL_S)
            except Empty:
                if finished:
                    break
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            for item in self.items:
                if not self._put(item):
                    break
            if isinstance(self.items, Generator):
                self.items.close()
        except BaseException as error:  # re-raised in the caller's thread
            self.error = error
        finally:
            self.finished.set()

    def _put(self, item: T) -> bool:
        while not self.stop.is_set():
            try:
                self.queue.put(item, timeout=POLL_S)
            except Full:
                continue
            return True
        return False
