"""Several processes or GPUs: each works on its share of every batch, and all hold the same weights.

`accelerate launch` starts them; without it there is one.
"""

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

    @property
    def rows(self) -> slice:
        """The rows of a batch that this process works on. All draw the same batch, so no draw depends on `n`."""
        return slice(self.number, None, self.n)

    def wrapped(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model, with gradients averaged over the processes."""
        return model if self.n == 1 else torch.nn.parallel.DistributedDataParallel(model)

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
