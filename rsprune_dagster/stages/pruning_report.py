"""pruning_report: one page on what went in, what stayed, why the rest went, and what a model learns from it.

    write_report(layout, origins, params.report, clustering=params.clustering, seed=params.compute.seed)

The page needs nothing beside it: style sheet, pictures and plots are inside, there is no script, and nothing is
loaded from anywhere. Its size is bounded, whatever the corpus: everything shown is counted or limited.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rsprune_dagster.config.layout import DOWNSTREAM_STUDIES, REPORT_HTML, REPORT_JSON, Layout
from rsprune_dagster.config.params import ClusteringParams, ReportParams
from rsprune_dagster.pruning.sensitivity import (
    KeptAtFractions,
    SeedSensitivity,
    kept_at_fractions,
    seed_sensitivity,
)
from rsprune_dagster.viz import (
    downstream_study,
    dropped,
    embedding,
    entropy,
    evaluation,
    geo_map,
    kept,
    model,
    origins,
    overview,
    raw_corpus,
    sensitivity,
    study,
    super_resolution,
    synthesis,
    template,
)
from rsprune_dagster.viz.blocks import Block, Chapter, Facts, Text
from rsprune_dagster.viz.counts import Counts, count_tiles
from rsprune_dagster.viz.formatting import counted, name
from rsprune_dagster.viz.origins import Origin

N_CLUSTERS = 12


@dataclass(frozen=True)
class Report:
    """The page and the numbers on it."""

    html: str
    numbers: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return len(self.html.encode())

    def figures(self) -> dict[str, int]:
        """For the web UI."""
        return {name: self.numbers[name] for name in ("n_seen", "n_readable", "n_kept")} | {
            "page_bytes": self.size_bytes
        }


def write_report(
    layout: Layout, made_from: Sequence[Origin], params: ReportParams, *, clustering: ClusteringParams, seed: int
) -> Report:
    """Write report.html and report.json; arguments as for `make_report`."""
    report = make_report(layout, made_from, params, clustering=clustering, seed=seed)
    folder = layout.folder("pruning_report")
    (folder / REPORT_HTML).write_text(report.html, encoding="utf-8")
    (folder / REPORT_JSON).write_text(json.dumps(report.numbers, indent=1) + "\n", encoding="utf-8")
    return report


def make_report(
    layout: Layout, made_from: Sequence[Origin], params: ReportParams, *, clustering: ClusteringParams, seed: int
) -> Report:
    """The page on the assets that are there.

    Args:
        made_from: their versions, in the order of the flow; what is not among them is not mentioned under lineage.
        clustering, seed: of params.yaml, for where the versions do not say what was in effect.
    """
    counts = count_tiles(layout)
    keep_fraction = float(counts.summary["keep_fraction"])
    fractions = sorted({*params.keep_fractions, keep_fraction})
    at_fractions = kept_at_fractions(layout, counts.n_readable, fractions)
    seed = origins.seed_in_effect(made_from, seed)
    seeds = _seeds(layout, params, origins.clustering_in_effect(made_from, clustering), seed)
    chapters = [
        _corpus(layout),
        _kept(layout, counts),
        _dropped(layout, counts),
        _entropy(layout),
        _embedding(layout),
        _sensitivity(at_fractions, seeds, keep_fraction, seed),
        _model(layout),
        _lineage(made_from),
    ]
    html = template.page(overview.opening(layout, counts, origins.source_name(made_from)), chapters)
    return Report(html, _numbers(counts, at_fractions, seeds, made_from))


def _corpus(layout: Layout) -> Chapter:
    facts = Facts([*raw_corpus.facts(layout), raw_corpus.reference_fact(layout)])
    lead = "Every tile of the corpus is read and decoded once where it lies; nothing is copied."
    blocks = [facts, raw_corpus.sample(layout, has_ledger=True), *geo_map.maps(layout)]
    return Chapter("corpus", "What went in", lead, blocks)


def _kept(layout: Layout, counts: Counts) -> Chapter:
    strategy = counts.summary["strategy"]
    lead = (
        f"The quota is shared out over {'clusters' if counts.over_clusters else 'scenes'}; inside each, a tile is "
        "taken next when it brings what is kept closer to the whole."
        if strategy == "rsprune"
        else f"Chosen by the baseline {name(strategy)}."
    )
    blocks: list[Block] = [kept.kept_and_unselected(layout, counts)]
    if counts.has_scenes:
        blocks.insert(0, kept.quota_table(counts))
    elif counts.over_clusters:
        blocks.insert(0, kept.cluster_table(layout))
    return Chapter("kept", "What stayed", lead, blocks)


def _dropped(layout: Layout, counts: Counts) -> Chapter:
    n_went = counts.n_seen - counts.n_kept
    blocks: list[Block] = [dropped.reasons_table(layout), *dropped.galleries(layout, counts).values()]
    if counts.decisions["quarantined"]:
        blocks.append(dropped.quarantine(layout, counts.n_seen))
    lead = f"{counted(n_went, 'tile')} went. decisions.parquet has the reason of each in a sentence; here are examples."
    return Chapter("went", "Why the rest went", lead, blocks)


def _entropy(layout: Layout) -> Chapter:
    lead = (
        "Shannon entropy of a tile's grey levels, 0 to 8 bits. A bare threshold would erase calm water and closed "
        "forest, so it is calibrated on the reference where there is one."
    )
    blocks: list[Block | None] = [
        entropy.histogram(layout),
        entropy.around_threshold(layout),
        entropy.reference_scenes(layout),
    ]
    return Chapter("entropy", "Entropy", lead, [block for block in blocks if block])


def _embedding(layout: Layout) -> Chapter:
    lead = "A frozen encoder turns each tile into a vector; tiles that look alike lie together."
    blocks: list[Block | None] = [
        embedding.embedding_map(layout),
        embedding.clusters(layout, 0, N_CLUSTERS, n_tiles=6, has_ledger=True),
        embedding.clusterings_tried(layout),
    ]
    return Chapter("embedding", "What looks alike", lead, [block for block in blocks if block])


def _sensitivity(
    at_fractions: KeptAtFractions, seeds: SeedSensitivity | None, keep_fraction: float, seed: int
) -> Chapter:
    blocks: list[Block] = [sensitivity.fraction_table(at_fractions, keep_fraction)]
    if seeds is None or not seeds.overlaps:
        blocks.append(Text("The ranking was not repeated under other seeds (report.n_other_seeds is 0).", absent=True))
    else:
        blocks.append(sensitivity.seed_table(seeds, seed))
    lead = (
        "All candidates stand in one order, so a smaller subset is the beginning of a larger one, and trying another "
        "size costs nothing."
    )
    return Chapter("sensitivity", "Had one chosen otherwise", lead, blocks)


def _model(layout: Layout) -> Chapter:
    """What a model made of the subset, by the later assets that are there."""
    blocks: list[Block] = []
    if layout.has("pruning_study"):
        blocks += study.blocks(layout.folder("pruning_study"))
    if layout.has("diffusion_checkpoint"):
        folder = layout.folder("diffusion_checkpoint")
        blocks += [model.facts(folder), model.loss(folder), model.samples(folder)]
    if layout.has("evaluation_metrics"):
        blocks += evaluation.blocks(layout.folder("raw_corpus"), layout.folder("evaluation_metrics"))
    if layout.has("super_resolution_checkpoint"):
        blocks += super_resolution.blocks(layout.folder("super_resolution_checkpoint"))
    if layout.has("semantic_synthesis_checkpoint"):
        blocks += synthesis.blocks(layout.folder("semantic_synthesis_checkpoint"))
    for asset in DOWNSTREAM_STUDIES:
        if layout.has(asset):
            blocks += downstream_study.blocks(layout.folder(asset))
    blocks += [Text(words, absent=True) for asset, words in ABSENT.items() if not layout.has(asset)]
    lead = "A subset is as good as what is learned from it."
    return Chapter("model", "What a model learns from it", lead, blocks)


ABSENT = {
    "pruning_study": "It has not been compared with other subsets at equal training compute yet (pruning_study).",
    "diffusion_checkpoint": "No model has been trained on this subset yet (diffusion_checkpoint).",
    "evaluation_metrics": "Samples of a model have not been evaluated yet (evaluation_metrics).",
    "super_resolution_checkpoint": "No model has been fine-tuned for super-resolution (super_resolution_checkpoint).",
    "semantic_synthesis_checkpoint": "No model has been fine-tuned to draw from masks (semantic_synthesis_checkpoint).",
    "super_resolution_study": "It has not been compared by super-resolution yet (super_resolution_study).",
    "semantic_synthesis_study": "It has not been compared by semantic synthesis yet (semantic_synthesis_study).",
}


def _lineage(made_from: Sequence[Origin]) -> Chapter:
    lead = "A version is the hash of its content; the same hash stands in dvc.lock, Dagster and MLflow."
    return Chapter("lineage", "Where it comes from", lead, origins.blocks(made_from))


def _seeds(layout: Layout, params: ReportParams, clustering: ClusteringParams, seed: int) -> SeedSensitivity | None:
    if not params.n_other_seeds:
        return None
    return seed_sensitivity(
        layout,
        clustering,
        seed=seed,
        n_other_seeds=params.n_other_seeds,
    )


def _numbers(
    counts: Counts, at_fractions: KeptAtFractions, seeds: SeedSensitivity | None, made_from: Sequence[Origin]
) -> dict[str, Any]:
    """report.json: the counts on the page, for programs."""
    return {
        "n_seen": counts.n_seen,
        "n_readable": counts.n_readable,
        "n_kept": counts.n_kept,
        "decisions": dict(counts.decisions),
        "scenes": [asdict(scene) for scene in counts.scenes],
        "keep_fractions": asdict(at_fractions),
        "seeds": asdict(seeds) if seeds else None,
        "versions": {origin.asset: origin.data_version for origin in made_from},
    }
