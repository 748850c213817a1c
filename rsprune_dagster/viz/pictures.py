"""What each asset shows in the web UI and MLflow: titles with pictures (SVG or JPEG bytes) or with Markdown.

The figures and tables are those of the page.
"""

from collections.abc import Mapping
from pathlib import Path

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.viz import (
    downstream_study,
    dropped,
    embedding,
    entropy,
    evaluation,
    fine_tuning,
    kept,
    model,
    raw_corpus,
    study,
    super_resolution,
    synthesis,
)
from rsprune_dagster.viz.blocks import Block, Facts, Table, Text
from rsprune_dagster.viz.counts import count_tiles, n_rows, read_json
from rsprune_dagster.viz.markdown import markdown_table, plain, table
from rsprune_dagster.viz.template import picture

Pictures = dict[str, bytes | str]

MAX_CLUSTERS = 120
CLUSTERS_PER_SHEET = 15
"""A sheet of more would be shrunk until nothing can be seen on it."""


def corpus_pictures(layout: Layout) -> Pictures:
    """What the corpus looks like, and what is wrong with the rest."""
    n_bad = n_rows(layout.file("quarantine"))
    n_seen = n_bad + n_rows(layout.file("manifest"))
    return _shown(
        {
            "sample": raw_corpus.sample(layout, has_ledger=False),
            "corpus": Facts(raw_corpus.facts(layout)),
            "quarantine": dropped.quarantine(layout, n_seen) if n_bad else None,
        }
    )


def reference_pictures(layout: Layout) -> Pictures:
    """A row of tiles for each scene of the reference."""
    tiles = raw_corpus.reference_tiles(layout)
    return _shown({"scenes": tiles if tiles.rows else None})


def entropy_pictures(layout: Layout) -> Pictures:
    """The histogram with the threshold, the scenes of the reference, the tiles near the threshold and at both ends."""
    return _shown(
        {
            "entropy_histogram": entropy.histogram(layout),
            "around_threshold": entropy.around_threshold(layout),
            "entropy_ends": entropy.ends(layout),
        }
    ) | _drawn("reference_entropy", entropy.reference_scenes(layout))


def cluster_pictures(layout: Layout) -> Pictures:
    """How many clusters were tried, and the tiles nearest to each centroid."""
    n_clusters = min(int(read_json(layout.file("quality"))["n_clusters_asked"]), MAX_CLUSTERS)
    sheets = {
        f"clusters_{first + 1}_to_{min(first + CLUSTERS_PER_SHEET, n_clusters)}": embedding.clusters(
            layout, first, first + CLUSTERS_PER_SHEET, n_tiles=8, has_ledger=False
        )
        for first in range(0, n_clusters, CLUSTERS_PER_SHEET)
    }
    filled = {title: one for title, one in sheets.items() if one.rows}
    return _shown({"clusterings_tried": embedding.clusterings_tried(layout), **filled})


def subset_pictures(layout: Layout) -> Pictures:
    """Kept against dropped: by scene, on the map of the embedding, by reason."""
    counts = count_tiles(layout)
    quotas = kept.quota_table(counts)
    return _drawn("kept_by_scene", quotas) | _shown(
        {
            "quotas": quotas,
            "map": embedding.embedding_map(layout),
            "kept_and_unselected": kept.kept_and_unselected(layout, counts),
            **dropped.galleries(layout, counts),
            "why": dropped.reasons_table(layout),
        }
    )


def checkpoint_pictures(folder: Path) -> Pictures:
    """Loss curve, and samples over the training."""
    return _shown({"loss": model.loss(folder), "samples over training": model.samples(folder)})


def evaluation_pictures(layout: Layout) -> Pictures:
    """Scores, samples beside held-out tiles and beside the training tiles they are nearest to, curves."""
    folder = layout.folder("evaluation_metrics")
    leaks = "\n\n".join(evaluation.leaks(folder))
    figures = evaluation.figures(layout.folder("raw_corpus"), folder)
    tables = {title: one for title, one in figures.items() if isinstance(one, Table)}
    shown = _shown(
        {
            "scores": evaluation.scores(folder),
            "not measured": evaluation.measures_left_out(folder),
            "leaks": Text(leaks) if leaks else None,
            **{title: one for title, one in figures.items() if title not in tables},
        }
    )
    return shown | {title: picture(one) for title, one in tables.items()}


def super_resolution_pictures(folder: Path) -> Pictures:
    """Examples, scores and loss curve."""
    return _fine_tuned(folder, super_resolution.examples(folder), super_resolution.table(folder))


def synthesis_pictures(folder: Path) -> Pictures:
    """Examples, scores and loss curve."""
    return _fine_tuned(folder, synthesis.examples(folder), synthesis.table(folder))


def _fine_tuned(folder: Path, examples: Block | None, scores: Table | None) -> Pictures:
    missing, loss = fine_tuning.not_measured(folder), model.loss(folder)
    return _shown({"examples": examples, "scores": scores, "not measured": missing, "loss": loss})


def study_pictures(folder: Path) -> Pictures:
    """Curves, table, sentences and samples of a study."""
    summary = study.read_summary(folder)
    if summary is None:
        return {}
    verdicts = "\n".join(f"* {sentence}" for sentence in summary["verdicts"])
    return _shown(
        {
            "convergence": study.convergence(summary),
            "arms": study.arms_table(summary),
            "verdicts": Text(verdicts) if verdicts else None,
            "samples of the same noise": study.samples(folder, summary),
        }
    )


def downstream_study_pictures(folder: Path) -> Pictures:
    """Tables and results of a study of a downstream task."""
    summaries = downstream_study.read_summaries(folder)
    return _shown(
        {
            "arms": downstream_study.arms_table(summaries),
            "differences": downstream_study.differences_table(summaries),
            "results for the same inputs": downstream_study.outputs(folder, summaries),
        }
    )


def report_pictures(layout: Layout) -> Pictures:
    """A glance at the page."""
    return _drawn("kept_by_scene", kept.quota_table(count_tiles(layout)))


def save_pictures(layout: Layout, target: Path) -> Path:
    """All pictures of a run as files in `target`."""
    made = {
        "raw_corpus": corpus_pictures(layout),
        "reference_scenes": reference_pictures(layout),
        "entropy_scores": entropy_pictures(layout),
        "scene_clusters": cluster_pictures(layout),
        "pruned_subset": subset_pictures(layout),
        "diffusion_checkpoint": checkpoint_pictures(layout.folder("diffusion_checkpoint")),
        "evaluation_metrics": evaluation_pictures(layout),
        "super_resolution_checkpoint": super_resolution_pictures(layout.folder("super_resolution_checkpoint")),
        "semantic_synthesis_checkpoint": synthesis_pictures(layout.folder("semantic_synthesis_checkpoint")),
    }
    target.mkdir(parents=True, exist_ok=True)
    for asset, pictures in made.items():
        for title, one in pictures.items():
            if isinstance(one, str):
                (target / f"{asset}.{title}.md").write_text(one + "\n")
            else:
                suffix = "jpg" if one.startswith(b"\xff\xd8\xff") else "svg"
                (target / f"{asset}.{title}.{suffix}").write_bytes(one)
    return target


def _shown(blocks: Mapping[str, Block | None]) -> Pictures:
    """Texts and tables as Markdown, all else as pictures; what is None is left out."""
    return {title: _one(block) for title, block in blocks.items() if block}


def _one(block: Block) -> bytes | str:
    if isinstance(block, Text):
        return "\n".join(plain(line) for line in block.text.split("\n"))
    if isinstance(block, Facts):
        return table(("fact", "value"), block.pairs)
    return markdown_table(block) if isinstance(block, Table) else picture(block)


def _drawn(title: str, block: Table | None) -> Pictures:
    """A table as a picture, with its bars."""
    return {title: picture(block)} if block else {}
