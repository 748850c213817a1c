"""What a model made of the subset: the training, its evaluation, the comparison with other subsets; where there are."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rsprune_dagster.report.page.blocks import Block, Section, Text
from rsprune_dagster.report.page.evaluated import evaluation_blocks
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.study import study_blocks
from rsprune_dagster.report.page.training import training_blocks

MAKERS: Mapping[str, Callable[[Path], list[Block]]] = {
    "pruning_study": study_blocks,
    "diffusion_checkpoint": training_blocks,
    "evaluation_metrics": evaluation_blocks,
}
ABSENT = {
    "pruning_study": "It has not been compared with other subsets at equal training compute yet (pruning_study).",
    "diffusion_checkpoint": "No model has been trained on this subset yet (diffusion_checkpoint).",
    "evaluation_metrics": "Samples of a model have not been evaluated yet (evaluation_metrics).",
}


def learned_section(folders: Folders) -> Section:
    """A part for each of the later assets that is there, then what is not there."""
    found = {asset: folders.later(asset) for asset in MAKERS}
    blocks = [block for asset, folder in found.items() if folder for block in MAKERS[asset](folder)]
    blocks += [Text(ABSENT[asset], absent=True) for asset, folder in found.items() if not folder]
    return Section("learned", "What a model learns from it", "A subset is as good as what is learned from it.", blocks)
