"""The jobs that a person starts by name."""

import dagster as dg

PRUNING_GROUPS = ("corpus", "pruning")

prune = dg.define_asset_job(
    "prune",
    selection=dg.AssetSelection.groups(*PRUNING_GROUPS),
    tags={"dagster/max_runtime": 2 * 24 * 3600},  # seconds; 10^8 tiles take a day
    description="Cut the corpus to the tiles worth training on: everything from the scan to the pruned subset.",
)

train = dg.define_asset_job(
    "train",
    selection=dg.AssetSelection.groups("training"),
    description="Train the diffusion model on the current pruned subset.",
)

evaluate = dg.define_asset_job(
    "evaluate",
    selection=dg.AssetSelection.assets("evaluation_metrics"),
    tags={"dagster/max_runtime": 24 * 3600},  # 10^5 samples of a large model take hours
    description="Evaluate the current checkpoint on held-out tiles, and decide on the champion.",
)

downstream = dg.define_asset_job(
    "downstream",
    selection=dg.AssetSelection.groups("downstream"),
    description="Fine-tune the current checkpoint for super-resolution and semantic image synthesis, and measure both.",
)

report = dg.define_asset_job(
    "report",
    selection=dg.AssetSelection.assets("pruning_report"),
    tags={"dagster/max_runtime": 6 * 3600},  # minutes, but the other seeds rank the candidates again
    description="Write the report on the current assets.",
)

everything = dg.define_asset_job(
    "everything",
    selection=dg.AssetSelection.all(),
    description="From the scan of the corpus to the report on the trained model.",
)

JOBS = [prune, train, evaluate, downstream, report, everything]
