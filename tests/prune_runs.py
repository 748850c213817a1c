"""Prunes of a small synthetic corpus, in this process, for the tests of the whole pipeline."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params, load
from rsprune_dagster.corpus.synthetic import SyntheticPlan
from rsprune_dagster.dagster.assets import build_pruning_assets
from rsprune_dagster.dagster.materialize import materialize
from rsprune_dagster.stages import pipeline
from rsprune_dagster.tracking.run_recorder import folder_recorder

PROJECT = Path(__file__).resolve().parents[1]

PLAN = SyntheticPlan(n_tiles=300, n_scene_files=1, n_reference_per_scene=10, n_held_out_per_scene=13)
"""Every kind of tile, container and broken file, in a second or two a prune."""

SMALL_PLAN = SyntheticPlan(n_tiles=100, imbalance=3.0, n_scene_files=1, n_reference_per_scene=6, n_held_out_per_scene=0)
"""The same in a third of the tiles, for tests that prune several times."""

RESULTS = ("pruned_subset.parquet", "decisions.parquet")


@dataclass(frozen=True)
class Outcome:
    """The folders of one prune."""

    work: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.work / "assets", self.work)

    @property
    def assets(self) -> Path:
        return self.layout.assets

    @property
    def cache(self) -> Path:
        return self.layout.cache

    def rows(self, table: str, asset: str = "pruned_subset") -> list[dict[str, Any]]:
        """The rows of a table."""
        rows: list[dict[str, Any]] = pq.read_table(self.assets / asset / f"{table}.parquet").to_pylist()
        return rows

    def decisions(self) -> dict[str, dict[str, Any]]:
        """The ledger by tile id."""
        return {row["tile_id"]: row for row in self.rows("decisions")}

    def kept_content(self) -> list[str]:
        """The content hashes of the kept tiles, best first."""
        return [row["content_md5"] for row in self.rows("pruned_subset")]

    def hashes(self) -> dict[str, str]:
        """What must be the same bytes, whoever runs it."""
        return {
            name: hashlib.sha256((self.assets / "pruned_subset" / name).read_bytes()).hexdigest() for name in RESULTS
        }


def settings(
    corpus: Path | list[Path], reference: Path | list[Path] | None, /, **sections: Mapping[str, Any]
) -> Params:
    """params.yaml over a corpus and a reference, on the CPU, with what `sections` changes."""
    given: dict[str, dict[str, Any]] = {
        "corpus": {"sources": _named(corpus)},
        "reference": {"sources": _named(reference)},
        "compute": {"device": "cpu", "workers": 1},
    }
    for section, values in sections.items():
        given[section] = {**given.get(section, {}), **values}
    return load(PROJECT / "params.yaml").with_values(given)


def prune(params: Params, work: Path) -> Outcome:
    """The pruning pipeline on folders, with its assets and its cache below `work`."""
    outcome = Outcome(work)
    pipeline.prune(params, outcome.layout)
    return outcome


def materialize_prune(params: Params, work: Path) -> Outcome:
    """The same as a Dagster run of the pruning assets."""
    outcome = Outcome(work)
    recorder = folder_recorder(outcome.layout, params.tracking)
    materialize(build_pruning_assets(params), params, outcome.layout, recorder=recorder)
    return outcome


def finished_work(work: Path) -> dict[str, tuple[int, int]]:
    """Each file of finished work below a cache, with what would change were it made again: inode and time."""
    files = (path for path in work.rglob("*") if path.is_file() and not path.name.endswith(".draft"))
    return {str(path.relative_to(work)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def _named(sources: Path | list[Path] | None) -> list[str]:
    return [str(each) for each in ([sources] if isinstance(sources, Path) else sources or [])]
