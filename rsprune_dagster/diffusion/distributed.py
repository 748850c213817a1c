"""Data-parallel training: each process handles its share of every batch; all have the same weights.

`accelerate launch` starts the processes; without it there is one. The batch size need not be a multiple of the number
of processes: gradients are averaged over processes, so losses are weighted by (processes / rows of the whole batch).
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ProcessGroup:
    """This process and the number of processes `n`."""

    number: int
    n: int

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def rows(self, n_rows: int) -> slice:
        """This process's rows of a batch of `n_rows`. All processes draw the same batch, independent of `n`.

        A process without own rows gets the first row with weight 0, since all must take part in averaging gradients.
        """
        return slice(self.number, None, self.n) if self.number < n_rows else slice(0, 1)

    def weight(self, n_part: int, n_rows: int) -> float:
        """The weight of the mean loss over `n_part` rows of this process in a batch of `n_rows`.

        The mean over processes of their weighted losses is the mean over the rows of the batch.
        """
        return n_part * self.n / n_rows if self.number < n_rows else 0.0

    def wrapped(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model wrapped so that gradients are averaged over processes."""
        return model if self.n == 1 else torch.nn.parallel.DistributedDataParallel(model)

    def averaging(self, model: torch.nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Context of a pass through a `wrapped` model: only the `last` pass of a step averages the gradients.

        So processes may have different numbers of passes.
        """
        return nullcontext() if self.n == 1 or last else model.no_sync()  # type: ignore[operator]

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a scalar over the processes."""
        if self.n > 1:
            torch.distributed.all_reduce(value)
        return float(value) / self.n

    def any(self, flag: bool, device: str) -> bool:
        """Whether the flag is set in any process, so that all processes stop after the same step."""
        if self.n == 1:
            return flag
        raised = torch.tensor(int(flag), device=device)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX)
        return bool(raised)

    def wait(self) -> None:
        """Wait for all processes (barrier)."""
        if self.n > 1:
            torch.distributed.barrier()


SINGLE_PROCESS = ProcessGroup(0, 1)


def process_group(device: str) -> tuple[ProcessGroup, str]:
    """This process's rank among those started by `accelerate launch`, and its device.

    Args:
        device: cpu; any other value: the GPU assigned by the launcher.
    """
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    return ProcessGroup(state.process_index, state.num_processes), str(state.device)
