"""Dagster resources: where assets lie, and with what the work is done."""

import os
from pathlib import Path

import dagster as dg
from pydantic import Field

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.tracking.asset_store import remove_staging
from rsprune_dagster.utils.atomic_write import remove_drafts
from rsprune_dagster.utils.progress import Progress, lines, terminal


class Store(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The folders of the assets, and the state that comes with them."""

    assets: str = Field(description="Holds a folder per asset")
    state: str = Field(description="Holds the run log, and the cache of finished work that later runs start from")

    @classmethod
    def of(cls, layout: Layout) -> "Store":
        return cls(assets=str(layout.assets), state=str(layout.state))

    def open(self) -> Layout:
        """The layout, cleared of what killed processes left half-written."""
        layout = Layout(Path(self.assets), Path(self.state))
        remove_staging(layout)
        remove_drafts(layout.cache)
        return layout


class Compute(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Threads, device, seed, and where progress is shown."""

    workers: int = Field(description="Threads over shards; 0: one per core")
    device: str = Field(description="auto, cpu, cuda or cuda:N")
    seed: int = Field(description="Random seed")
    progress_on: str = Field(default="log", description="log: lines in the run's log; terminal: a bar")

    def for_record(self) -> dict[str, int]:
        """The values that can change a result: the seed."""
        return {"seed": self.seed}

    def n_workers(self) -> int:
        """Threads over shards; 0 asks for one per core."""
        return self.workers or len(os.sched_getaffinity(0))

    def progress(self, context: dg.AssetExecutionContext) -> Progress:
        """A bar in the terminal, or lines in the run's log."""
        return terminal if self.progress_on == "terminal" else lines(context.log.info)

    def has_gpu(self) -> bool:
        """Whether the clustering may use a GPU: there is one, and `device` is not cpu."""
        if self.device == "cpu":
            return False
        from rsprune_dagster.utils.device import resolve_device

        return resolve_device(self.device).type == "cuda"
