"""The story: facts from the asset folders, sections made of blocks, one HTML file.

    write_report(assets, folder, origins, params.report, clustering=params.clustering, seed=params.compute.seed)

The page needs nothing beside it: style sheet, pictures and plots are inside, there is no script, and nothing is
loaded from anywhere. Its size is bounded, whatever the corpus: everything shown is counted or limited.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from rsprune_dagster.params import ClusteringParams, ReportParams
from rsprune_dagster.pruning.steps.sensitivity import (
    KeptAtFractions,
    SeedSensitivity,
    kept_at_fractions,
    seed_sensitivity,
)
from rsprune_dagster.report.page.bits import bits_section
from rsprune_dagster.report.page.blocks import Headline, Section
from rsprune_dagster.report.page.choices import choices_section
from rsprune_dagster.report.page.corpus import corpus_section
from rsprune_dagster.report.page.folders import Folders
from rsprune_dagster.report.page.learned import learned_section
from rsprune_dagster.report.page.likeness import likeness_section
from rsprune_dagster.report.page.origins import (
    Origin,
    clustering_in_effect,
    origins_section,
    seed_in_effect,
    source_name,
)
from rsprune_dagster.report.page.overview import headline
from rsprune_dagster.report.page.reasons import reasons_section
from rsprune_dagster.report.page.stayed import stayed_section
from rsprune_dagster.report.page.tally import Tally, tally
from rsprune_dagster.report.scenes import kept_by_scene

HTML, JSON = "report.html", "report.json"
TEMPLATES = Path(__file__).parent


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

    def pictures(self) -> dict[str, bytes]:
        """A glance at the page, for the web UI."""
        columns = [[scene[key] for scene in self.numbers["scenes"]] for key in ("scene", "n_tiles", "n_kept")]
        return {"kept_by_scene": kept_by_scene(*columns)}


def write_report(
    assets: Path,
    folder: Path,
    origins: Sequence[Origin],
    params: ReportParams,
    *,
    clustering: ClusteringParams,
    seed: int,
) -> Report:
    """Write report.html and report.json into `folder`; arguments as for `make_report`."""
    report = make_report(assets, origins, params, clustering=clustering, seed=seed)
    (folder / HTML).write_text(report.html, encoding="utf-8")
    (folder / JSON).write_text(json.dumps(report.numbers, indent=1) + "\n", encoding="utf-8")
    return report


def make_report(
    assets: Path, origins: Sequence[Origin], params: ReportParams, *, clustering: ClusteringParams, seed: int
) -> Report:
    """The page on the asset folders below `assets`.

    Args:
        origins: their versions, in the order of the flow; what is not among them is not mentioned under lineage.
        clustering, seed: of params.yaml, for where the origins do not say what was in effect.
    """
    folders = Folders(assets)
    counts = tally(folders)
    keep_fraction = float(counts.summary["keep_fraction"])
    fractions = sorted({*params.keep_fractions, keep_fraction})
    kept = kept_at_fractions(folders.subset, counts.n_readable, fractions)
    seed = seed_in_effect(origins, seed)
    seeds = _seeds(folders, params, clustering_in_effect(origins, clustering), seed)
    opening = headline(folders, counts, source_name(origins))
    sections = [
        corpus_section(folders, counts),
        stayed_section(folders, counts),
        reasons_section(folders, counts),
        bits_section(folders, counts),
        likeness_section(folders, counts),
        choices_section(kept, seeds, keep_fraction, seed),
        learned_section(folders),
        origins_section(origins),
    ]
    return Report(_html(opening, sections), _numbers(counts, kept, seeds, origins))


def _seeds(folders: Folders, params: ReportParams, clustering: ClusteringParams, seed: int) -> SeedSensitivity | None:
    if not params.n_other_seeds:
        return None
    return seed_sensitivity(
        folders.embeddings,
        folders.clusters,
        folders.subset,
        clustering,
        seed=seed,
        n_other_seeds=params.n_other_seeds,
        max_tiles=params.seed_sample_tiles,
    )


def _html(opening: Headline, sections: Sequence[Section]) -> str:
    """Fill page.html; every text is escaped, whatever a tile is called."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["said"] = said
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(opening=opening, sections=sections, css=css)


def said(text: str) -> Markup:
    """A sentence as HTML: escaped, and what stands between backquotes in the fixed-width face."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _numbers(
    counts: Tally, kept: KeptAtFractions, seeds: SeedSensitivity | None, origins: Sequence[Origin]
) -> dict[str, Any]:
    """report.json: the counts on the page, for programs."""
    return {
        "n_seen": counts.n_seen,
        "n_readable": counts.n_readable,
        "n_kept": counts.n_kept,
        "decisions": dict(counts.decisions),
        "scenes": [asdict(scene) for scene in counts.scenes],
        "keep_fractions": asdict(kept),
        "seeds": asdict(seeds) if seeds else None,
        "versions": {origin.asset: origin.data_version for origin in origins},
    }
