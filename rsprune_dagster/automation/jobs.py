"""The jobs one starts by name."""

import dagster as dg

PRUNING_GROUPS = ("corpus", "pruning")

prune = dg.define_asset_job(
    "prune",
    selection=dg.AssetSelection.groups(*PRUNING_GROUPS),
    description="Cut the corpus to the tiles worth training on: everything from the scan to the pruned subset.",
)

JOBS = [prune]
