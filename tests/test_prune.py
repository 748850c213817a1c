"""The whole prune on a synthetic corpus with a known truth: what the ledger says of every tile."""

import json
import math
from collections import Counter
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pyarrow.parquet as pq
import pytest
from prune_runs import PLAN, PROJECT, Outcome, finished_work, prune, settings

from rsprune_dagster.config.layout import FILES
from rsprune_dagster.config.params import load
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus
from rsprune_dagster.diffusion.tile_set import tile_set
from rsprune_dagster.pruning.baselines import BASELINES
from rsprune_dagster.pruning.checks import pruned_subset as subset
from rsprune_dagster.pruning.checks import scene_coverage as coverage
from rsprune_dagster.pruning.explain import explain_tile
from rsprune_dagster.pruning.ledger import n_to_keep
from rsprune_dagster.stages.pruned_subset import select
from rsprune_dagster.stages.pruning_report import make_report
from rsprune_dagster.utils.errors import UsageError

NEAR_DUPLICATE_RECALL = 0.75
"""Share of planted near-duplicates that must go, in tiles of 64 px. The rest are told apart or too plain to tell."""

BESIDE = ("readme", "ds_store")
"""Planted files that stand beside images and are no fault."""

DECISIONS = {"kept", "low_information", "duplicate", "unselected", "quarantined"}


@pytest.fixture(scope="module")
def truth(synthetic: Path) -> dict[str, dict[str, Any]]:
    return {row["tile_id"]: row for row in pq.read_table(synthetic / "truth.parquet").to_pylist()}


def test_every_tile_planted_is_in_the_ledger_once(pruned: Outcome, truth: dict[str, dict[str, Any]]) -> None:
    seen = [row["tile_id"] for row in pruned.rows("decisions")]
    assert len(seen) == len(set(seen))
    assert set(seen) == {tile for tile, made in truth.items() if made["way"] not in BESIDE}


def test_a_text_beside_the_images_is_ignored_and_counted(pruned: Outcome) -> None:
    listed = json.loads((pruned.assets / "raw_corpus" / "corpus.json").read_text())
    assert listed["ignored_files"] == {".txt": 1, "(housekeeping)": 1}


def test_decisions_add_up_to_the_manifest_and_the_quarantine(pruned: Outcome) -> None:
    counts = Counter(row["decision"] for row in pruned.rows("decisions"))
    assert set(counts) == DECISIONS
    assert counts["quarantined"] == len(pruned.rows("quarantine", "raw_corpus"))
    assert counts.total() - counts["quarantined"] == len(pruned.rows("manifest", "raw_corpus"))


def test_exactly_the_share_of_readable_tiles_is_kept(pruned: Outcome) -> None:
    n_readable = len(pruned.rows("manifest", "raw_corpus"))
    n_kept = math.floor(0.15 * n_readable + 0.5)
    assert len(pruned.rows("pruned_subset")) == n_kept
    assert sum(row["decision"] == "kept" for row in pruned.rows("decisions")) == n_kept


def test_the_number_to_keep_is_rounded_and_halves_go_up() -> None:
    assert [n_to_keep(n, 0.25) for n in (0, 1, 2, 5, 6, 7)] == [0, 0, 1, 1, 2, 2]


def test_ranks_count_from_one_without_a_gap(pruned: Outcome) -> None:
    subset = pruned.rows("pruned_subset")
    assert [row["rank"] for row in subset] == list(range(1, len(subset) + 1))
    in_ledger = {row["tile_id"]: row["rank"] for row in pruned.rows("decisions") if row["rank"] is not None}
    assert in_ledger == {row["tile_id"]: row["rank"] for row in subset}


def test_the_ranking_orders_every_candidate_once(pruned: Outcome) -> None:
    ranking = pruned.rows("ranking")
    ranks = sorted(row["rank"] for row in ranking if row["near_copy_of"] is None)
    assert ranks == list(range(1, len(ranks) + 1))
    assert all(row["rank"] is None for row in ranking if row["near_copy_of"] is not None)


def test_every_decision_has_a_sentence_for_a_reason(pruned: Outcome) -> None:
    for row in pruned.rows("decisions"):
        assert len(row["reason"].split()) >= 2, row
        assert "\n" not in row["reason"] and "NULL" not in row["reason"], row


def test_blanks_are_low_information(pruned: Outcome, truth: dict[str, dict[str, Any]]) -> None:
    decisions = pruned.decisions()
    wrong = [
        tile
        for tile, made in truth.items()
        if made["kind"] == "blank" and decisions[tile]["decision"] != "low_information"
    ]
    assert not wrong


def test_no_tile_that_shows_a_scene_is_low_information(pruned: Outcome, truth: dict[str, dict[str, Any]]) -> None:
    """The threshold is calibrated on scenes like these, of which it may drop 2 in 100."""
    shows = [tile for tile, made in truth.items() if made["scene"]]
    lost = [tile for tile in shows if pruned.decisions()[tile]["decision"] == "low_information"]
    assert len(lost) <= 0.02 * len(shows)


def test_of_the_same_bytes_all_but_one_are_duplicates_that_name_it(
    pruned: Outcome, truth: dict[str, dict[str, Any]]
) -> None:
    decisions = pruned.decisions()
    copies = {tile: made["copy_of"] for tile, made in truth.items() if made["kind"] == "exact_copy"}
    assert copies
    for copy, original in copies.items():
        pair = {copy, original}
        assert decisions[copy]["content_md5"] == decisions[original]["content_md5"]
        fates = {tile: decisions[tile] for tile in pair}
        if any(row["decision"] == "low_information" for row in fates.values()):
            continue
        named = [tile for tile in pair if fates[tile]["reason"].removeprefix("the same bytes as ") in pair - {tile}]
        assert len(named) == 1 and fates[named[0]]["decision"] == "duplicate", fates


def test_no_content_is_kept_twice(pruned: Outcome) -> None:
    content = pruned.kept_content()
    assert len(content) == len(set(content))


def test_most_near_duplicates_go(pruned: Outcome, truth: dict[str, dict[str, Any]]) -> None:
    """Of a near-duplicate and its original one stands for both, so either may be the one that goes."""
    decisions = pruned.decisions()
    planted = {tile: made for tile, made in truth.items() if made["kind"] == "near_duplicate"}
    missed = Counter[str]()
    for tile, made in planted.items():
        gone = {decisions[tile]["decision"], decisions[made["copy_of"]]["decision"]} & {"duplicate", "low_information"}
        missed[made["way"]] += not gone
    assert missed.total() <= (1 - NEAR_DUPLICATE_RECALL) * len(planted), missed


def test_distinct_tiles_are_hardly_ever_taken_for_near_duplicates(
    pruned: Outcome, truth: dict[str, dict[str, Any]]
) -> None:
    originals = {made["copy_of"] for made in truth.values() if made["copy_of"]}
    single = [tile for tile, made in truth.items() if made["kind"] == "tile" and tile not in originals]
    taken = [tile for tile in single if pruned.decisions()[tile]["decision"] == "duplicate"]
    assert len(taken) <= 0.02 * len(single), taken


def test_duplicates_name_a_tile_that_is_none(pruned: Outcome) -> None:
    decisions = pruned.decisions()
    for row in decisions.values():
        if row["decision"] == "duplicate" and row["reason"].startswith("nearly"):
            original = row["reason"].removeprefix("nearly the same picture as ")
            assert decisions[original]["decision"] in ("kept", "unselected")


def test_broken_files_are_quarantined_with_the_reason(pruned: Outcome, truth: dict[str, dict[str, Any]]) -> None:
    decisions = pruned.decisions()
    broken = [tile for tile, made in truth.items() if made["kind"] == "broken" and made["way"] not in BESIDE]
    assert len(broken) == PLAN.n_broken - len(BESIDE)
    assert all(decisions[tile]["decision"] == "quarantined" for tile in broken)
    assert len({decisions[tile]["reason"] for tile in broken}) == len(broken)


def test_windows_of_a_scene_keep_their_place_on_earth(pruned: Outcome) -> None:
    windows = [row for row in pruned.rows("manifest", "raw_corpus") if row["kind"] == "window"]
    assert len(windows) == 4
    assert all(row["crs"] and row["lon"] is not None and row["w"] == 256 for row in windows)


def test_a_smaller_keep_fraction_is_a_prefix_and_recomputes_nothing(
    synthetic: Path, pruned: Outcome, tmp_path: Path
) -> None:
    copytree(pruned.work, tmp_path / "again", copy_function=_linked)
    before = finished_work(tmp_path / "again" / "cache" / "work")
    params = settings(synthetic / "corpus", synthetic / "reference", selection={"keep_fraction": 0.10})
    smaller = prune(params, tmp_path / "again")
    kept = smaller.kept_content()
    assert len(kept) == math.floor(0.10 * len(pruned.rows("manifest", "raw_corpus")) + 0.5)
    assert kept == pruned.kept_content()[: len(kept)]
    assert finished_work(tmp_path / "again" / "cache" / "work") == before


def test_all_can_be_kept_and_what_is_short_is_said(synthetic: Path, tmp_path: Path, pruned: Outcome) -> None:
    params = settings(synthetic / "corpus", synthetic / "reference", selection={"keep_fraction": 1.0})
    everything = prune(params, _seeded(pruned, tmp_path))
    counts = Counter(row["decision"] for row in everything.rows("decisions"))
    assert counts["unselected"] == 0
    n_lost = counts["low_information"] + counts["duplicate"]
    summary = json.loads((everything.assets / "pruned_subset" / "summary.json").read_text())
    assert summary["n_wanted"] - summary["n_kept"] == n_lost > 0
    assert f"{summary['n_kept']:,} tiles are kept, not the {summary['n_wanted']:,} asked" in summary["shortfall"]


def test_a_prune_writes_every_file_that_the_layout_names(pruned: Outcome) -> None:
    assert [name for name in FILES if not pruned.layout.file(name).exists()] == []


@pytest.mark.parametrize("strategy", sorted(set(BASELINES) - {"label_balanced"}))
def test_each_baseline_keeps_as_many_with_a_reason_each(
    strategy: str, synthetic: Path, pruned: Outcome, tmp_path: Path
) -> None:
    params = settings(synthetic / "corpus", synthetic / "reference", selection={"strategy": strategy}).selection
    copytree(pruned.assets, tmp_path / "assets", copy_function=_linked, ignore=ignore_patterns("pruned_subset"))
    peer = Outcome(tmp_path)
    (peer.assets / "pruned_subset").mkdir()
    select(peer.layout, params, seed=0, workers=1)
    assert len(peer.rows("pruned_subset")) == len(pruned.rows("pruned_subset"))
    assert set(peer.decisions()) == set(pruned.decisions())
    assert all(row["reason"] for row in peer.rows("decisions"))
    assert peer.kept_content() != pruned.kept_content()


def test_the_label_balanced_oracle_says_that_it_needs_labels(synthetic: Path, tmp_path: Path) -> None:
    params = settings(synthetic / "corpus", synthetic / "reference", selection={"strategy": "label_balanced"})
    with pytest.raises(UsageError, match="labels"):
        prune(params, tmp_path)


def test_without_a_reference_the_corpus_is_one_stratum(synthetic: Path, pruned: Outcome, tmp_path: Path) -> None:
    alone = prune(settings(synthetic / "corpus", None), _seeded(pruned, tmp_path))
    assert {row["scene"] for row in alone.rows("pruned_subset")} == {"pool"}
    assert len(alone.rows("pruned_subset")) == len(pruned.rows("pruned_subset"))


def test_several_references_give_their_scenes_together(synthetic: Path, pruned: Outcome, tmp_path: Path) -> None:
    scenes = sorted((synthetic / "reference").iterdir())
    for part, some in (("one", scenes[::2]), ("two", scenes[1::2])):
        for scene in some:
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / scene.name).symlink_to(scene)
    both = prune(settings(synthetic / "corpus", [tmp_path / "one", tmp_path / "two"]), _seeded(pruned, tmp_path))
    assert both.kept_content() == pruned.kept_content()


def test_a_foreign_reference_still_keeps_the_share(synthetic: Path, pruned: Outcome, tmp_path: Path) -> None:
    """Two scenes of a rich kind stand for a reference of other places."""
    for name in ("city", "forest"):
        scene = next(each for each in sorted((synthetic / "reference").iterdir()) if name in each.name)
        (tmp_path / "foreign").mkdir(exist_ok=True)
        (tmp_path / "foreign" / scene.name).symlink_to(scene)
    foreign = prune(settings(synthetic / "corpus", tmp_path / "foreign"), _seeded(pruned, tmp_path))
    assert len(foreign.rows("pruned_subset")) == len(pruned.rows("pruned_subset"))
    _names_clusters_and_no_scene_of_the_reference(foreign)


def _names_clusters_and_no_scene_of_the_reference(foreign: Outcome) -> None:
    guesses = {row["reference_scene"] for row in foreign.rows("assignment", "scene_clusters")}
    assert guesses == {"city", "forest"}
    rows = foreign.rows("pruned_subset")
    assert all(row["scene"] == f"cluster {row['cluster_id']:02d}" for row in rows)
    kept = Counter(row["scene"] for row in rows)
    for row in foreign.rows("decisions"):
        assert not any(guess in row["reason"] for guess in guesses), row
        assert row["decision"] != "kept" or f"its scene {row['scene']} keeps {kept[row['scene']]} of" in row["reason"]
    trained = tile_set(
        pq.read_table(foreign.assets / "pruned_subset" / "pruned_subset.parquet"), ReadOptions(), image_size_px=8
    )
    assert set(trained.scene_names) == set(kept)
    assert "a guess, as the pool is foreign" in explain_tile(foreign.layout, rows[0]["tile_id"])
    assert "Quotas by scene" in page_of(foreign)


def page_of(outcome: Outcome) -> str:
    params = load(PROJECT / "params.yaml")
    return make_report(outcome.layout, [], params.report, clustering=params.clustering, seed=0).html


def test_a_share_that_rounds_to_no_tile_leaves_an_empty_subset_and_says_so(
    synthetic: Path, pruned: Outcome, tmp_path: Path
) -> None:
    params = settings(synthetic / "corpus", synthetic / "reference", selection={"keep_fraction": 1e-6})
    outcome = prune(params, _seeded(pruned, tmp_path))
    layout = outcome.layout
    decisions = Counter(row["decision"] for row in outcome.rows("decisions"))
    assert decisions.total() == len(pruned.rows("decisions")) and not decisions["kept"]
    verdicts = [
        subset.conservation(layout),
        subset.exact_count(layout),
        subset.no_copies(layout),
        subset.near_duplicates_left(layout),
        subset.apart_from_reference(layout),
        coverage.scene_coverage(coverage.kept_by_scene(layout), {}, max_scene_shift=0.25),
    ]
    assert [verdict.sentence for verdict in verdicts if not verdict.passed] == []
    said = "no tile is kept: the keep fraction of 304 readable tiles rounds to 0"
    assert json.loads(layout.file("summary").read_text())["shortfall"] == said
    assert said in page_of(outcome)


def test_fewer_tiles_than_clusters_are_clusters_of_their_own(synthetic: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    write_corpus(
        few,
        SyntheticPlan(
            n_tiles=60, imbalance=1.0, n_scene_files=0, n_broken=0, n_reference_per_scene=2, n_held_out_per_scene=0
        ),
    )
    params = settings(few / "corpus", synthetic / "reference", clustering={"n_clusters": 500})
    outcome = prune(params, tmp_path / "work")
    n_readable = len(outcome.rows("manifest", "raw_corpus"))
    assert len(outcome.rows("pruned_subset")) == math.floor(0.15 * n_readable + 0.5)


def test_one_tile_alone_can_be_pruned(synthetic: Path, tmp_path: Path) -> None:
    tile = next((synthetic / "reference").rglob("*.png"))
    outcome = prune(settings(tile, synthetic / "reference", selection={"keep_fraction": 1.0}), tmp_path)
    assert [row["decision"] for row in outcome.rows("decisions")] == ["kept"]


def _linked(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target


def _seeded(pruned: Outcome, tmp_path: Path) -> Path:
    """A work folder that has the cache of an earlier run: what a changed parameter need not do again."""
    copytree(pruned.cache, tmp_path / "work" / "cache", copy_function=_linked)
    return tmp_path / "work"
