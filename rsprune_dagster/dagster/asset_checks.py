"""Asset checks: what must hold of each asset. A check is one decorated function that returns a verdict.

A blocking check that fails ends its run: nothing is made from its asset. Other checks warn. The checks of an asset run
in one step. The verdicts are computed by `pruning/checks`, `evaluation/checks` and `viz/checks`, which import
heavy libraries in their bodies: loading the definitions imports no torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.downstream import checks as fine_tuned
from rsprune_dagster.evaluation import checks as gates
from rsprune_dagster.pruning.checks import embeddings as vectors
from rsprune_dagster.pruning.checks import pruned_subset as subset
from rsprune_dagster.pruning.checks import raw_corpus as corpus
from rsprune_dagster.pruning.checks import scene_clusters as clusters
from rsprune_dagster.pruning.checks import scene_coverage as coverage
from rsprune_dagster.pruning.checks.verdict import Verdict
from rsprune_dagster.tracking.asset_history import AssetHistory
from rsprune_dagster.tracking.run_recorder import RunRecorder
from rsprune_dagster.viz.markdown import table


@dataclass(frozen=True)
class CheckContext:
    """The inputs of the checks of one asset: folders, parameters, history."""

    asset: str
    layout: Layout
    history: AssetHistory
    params: Params
    n_workers: int

    def __getitem__(self, asset: str) -> Path:
        """The folder of an asset. RunError: it was not materialized."""
        return self.layout.folder(asset)

    @cached_property
    def lengths(self) -> vectors.Lengths:
        """The lengths of the embeddings, which are read once for two checks."""
        return vectors.measure(self.layout, norm_tolerance=self.params.checks.norm_tolerance)

    @cached_property
    def evaluation(self) -> gates.StoredEvaluation:
        """The evaluation of the current checkpoint."""
        return gates.read_evaluation({path.name: path for path in self["evaluation_metrics"].iterdir()})


CheckFunction = Callable[[CheckContext], Verdict]


@dataclass(frozen=True)
class Check:
    """A check of one asset. One that does not block warns, and lets the run go on."""

    spec: dg.AssetCheckSpec
    function: CheckFunction

    def result(self, context: CheckContext) -> dg.AssetCheckResult:
        """The verdict as Dagster shows it."""
        verdict = self.function(context)
        metadata: dict[str, Any] = dict(verdict.figures)
        if verdict.table:
            header, *rows = verdict.table
            metadata["table"] = dg.MetadataValue.md(table([str(name) for name in header], rows))
        return dg.AssetCheckResult(
            passed=verdict.passed,
            asset_key=self.spec.asset_key,
            check_name=self.spec.name,
            severity=dg.AssetCheckSeverity.ERROR if self.spec.blocking else dg.AssetCheckSeverity.WARN,
            description=verdict.sentence,
            metadata=metadata,
        )


CHECKS: list[Check] = []
"""All checks, in the order of the pipeline."""


def asset_check(*assets: str, blocking: bool = False) -> Callable[[CheckFunction], CheckFunction]:
    """Make a function a check of these assets.

    The function's name is the check's name. The first line of its docstring is the check's description in Dagster.
    """

    def register(function: CheckFunction) -> CheckFunction:
        description = (function.__doc__ or "").partition("\n")[0]
        for asset in assets:
            spec = dg.AssetCheckSpec(function.__name__, asset=asset, description=description, blocking=blocking)
            CHECKS.append(Check(spec, function))
        return function

    return register


def build_checks(params: Params, assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetChecksDefinition]:
    """The checks of these assets, a step for each asset that has any."""
    steps = {key: [check for check in CHECKS if check.spec.asset_key == key] for made in assets for key in made.keys}
    return [_step(key.to_user_string(), checks, params) for key, checks in steps.items() if checks]


def _step(asset: str, checks: Sequence[Check], params: Params) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=f"checks_of_{asset}",
        description=f"What must hold of {asset} before anything is made from it.",
        specs=[check.spec for check in checks],
        can_subset=True,
    )
    def checks_of_asset(
        context: dg.AssetCheckExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> Iterator[dg.AssetCheckResult]:
        opened = store.open()
        checked = CheckContext(asset, opened, AssetHistory.of(recorder, opened), params, compute.n_workers())
        for check in checks:
            if check.spec.key in context.selected_asset_check_keys:
                with surface_user_errors():
                    found = check.result(checked)
                say = context.log.info if found.passed else context.log.warning
                say(f"{asset}/{check.spec.name}: {found.description}")
                yield found

    return checks_of_asset


@asset_check("raw_corpus", "reference_scenes", blocking=True)
def unique_ids(context: CheckContext) -> Verdict:
    """Every tile id is there once."""
    return corpus.unique_ids(context[context.asset])


@asset_check("raw_corpus")
def readable(context: CheckContext) -> Verdict:
    """Few tiles are quarantined."""
    limit = context.params.checks.max_quarantined_fraction
    return corpus.readable(context.layout, max_quarantined_fraction=limit)


@asset_check("raw_corpus")
def read_as_asked(context: CheckContext) -> Verdict:
    """`corpus.bands` and `corpus.value_range`, where given, applied to some tile."""
    return corpus.read_as_asked(context.layout)


@asset_check("raw_corpus")
def all_read(context: CheckContext) -> Verdict:
    """No ignored file may hold tiles."""
    return corpus.all_read(context.layout)


@asset_check("raw_corpus", blocking=True)
def not_shrunken(context: CheckContext) -> Verdict:
    """The corpus has not lost a large part since the last subset was made from it."""
    limit = context.params.checks.max_shrink_fraction
    return corpus.not_shrunken(context.layout, context.history.tiles_of_last_subset(), max_shrink_fraction=limit)


@asset_check("reference_scenes")
def scenes_large_enough(context: CheckContext) -> Verdict:
    """Every scene of the reference has enough tiles."""
    return corpus.scenes_large_enough(context.layout)


@asset_check("entropy_scores", blocking=True)
def entropy_in_range(context: CheckContext) -> Verdict:
    """Every tile has an entropy of 0 to 8 bits, and none is NaN."""
    return corpus.entropy_in_range(context.layout)


@asset_check("entropy_scores")
def no_scene_erased(context: CheckContext) -> Verdict:
    """The threshold erases no scene of the reference."""
    return corpus.no_scene_erased(context.layout)


@asset_check("embeddings", blocking=True)
def embedded_once(context: CheckContext) -> Verdict:
    """Every informative tile has one vector, copies share theirs."""
    return vectors.embedded_once(context.layout)


@asset_check("embeddings", blocking=True)
def finite(context: CheckContext) -> Verdict:
    """No vector holds NaN or infinity."""
    return vectors.finite(context.lengths)


@asset_check("embeddings", blocking=True)
def unit_norms(context: CheckContext) -> Verdict:
    """Every vector has length 1."""
    return vectors.unit_norms(context.lengths, norm_tolerance=context.params.checks.norm_tolerance)


@asset_check("scene_clusters", blocking=True)
def assigned_once(context: CheckContext) -> Verdict:
    """Every vector is in one known cluster."""
    return clusters.assigned_once(context.layout)


@asset_check("scene_clusters")
def cluster_sizes(context: CheckContext) -> Verdict:
    """No cluster is empty or holds most tiles."""
    return clusters.cluster_sizes(context.layout)


@asset_check("scene_clusters")
def tells_scenes_apart(context: CheckContext) -> Verdict:
    """Clusters recover the reference's own scenes."""
    return clusters.tells_scenes_apart(context.layout, min_nmi=context.params.checks.min_nmi)


@asset_check("scene_clusters")
def no_drift(context: CheckContext) -> Verdict:
    """The pool has not drifted from the tiles that trained the centroids."""
    return clusters.no_drift(context.layout)


@asset_check("pruned_subset", blocking=True)
def conservation(context: CheckContext) -> Verdict:
    """Every scanned tile is in the ledger once."""
    return subset.conservation(context.layout)


@asset_check("pruned_subset", blocking=True)
def exact_count(context: CheckContext) -> Verdict:
    """The number of kept tiles is the number that was asked for."""
    return subset.exact_count(context.layout)


@asset_check("pruned_subset", blocking=True)
def no_copies(context: CheckContext) -> Verdict:
    """No two kept tiles have the same bytes."""
    return subset.no_copies(context.layout)


@asset_check("pruned_subset")
def near_duplicates_left(context: CheckContext) -> Verdict:
    """Few kept tiles are near-duplicates of another kept tile."""
    return subset.near_duplicates_left(context.layout, workers=context.n_workers)


@asset_check("pruned_subset")
def apart_from_reference(context: CheckContext) -> Verdict:
    """No kept tile is a reference tile."""
    return subset.apart_from_reference(context.layout)


@asset_check("pruned_subset")
def scene_coverage(context: CheckContext) -> Verdict:
    """Which scenes gained and lost since the last version."""
    now = coverage.kept_by_scene(context.layout)
    before = context.history.scenes_of_last_subset(coverage.strata_of(context.layout))
    return coverage.scene_coverage(now, before, max_scene_shift=context.params.checks.max_scene_shift)


@asset_check("pruned_subset")
def fresh(context: CheckContext) -> Verdict:
    """The subset was made from the current inputs, and is not too old."""
    age_s, stale = context.history.age_s("pruned_subset"), context.history.stale_inputs("pruned_subset")
    return coverage.fresh(age_s, stale, max_age_days=context.params.checks.max_age_days)


@asset_check("diffusion_checkpoint", blocking=True)
def training_went_well(context: CheckContext) -> Verdict:
    """The loss is finite and fell."""
    return gates.training_went_well(context["diffusion_checkpoint"])


@asset_check("evaluation_metrics", blocking=True)
def no_leakage(context: CheckContext) -> Verdict:
    """No evaluation tile, nor a near-duplicate of one, was trained on."""
    return gates.no_leakage(context.evaluation)


@asset_check("evaluation_metrics", blocking=True)
def not_worse_than_champion(context: CheckContext) -> Verdict:
    """The Fréchet distance is not worse than the champion's by more than the margin."""
    files = context.history.champion()
    champion = gates.read_evaluation(files) if files else None
    return gates.not_worse_than_champion(context.evaluation, champion, max_fid_loss=context.params.checks.max_fid_loss)


@asset_check("super_resolution_checkpoint", "semantic_synthesis_checkpoint")
def fine_tuning_went_well(context: CheckContext) -> Verdict:
    """The loss is finite and fell."""
    return gates.training_went_well(context[context.asset], section=context.asset.removesuffix("_checkpoint"))


@asset_check("super_resolution_checkpoint")
def better_than_bicubic(context: CheckContext) -> Verdict:
    """The mean is nearer to the truth than bicubic enlargement, and the sample looks more like it."""
    return fine_tuned.better_than_bicubic(context["super_resolution_checkpoint"])


@asset_check("super_resolution_checkpoint")
def generalizes(context: CheckContext) -> Verdict:
    """The gain over bicubic enlargement is not much larger on training images than on test images."""
    return fine_tuned.generalizes(context["super_resolution_checkpoint"])


@asset_check("semantic_synthesis_checkpoint")
def follows_masks(context: CheckContext) -> Verdict:
    """Segmenters find the masks in drawn images nearly as well as in real ones."""
    return fine_tuned.follows_masks(context["semantic_synthesis_checkpoint"])


@asset_check("semantic_synthesis_checkpoint")
def draws_no_copies(context: CheckContext) -> Verdict:
    """Drawn images are not much nearer to the images that were learned from than to test images."""
    return fine_tuned.draws_no_copies(context["semantic_synthesis_checkpoint"])


@asset_check("pruning_report")
def counts_agree(context: CheckContext) -> Verdict:
    """The counts of the report are those of the current subset."""
    from rsprune_dagster.viz import checks as report_checks

    return report_checks.counts_agree(context.layout)


@asset_check("pruning_report")
def self_contained(context: CheckContext) -> Verdict:
    """The report loads no other file."""
    from rsprune_dagster.viz import checks as report_checks

    return report_checks.self_contained(context.layout)
