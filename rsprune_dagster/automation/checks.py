"""Asset checks: what `pruning/checks` and `evaluation/gates` say of the folders, one step for each asset.

A blocking check that fails ends its step: nothing downstream is made, in the web UI, on a schedule or on the command
line. Adding a check is a line in `CHECKS`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import dagster as dg

from rsprune_dagster.assets.failures import said_plainly
from rsprune_dagster.automation import judges
from rsprune_dagster.automation.judges import Case
from rsprune_dagster.params import Params
from rsprune_dagster.resources.lineage import Lineage
from rsprune_dagster.resources.past import Past
from rsprune_dagster.resources.settings import Compute, Store

if TYPE_CHECKING:
    from rsprune_dagster.pruning.checks.verdict import Verdict


@dataclass(frozen=True)
class Check:
    """A check of an asset. One that does not block tells, and lets the run go on."""

    asset: str
    name: str
    description: str
    judge: Callable[[Case], "Verdict"]
    blocking: bool = False
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN

    def spec(self) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(self.name, asset=self.asset, description=self.description, blocking=self.blocking)

    def result(self, case: Case) -> dg.AssetCheckResult:
        """The verdict as Dagster shows it."""
        from rsprune_dagster.report.markdown import table

        verdict = self.judge(case)
        shown = (
            {"table": dg.MetadataValue.md(table([str(name) for name in verdict.table[0]], verdict.table[1:]))}
            if verdict.table
            else {}
        )
        return dg.AssetCheckResult(
            passed=verdict.passed,
            asset_key=self.asset,
            check_name=self.name,
            severity=dg.AssetCheckSeverity.ERROR if self.blocking else self.severity,
            description=verdict.sentence,
            metadata={**verdict.figures, **shown},
        )


def build_checks(params: Params, assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetChecksDefinition]:
    """The checks of these assets, a step for each asset that has any."""
    names = [key.to_user_string() for made in assets for key in made.keys]
    of = {name: [check for check in CHECKS if check.asset == name] for name in names}
    return [_step(name, checks, params) for name, checks in of.items() if checks]


def _step(asset: str, checks: Sequence[Check], params: Params) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=f"checks_of_{asset}",
        description=f"What must hold of {asset} before anything is made from it.",
        specs=[check.spec() for check in checks],
        can_subset=True,
    )
    def checks_of_asset(
        context: dg.AssetCheckExecutionContext, store: Store, compute: Compute, lineage: Lineage
    ) -> Iterator[dg.AssetCheckResult]:
        asked = {key.name for key in context.selected_asset_check_keys}
        opened = store.open()
        past = Past.of(lineage, opened)
        case = Case(opened, past, params.checks, params.clustering, params.entropy.max_scene_loss, compute.n_workers())
        for check in checks:
            if check.name in asked:
                with said_plainly():
                    found = check.result(case)
                say = context.log.info if found.passed else context.log.warning
                say(f"{asset}/{check.name}: {found.description}")
                yield found

    return checks_of_asset


CHECKS: Final[Sequence[Check]] = (
    Check("raw_corpus", "unique_ids", "Every tile id is there once.", judges.unique_ids("raw_corpus"), blocking=True),
    Check("raw_corpus", "readable", "Few tiles are quarantined.", judges.readable),
    Check("raw_corpus", "read_as_asked", "Bands and value range were of use for some tile.", judges.read_as_asked),
    Check("raw_corpus", "all_read", "No file was passed by that may hold tiles.", judges.all_read),
    Check(
        "raw_corpus",
        "not_shrunken",
        "The corpus has not lost a large part since the last subset was made from it.",
        judges.not_shrunken,
        blocking=True,
    ),
    Check(
        "reference_scenes",
        "unique_ids",
        "Every tile id is there once.",
        judges.unique_ids("reference_scenes"),
        blocking=True,
    ),
    Check("reference_scenes", "scenes_large_enough", "Scenes show how they vary.", judges.scenes_large_enough),
    Check(
        "entropy_scores",
        "entropy_in_range",
        "Every tile has an entropy of 0 to 8 bits, and none is NaN.",
        judges.entropy_in_range,
        blocking=True,
    ),
    Check(
        "entropy_scores", "no_scene_erased", "The threshold erases no scene of the reference.", judges.no_scene_erased
    ),
    Check(
        "embeddings",
        "embedded_once",
        "Every informative tile has one vector, copies share theirs.",
        judges.embedded_once,
        blocking=True,
    ),
    Check("embeddings", "finite", "No vector holds NaN or infinity.", judges.finite, blocking=True),
    Check("embeddings", "unit_norms", "Every vector has length 1.", judges.unit_norms, blocking=True),
    Check(
        "scene_clusters", "assigned_once", "Every vector is in one known cluster.", judges.assigned_once, blocking=True
    ),
    Check("scene_clusters", "cluster_sizes", "No cluster is empty or holds most tiles.", judges.cluster_sizes),
    Check(
        "scene_clusters",
        "tells_scenes_apart",
        "Clusters recover the reference's own scenes.",
        judges.tells_scenes_apart,
    ),
    Check("scene_clusters", "no_drift", "The tiles are like those that trained the centroids.", judges.no_drift),
    Check(
        "pruned_subset", "conservation", "Every tile seen is in the ledger once.", judges.conservation, blocking=True
    ),
    Check(
        "pruned_subset", "exact_count", "As many tiles are kept as were asked for.", judges.exact_count, blocking=True
    ),
    Check("pruned_subset", "no_copies", "No two kept tiles have the same bytes.", judges.no_copies, blocking=True),
    Check(
        "pruned_subset", "near_duplicates_left", "Hardly a kept tile is nearly another.", judges.near_duplicates_left
    ),
    Check("pruned_subset", "apart_from_reference", "No kept tile is a reference tile.", judges.apart_from_reference),
    Check(
        "pruned_subset", "scene_coverage", "Which scenes gained and lost since the last version.", judges.scene_coverage
    ),
    Check("pruned_subset", "fresh", "Made from what lies there now, and not too long ago.", judges.fresh),
    Check(
        "diffusion_checkpoint",
        "training_went_well",
        "The loss is finite and fell.",
        judges.training_went_well,
        blocking=True,
    ),
    Check(
        "evaluation_metrics",
        "no_leakage",
        "No evaluation tile was trained on, nor nearly.",
        judges.no_leakage,
        blocking=True,
    ),
    Check(
        "evaluation_metrics",
        "not_worse_than_champion",
        "The Fréchet distance is not worse than the champion's by more than the margin.",
        judges.not_worse_than_champion,
        blocking=True,
    ),
    Check("pruning_report", "counts_agree", "The page tells of the tiles that lie there.", judges.counts_agree),
    Check("pruning_report", "self_contained", "The page needs nothing beside it.", judges.self_contained),
)
