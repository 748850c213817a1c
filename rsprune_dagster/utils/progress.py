"""Progress with an estimate of the time left, for a terminal or a Dagster run log; or silent."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rsprune_dagster.utils.terminal import note


class Progress(Protocol):
    """Opens a progress bar; call what it yields with the number of steps done since the last call."""

    def __call__(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]: ...


@contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """No output."""
    yield lambda n: None


def lines(write: Callable[[str], None], every_s: float = 10.0) -> Progress:
    """Progress as lines, at most one per `every_s` seconds: `embeddings: 4,096 of 15,300 (27 %), 410/s, 0:27 left`."""

    @contextmanager
    def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
        started = said = time.monotonic()
        done = 0

        def advance(n: int) -> None:
            nonlocal done, said
            done += n
            now = time.monotonic()
            if now - said >= every_s and 0 < done < total:
                said = now
                write(estimate(label, done, total, now - started))

        yield advance
        wall_s = time.monotonic() - started
        if wall_s >= every_s:
            write(f"{label}: {done:,} done in {wall_s:.0f} s, {done / wall_s:,.0f}/s")

    return bar


def estimate(label: str, done: int, total: int, wall_s: float) -> str:
    """The sentence for `done` of `total` steps after `wall_s` seconds."""
    rate = done / max(wall_s, 1e-9)
    minutes, seconds = divmod(round((total - done) / rate), 60)
    return f"{label}: {done:,} of {total:,} ({done / total:.0%}), {rate:,.0f}/s, {minutes}:{seconds:02d} left"


@contextmanager
def terminal(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A tqdm bar on standard error; lines if that is not a terminal; nothing if `total` is 0."""
    if total == 0:
        with silent(label, total) as advance:
            yield advance
    elif sys.stderr.isatty():
        with _bar(label, total) as advance:
            yield advance
    else:
        note(f"{label}: {total:,} to do")
        with lines(note)(label, total) as advance:
            yield advance


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="", unit_scale=True, mininterval=0.5, dynamic_ncols=True) as bar:

        def advance(n: int) -> None:
            bar.update(n)

        yield advance
