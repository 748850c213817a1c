"""The number of CPU threads of torch: sums differ in their last bits with another number."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def resume_threads(n_recorded: int, n_processes: int = 1) -> int:
    """The number of threads to resume a training that started with `n_recorded`; 0: a new or unrecorded one.

    The recorded number if each process has enough cores, so that the result has the same bits; else torch's default,
    since more threads than cores are slow.
    """
    own = torch.get_num_threads()
    return n_recorded if 0 < n_recorded <= max(own, len(os.sched_getaffinity(0)) // n_processes) else own


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Set torch's number of threads to `n` in this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
