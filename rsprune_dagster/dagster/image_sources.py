"""Where the images of an asset lie, and the scanner that reads them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import (
    CorpusParams,
    EvaluationParams,
    SemanticSynthesisParams,
    SuperResolutionParams,
)
from rsprune_dagster.dagster.resources import Compute
from rsprune_dagster.utils.progress import Progress

if TYPE_CHECKING:
    from rsprune_dagster.stages.raw_corpus import Scanner
    from rsprune_dagster.stages.semantic_synthesis_checkpoint import PairSources
    from rsprune_dagster.stages.super_resolution_checkpoint import ImageSources

SYNTHETIC = "synthetic"
"""Source name of the procedural corpus, which is generated on first use."""


def scanner(
    context: dg.AssetExecutionContext,
    layout: Layout,
    compute: Compute,
    params: CorpusParams,
    home: Path | None = None,
) -> "Scanner":
    """The scanner of the corpus or the reference; `home` as in `Scanner`."""
    from rsprune_dagster.stages.raw_corpus import Scanner

    return Scanner.of(params, layout.cache, compute.n_workers(), compute.progress(context), home)


def named_sources(
    sources: Sequence[str], layout: Layout, *, part: str, home: Path | None, progress: Progress
) -> tuple[str, ...]:
    """The sources, with relative paths resolved against `home`, the project's folder.

    `synthetic` stands for a part of the synthetic corpus (corpus, reference or held_out), or of the synthetic pairs of
    image and mask (pairs or held_out_pairs).
    """
    return tuple(_synthetic(layout, part, progress) if each == SYNTHETIC else _from(home, each) for each in sources)


def super_resolution_sources(
    params: SuperResolutionParams,
    evaluation: EvaluationParams,
    layout: Layout,
    *,
    home: Path | None,
    progress: Progress,
) -> "ImageSources":
    """The images of super-resolution. Where no test images are named, they are those of the evaluation."""
    from rsprune_dagster.stages.super_resolution_checkpoint import ImageSources

    named = partial(named_sources, layout=layout, home=home, progress=progress)
    test = params.test_sources or evaluation.sources
    return ImageSources(named(params.sources, part="corpus"), named(test, part="held_out"))


def pair_sources(
    params: SemanticSynthesisParams, layout: Layout, *, home: Path | None, progress: Progress
) -> "PairSources":
    """The pairs of semantic synthesis."""
    from rsprune_dagster.stages.semantic_synthesis_checkpoint import PairSources

    named = partial(named_sources, layout=layout, home=home, progress=progress)
    return PairSources(named(params.sources, part="pairs"), named(params.test_sources, part="held_out_pairs"))


def watched_sources(sources: Sequence[str], home: Path | None) -> tuple[str, ...]:
    """The sources that may get new tiles: all but the synthetic corpus."""
    return tuple(_from(home, source) for source in sources if source != SYNTHETIC)


def _from(home: Path | None, source: str) -> str:
    """A source as params.yaml of the project at `home` has it; elsewhere a relative path starts where the user is."""
    is_a_path = "://" not in source and not source.startswith("~")
    return str(home / source) if home and is_a_path else source


def _synthetic(layout: Layout, part: str, progress: Progress) -> str:
    from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus, write_pairs

    if part.endswith("pairs"):
        folder = layout.state / "synthetic_pairs"
        write_pairs(folder, progress=progress)
    else:
        folder = layout.state / "synthetic"
        write_corpus(folder, SyntheticPlan(), progress=progress)
    return str(folder / part)
