"""On how many threads of the processor torch computes: sums over them end in other last bits with another number."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def threads_for(n_recorded: int, n_processes: int = 1) -> int:
    """The threads that a training begun on `n_recorded` goes on with; 0: one that begins, or did not record them.

    As many as recorded where each process has so many cores, so that it goes on to the same bits. With fewer cores it
    takes what torch takes there: more threads than cores wait for each other.
    """
    own = torch.get_num_threads()
    return n_recorded if 0 < n_recorded <= max(own, len(os.sched_getaffinity(0)) // n_processes) else own


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Torch computes on `n` threads in this context, on as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
