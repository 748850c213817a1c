"""What each check looks at: folders, parameters and the past, handed to the library's verdicts.

Heavy imports are in the bodies, as in the assets: loading the definitions imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rsprune_dagster.params import CheckParams, ClusteringParams
from rsprune_dagster.resources.asset_store import AssetStore
from rsprune_dagster.resources.past import Past

if TYPE_CHECKING:
    from rsprune_dagster.evaluation.gates import Told
    from rsprune_dagster.pruning.checks.vectors import Lengths
    from rsprune_dagster.pruning.checks.verdict import Verdict


@dataclass(frozen=True)
class Case:
    """What the checks of one asset look at."""

    store: AssetStore
    past: Past
    params: CheckParams
    clustering: ClusteringParams
    max_scene_loss: float
    workers: int

    def __getitem__(self, asset: str) -> Path:
        """The asset's folder. RunError: it was not materialized."""
        return self.store.folder(asset)

    @cached_property
    def lengths(self) -> "Lengths":
        """Of the vectors, which are read once for two checks."""
        from rsprune_dagster.pruning.checks.vectors import measure

        return measure(self["embeddings"], norm_tolerance=self.params.norm_tolerance)


def unique_ids(asset: str) -> Callable[[Case], "Verdict"]:
    def judge(case: Case) -> "Verdict":
        from rsprune_dagster.pruning.checks import corpus

        return corpus.unique_ids(case[asset])

    return judge


def readable(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import corpus

    return corpus.readable(case["raw_corpus"], max_quarantined_fraction=case.params.max_quarantined_fraction)


def read_as_asked(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import corpus

    return corpus.read_as_asked(case["raw_corpus"])


def all_read(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import corpus

    return corpus.all_read(case["raw_corpus"])


def not_shrunken(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import corpus

    n_before = case.past.tiles_of_last_subset()
    return corpus.not_shrunken(case["raw_corpus"], n_before, max_shrink_fraction=case.params.max_shrink_fraction)


def scenes_large_enough(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import corpus

    return corpus.scenes_large_enough(case["reference_scenes"])


def entropy_in_range(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import corpus

    return corpus.entropy_in_range(case["raw_corpus"], case["entropy_scores"])


def no_scene_erased(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import corpus

    return corpus.no_scene_erased(case["reference_scenes"], case["entropy_scores"], max_scene_loss=case.max_scene_loss)


def embedded_once(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import vectors

    return vectors.embedded_once(case["entropy_scores"], case["embeddings"])


def finite(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import vectors

    return vectors.finite(case.lengths)


def unit_norms(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import vectors

    return vectors.unit_norms(case.lengths, norm_tolerance=case.params.norm_tolerance)


def assigned_once(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import clusters

    return clusters.assigned_once(case["embeddings"], case["scene_clusters"])


def cluster_sizes(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import clusters

    return clusters.cluster_sizes(case["scene_clusters"], max_cluster_fraction=case.params.max_cluster_fraction)


def tells_scenes_apart(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import clusters

    return clusters.tells_scenes_apart(case["scene_clusters"], min_nmi=case.params.min_nmi)


def no_drift(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import clusters

    return clusters.no_drift(case["scene_clusters"], case.clustering)


def conservation(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import subset

    return subset.conservation(case["raw_corpus"], case["pruned_subset"])


def exact_count(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import subset

    return subset.exact_count(case["raw_corpus"], case["pruned_subset"])


def no_copies(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import subset

    return subset.no_copies(case["pruned_subset"])


def near_duplicates_left(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import subset

    limit = case.params.max_near_duplicate_fraction
    folders = case["raw_corpus"], case["pruned_subset"]
    return subset.near_duplicates_left(*folders, max_near_duplicate_fraction=limit, workers=case.workers)


def apart_from_reference(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import subset

    return subset.apart_from_reference(case["reference_scenes"], case["pruned_subset"])


def scene_coverage(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import coverage

    now = coverage.kept_by_scene(case["pruned_subset"])
    before = case.past.scenes_of_last_subset(coverage.strata_of(case["scene_clusters"]))
    return coverage.scene_coverage(now, before, max_scene_shift=case.params.max_scene_shift)


def fresh(case: Case) -> "Verdict":
    from rsprune_dagster.pruning.checks import coverage

    age_s, stale = case.past.age_s("pruned_subset"), case.past.stale_inputs("pruned_subset")
    return coverage.fresh(age_s, stale, max_age_days=case.params.max_age_days)


def training_went_well(case: Case) -> "Verdict":
    from rsprune_dagster.evaluation import gates

    return gates.training_went_well(case["diffusion_checkpoint"])


def no_leakage(case: Case) -> "Verdict":
    from rsprune_dagster.evaluation import gates

    return gates.no_leakage(_evaluation(case))


def not_worse_than_champion(case: Case) -> "Verdict":
    from rsprune_dagster.evaluation import gates

    files = case.past.champion()
    champion = gates.read_evaluation(files) if files else None
    return gates.not_worse_than_champion(_evaluation(case), champion, max_fid_loss=case.params.max_fid_loss)


def counts_agree(case: Case) -> "Verdict":
    from rsprune_dagster.report import checks

    return checks.counts_agree(case["pruning_report"], case["pruned_subset"])


def self_contained(case: Case) -> "Verdict":
    from rsprune_dagster.report import checks

    return checks.self_contained(case["pruning_report"])


def _evaluation(case: Case) -> "Told":
    from rsprune_dagster.evaluation import gates

    return gates.read_evaluation({path.name: path for path in case["evaluation_metrics"].iterdir()})
