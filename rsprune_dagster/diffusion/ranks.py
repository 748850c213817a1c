"""Several processes or GPUs: each works on its share of every batch, and all hold the same weights.

`accelerate launch` starts them; without it there is one. A batch need not be a multiple of the processes: gradients
are averaged over the processes, so each row's loss is weighted by the processes over the rows of the whole batch.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ranks:
    """This process among `n`."""

    number: int
    n: int

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def rows(self, n_rows: int) -> slice:
        """The rows of a batch of `n_rows` that this process works on. All draw the same batch: no draw depends on `n`.

        A process without rows of its own works on the first, with no weight: all take part in averaging gradients.
        """
        return slice(self.number, None, self.n) if self.number < n_rows else slice(0, 1)

    def weight(self, n_part: int, n_rows: int) -> float:
        """The weight of the mean loss over `n_part` of this process's rows of a batch of `n_rows`.

        The mean over processes of their weighted losses is the mean over the rows of the batch.
        """
        return n_part * self.n / n_rows if self.number < n_rows else 0.0

    def wrapped(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model, with gradients averaged over the processes."""
        return model if self.n == 1 else torch.nn.parallel.DistributedDataParallel(model)

    def averaging(self, model: torch.nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """For a pass through a `wrapped` model: only its `last` one in a step averages the sums of gradients.

        So processes may take unequal numbers of passes.
        """
        return nullcontext() if self.n == 1 or last else model.no_sync()  # type: ignore[operator]

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a scalar over the processes."""
        if self.n > 1:
            torch.distributed.all_reduce(value)
        return float(value) / self.n

    def any(self, flag: bool, device: str) -> bool:
        """Whether the flag is raised in any of the processes: what ends one has to end all, after the same step."""
        if self.n == 1:
            return flag
        raised = torch.tensor(int(flag), device=device)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX)
        return bool(raised)

    def wait(self) -> None:
        """For the others."""
        if self.n > 1:
            torch.distributed.barrier()


ALONE = Ranks(0, 1)


def launched(device: str) -> tuple[Ranks, str]:
    """This process among those that `accelerate launch` started, and its device.

    Args:
        device: cpu, or anything else for the GPU that the launcher gave this process.
    """
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    return Ranks(state.process_index, state.num_processes), str(state.device)
