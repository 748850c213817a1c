"""Each check passes on good data, and fails on doctored data with a sentence that says what is wrong and what to do."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from prune_runs import Outcome

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.pruning.checks import embeddings as vectors
from rsprune_dagster.pruning.checks import pruned_subset as subset
from rsprune_dagster.pruning.checks import raw_corpus as corpus
from rsprune_dagster.pruning.checks import scene_clusters as clusters
from rsprune_dagster.pruning.checks import scene_coverage as coverage
from rsprune_dagster.pruning.checks.verdict import Verdict
from rsprune_dagster.pruning.encoders.vectors import HALF, open_vectors
from rsprune_dagster.tracking.asset_history import KEPT_BY_SCENE, STRATA, AssetHistory
from rsprune_dagster.tracking.run_log import Record, RunLog

TOLERANCE = 0.002
LOOSELY = {"promote_options": "permissive"}


@pytest.fixture
def good(pruned: Outcome) -> Path:
    """The asset folders of a prune."""
    return pruned.assets


@pytest.fixture
def assets(good: Path, tmp_path: Path) -> Path:
    """A copy of them, to be doctored."""
    return Path(shutil.copytree(good, tmp_path / "assets"))


def doctor(table: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(table)), table)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name).with_nullable(True), values)


def first_set_to(table: pa.Table, name: str, value: object) -> pa.Table:
    values = table.column(name).to_pylist()
    return with_column(table, name, pa.array([value, *values[1:]], table.schema.field(name).type))


def fails(verdict: Verdict, *words: str) -> None:
    assert not verdict.passed
    assert [word for word in words if word not in verdict.sentence] == [], verdict.sentence
    assert verdict.sentence.endswith(".") and "\n" not in verdict.sentence


def all_of(assets: Path) -> dict[str, Verdict]:
    """Every check that needs the folders alone, with limits that a good prune keeps."""
    layout = layout_of(assets)
    lengths = vectors.measure(layout, norm_tolerance=TOLERANCE)
    return {
        "unique_ids": corpus.unique_ids(assets / "raw_corpus"),
        "readable": corpus.readable(layout, max_quarantined_fraction=0.05),
        "read_as_asked": corpus.read_as_asked(layout),
        "all_read": corpus.all_read(layout),
        "not_shrunken": corpus.not_shrunken(layout, 400, max_shrink_fraction=0.5),
        "entropy_in_range": corpus.entropy_in_range(layout),
        "no_scene_erased": corpus.no_scene_erased(layout),
        "embedded_once": vectors.embedded_once(layout),
        "finite": vectors.finite(lengths),
        "unit_norms": vectors.unit_norms(lengths, norm_tolerance=TOLERANCE),
        "assigned_once": clusters.assigned_once(layout),
        "cluster_sizes": clusters.cluster_sizes(layout),
        "tells_scenes_apart": clusters.tells_scenes_apart(layout, min_nmi=0.25),
        "conservation": subset.conservation(layout),
        "exact_count": subset.exact_count(layout),
        "no_copies": subset.no_copies(layout),
        "near_duplicates_left": subset.near_duplicates_left(layout),
        "apart_from_reference": subset.apart_from_reference(layout),
    }


def layout_of(assets: Path) -> Layout:
    return Layout(assets, assets.parent)


def test_a_good_prune_passes_every_check_and_each_has_a_sentence_and_figures(good: Path) -> None:
    found = all_of(good)
    assert {name: each.sentence for name, each in found.items() if not each.passed} == {}
    assert all(each.sentence.endswith(".") and each.figures for each in found.values())


def test_a_tile_id_that_occurs_twice(assets: Path) -> None:
    manifest = assets / "raw_corpus" / "manifest.parquet"
    again = pq.read_table(manifest).slice(0, 1)
    doctor(manifest, lambda table: pa.concat_tables([table, again]))
    fails(
        corpus.unique_ids(assets / "raw_corpus"), "1 tile ids", again.column("tile_id")[0].as_py(), "rename the files"
    )


def test_a_tile_that_is_usable_and_quarantined(assets: Path) -> None:
    name = pq.read_table(assets / "raw_corpus" / "manifest.parquet").column("tile_id")[0].as_py()
    doctor(assets / "raw_corpus" / "quarantine.parquet", lambda table: first_set_to(table, "tile_id", name))
    fails(corpus.unique_ids(assets / "raw_corpus"), name)


def test_many_unusable_tiles_name_the_commonest_reason(assets: Path) -> None:
    doctor(assets / "raw_corpus" / "manifest.parquet", lambda table: table.slice(0, 20))
    fails(
        corpus.readable(layout_of(assets), max_quarantined_fraction=0.05),
        "cannot be used",
        "the commonest reason",
        "quarantine.parquet",
    )


def test_bands_and_a_value_range_that_no_tile_has_a_use_for(assets: Path) -> None:
    """The synthetic corpus has GeoTIFFs of 8 bits, so bands are of use there, and a value range is not."""
    path = assets / "raw_corpus" / "corpus.json"
    content = json.loads(path.read_text())
    for name, value in (("bands", [3, 2, 1]), ("value_range", [0.0, 3000.0])):
        content["read_options"] = {**content["read_options"], name: value}
    path.write_text(json.dumps(content))
    told = pq.read_table(assets / "raw_corpus" / "manifest.parquet")
    deep = {"value_range"} if set(told.column("dtype").to_pylist()) == {"uint8"} else set()
    verdict = corpus.read_as_asked(layout_of(assets))
    assert verdict.passed == (not deep) and "corpus.bands" not in verdict.sentence

    def as_jpegs(table: pa.Table) -> pa.Table:
        ids = [f"{number:05d}.jpg" for number in range(len(table))]
        table = with_column(table, "tile_id", pa.array(ids))
        for name, value in (("kind", "file"), ("dtype", "uint8"), ("crs", None)):
            table = with_column(table, name, pa.array([value] * len(table), table.schema.field(name).type))
        return table

    doctor(assets / "raw_corpus" / "manifest.parquet", as_jpegs)
    fails(corpus.read_as_asked(layout_of(assets)), "corpus.bands has no effect", "corpus.value_range has no effect")


def test_files_that_may_hold_tiles_and_are_not_read_are_counted_by_suffix(assets: Path) -> None:
    about = assets / "raw_corpus" / "corpus.json"
    ignored = {"(housekeeping)": 9, ".txt": 5, ".msk": 2, ".tifw": 1, ".xml": 1, ".jp2": 3, ".zip": 1, ".nc": 1}
    about.write_text(json.dumps({**json.loads(about.read_text()), "ignored_files": ignored}))
    fails(corpus.all_read(layout_of(assets)), "5 files", "3 x .jp2, 1 x .nc, 1 x .zip;", "convert or unpack")


def test_a_corpus_that_lost_most_of_its_tiles(assets: Path) -> None:
    n = pq.read_metadata(assets / "raw_corpus" / "manifest.parquet").num_rows
    fails(corpus.not_shrunken(layout_of(assets), 3 * n, max_shrink_fraction=0.5), "67% are gone", "not mounted")
    assert corpus.not_shrunken(layout_of(assets), 3 * n, max_shrink_fraction=1).passed
    assert corpus.not_shrunken(layout_of(assets), None, max_shrink_fraction=0.5).passed


def test_scenes_too_small_to_be_a_target(assets: Path) -> None:
    fails(corpus.scenes_large_enough(layout_of(assets)), "fewer than 20 tiles", "add tiles")
    doctor(assets / "reference_scenes" / "manifest.parquet", lambda table: pa.concat_tables([table] * 2))
    assert corpus.scenes_large_enough(layout_of(assets)).passed


@pytest.mark.parametrize("value", [math.nan, -0.5, 8.5, math.inf])
@pytest.mark.parametrize("column", ["entropy_bits", "patch_entropy_bits"])
def test_an_entropy_out_of_range(column: str, value: float, assets: Path) -> None:
    doctor(assets / "entropy_scores" / "scores.parquet", lambda table: first_set_to(table, column, value))
    fails(
        corpus.entropy_in_range(layout_of(assets)),
        "1 have a patch entropy" if column.startswith("patch") else "1 have an entropy",
        "0 to 8 bits",
        "again",
    )


def test_a_tile_without_a_score(assets: Path) -> None:
    doctor(assets / "entropy_scores" / "scores.parquet", lambda table: table.slice(1))
    fails(corpus.entropy_in_range(layout_of(assets)), "1 tiles have no score")


def test_a_threshold_that_erases_a_scene(assets: Path) -> None:
    """The trap of a bare threshold: calm water has few bits."""
    path = assets / "entropy_scores" / "threshold.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threshold_bits": 5.0}))
    verdict = corpus.no_scene_erased(layout_of(assets))
    fails(verdict, "at 5.00 bits", "entropy.threshold_from to reference")


def test_a_tile_without_a_vector_and_a_vector_without_a_tile(assets: Path) -> None:
    index = assets / "embeddings" / "index.parquet"
    doctor(index, lambda table: table.slice(1))
    fails(
        vectors.embedded_once(layout_of(assets)),
        "1 have no row in the index",
        "1 vectors are too many or too few",
        "materialize embeddings again",
    )


def test_an_index_out_of_content_order(assets: Path) -> None:
    doctor(assets / "embeddings" / "index.parquet", lambda table: table.take(list(range(len(table)))[::-1]))
    fails(vectors.embedded_once(layout_of(assets)), "out of content order")


@pytest.mark.parametrize("part", [".", "reference"])
def test_a_vector_with_nan(part: str, assets: Path) -> None:
    spoil(assets / "embeddings" / part / "vectors", np.nan)
    lengths = vectors.measure(layout_of(assets), norm_tolerance=TOLERANCE)
    fails(vectors.finite(lengths), "1 hold NaN or infinity", "embedding.precision")
    assert vectors.unit_norms(lengths, norm_tolerance=TOLERANCE).passed


def test_a_vector_of_another_length(assets: Path) -> None:
    spoil(assets / "embeddings" / "vectors", 1.0)
    lengths = vectors.measure(layout_of(assets), norm_tolerance=TOLERANCE)
    assert vectors.finite(lengths).passed
    fails(vectors.unit_norms(lengths, norm_tolerance=TOLERANCE), "1 differ from length 1", "embeddings again")


def spoil(folder: Path, value: float) -> None:
    """Set all of the first vector to a value."""
    file = open_vectors(folder)
    with (folder / "part-00000.safetensors").open("r+b") as part:
        part.seek(-file.n_rows * file.row_bytes, 2)
        part.write(np.full(file.dimension, value, HALF).tobytes())


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("cluster_id", 999, "1 are in a cluster that is not 0 to"),
        ("distance", math.nan, "1 have a distance that is negative or not finite"),
        ("distance", -1.0, "1 have a distance that is negative or not finite"),
        ("novelty", 1.5, "1 have a novelty that is not 0 to 1"),
    ],
)
def test_an_assignment_that_cannot_be(column: str, value: float, words: str, assets: Path) -> None:
    table = assets / "scene_clusters" / "assignment.parquet"
    doctor(table, lambda rows: first_set_to(rows, column, value))
    fails(clusters.assigned_once(layout_of(assets)), words, "scene_clusters again")


def test_a_tile_without_a_cluster(assets: Path) -> None:
    doctor(assets / "scene_clusters" / "assignment.parquet", lambda table: table.slice(1))
    fails(clusters.assigned_once(layout_of(assets)), "1 have no cluster")


def test_clusters_that_are_empty_or_hold_nearly_all(assets: Path) -> None:
    table = assets / "scene_clusters" / "assignment.parquet"
    doctor(table, lambda rows: with_column(rows, "cluster_id", pa.array(np.zeros(len(rows), np.int32))))
    verdict = clusters.cluster_sizes(layout_of(assets))
    fails(verdict, "are empty", "one holds 100% of all", "clustering.n_clusters")


def test_clusters_that_do_not_tell_scenes_apart(assets: Path) -> None:
    fails(
        clusters.tells_scenes_apart(layout_of(assets), min_nmi=0.99),
        "normalized mutual information",
        "embedding.backbone",
    )


def test_a_tile_lost_from_the_ledger_and_one_invented(assets: Path) -> None:
    decisions = assets / "pruned_subset" / "decisions.parquet"
    doctor(decisions, lambda table: first_set_to(table, "tile_id", "nowhere.jpg"))
    fails(
        subset.conservation(layout_of(assets)),
        "1 are not in decisions.parquet",
        "1 rows of decisions.parquet are of tiles that were not seen",
    )


def test_a_decision_twice_and_one_without_a_reason(assets: Path) -> None:
    decisions = assets / "pruned_subset" / "decisions.parquet"
    doctor(
        decisions, lambda table: pa.concat_tables([table, first_set_to(table.slice(0, 1), "reason", " ")], **LOOSELY)
    )
    fails(
        subset.conservation(layout_of(assets)),
        "1 rows are there again",
        "1 have no reason",
    )


def test_a_kept_tile_too_few(assets: Path) -> None:
    doctor(assets / "pruned_subset" / "pruned_subset.parquet", lambda table: table.slice(1))
    fails(
        subset.exact_count(layout_of(assets)),
        "tiles are kept and",
        "ranks do not count from 1",
        "keep different tiles",
    )


def test_another_keep_fraction_than_was_kept(assets: Path) -> None:
    path = assets / "pruned_subset" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "keep_fraction": 0.3}))
    fails(subset.exact_count(layout_of(assets)), "were to be")


def test_a_shortfall_is_said_and_is_no_failure(good: Path, assets: Path) -> None:
    """All that survive are kept, and that is fewer than asked."""
    folder = assets / "pruned_subset"
    survivors = pq.read_table(folder / "ranking.parquet").filter(pc.field("rank").is_valid())
    names = dict(zip(survivors["tile_id"].to_pylist(), survivors["rank"].to_pylist(), strict=True))

    def all_kept(table: pa.Table) -> pa.Table:
        ids, decided = table["tile_id"].to_pylist(), table["decision"].to_pylist()
        decision = ["kept" if was == "unselected" else was for was in decided]
        rank = [names[tile] if now == "kept" else None for tile, now in zip(ids, decision, strict=True)]
        return with_column(with_column(table, "decision", pa.array(decision)), "rank", pa.array(rank, pa.int64()))

    doctor(folder / "decisions.parquet", all_kept)
    pq.write_table(survivors, folder / "pruned_subset.parquet")
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "keep_fraction": 1.0}))
    verdict = subset.exact_count(layout_of(assets))
    assert verdict.passed and "fewer than asked" in verdict.sentence


def test_the_same_bytes_kept_twice(assets: Path) -> None:
    table = assets / "pruned_subset" / "pruned_subset.parquet"
    second = pq.read_table(table).column("content_md5")[1].as_py()
    doctor(table, lambda rows: first_set_to(rows, "content_md5", second))
    fails(subset.no_copies(layout_of(assets)), "1 repeat the bytes of another")


def test_near_duplicates_that_were_kept(assets: Path) -> None:
    """All near-copies that the selection had taken out are put back."""
    ranking = pq.read_table(assets / "pruned_subset" / "ranking.parquet")
    copies = ranking.filter(pc.field("near_copy_of").is_valid())
    both = pa.concat_tables([copies.select(["tile_id"]), pa.table({"tile_id": copies["near_copy_of"]})], **LOOSELY)
    pq.write_table(both, assets / "pruned_subset" / "pruned_subset.parquet")
    fails(
        subset.near_duplicates_left(layout_of(assets)),
        "nearly another kept tile",
        "near_duplicate_correlation",
    )


def test_a_kept_tile_that_is_a_reference_tile(assets: Path) -> None:
    content = pq.read_table(assets / "reference_scenes" / "manifest.parquet").column("content_md5")[0].as_py()
    doctor(
        assets / "pruned_subset" / "pruned_subset.parquet", lambda table: first_set_to(table, "content_md5", content)
    )
    fails(
        subset.apart_from_reference(layout_of(assets)),
        "1 of",
        "flatter the model",
    )


BEFORE = {"sea": 100, "forest": 100, "town": 100}


def test_the_same_shares_of_scenes_pass_whatever_is_kept_of_them() -> None:
    assert coverage.scene_coverage(BEFORE, BEFORE, max_scene_shift=0.25).passed
    halves = {scene: n // 2 for scene, n in BEFORE.items()}
    assert coverage.scene_coverage(halves, BEFORE, max_scene_shift=0.25).passed


def test_scenes_that_gained_and_lost_are_named() -> None:
    verdict = coverage.scene_coverage({"sea": 30, "forest": 170, "town": 100}, BEFORE, max_scene_shift=0.25)
    fails(verdict, "1 lost: sea", "1 gained: forest", "rsprune diff")
    assert ("sea", 100, 30, "-70%") in verdict.table


def test_a_scene_that_vanished_or_is_new_is_named() -> None:
    fails(
        coverage.scene_coverage({"forest": 150, "town": 150}, BEFORE, max_scene_shift=9.0),
        "1 scenes have no kept tile any more: sea",
    )
    fails(coverage.scene_coverage({**BEFORE, "ice": 40}, BEFORE, max_scene_shift=0.25), "1 gained: ice")


def test_a_handful_of_tiles_may_vary_by_chance() -> None:
    assert coverage.scene_coverage({**BEFORE, "ice": 3}, {**BEFORE, "ice": 6}, max_scene_shift=0.25).passed


@pytest.mark.parametrize(("n", "passed"), [(130, True), (131, False)])
def test_a_scene_moved_if_by_more_than_three_roots_of_its_expected_count(n: int, passed: bool) -> None:
    verdict = coverage.scene_coverage({"sea": n, "ice": 200 - n}, {"sea": 50, "ice": 50}, max_scene_shift=0.25)
    assert verdict.passed is passed
    assert verdict.figures["total_variation"] == pytest.approx((n - 100) / 200)
    assert coverage.scene_coverage({"sea": 149, "ice": 51}, {"sea": 1, "ice": 1}, max_scene_shift=0.5).passed


@pytest.mark.parametrize(("n_lost", "passed"), [(13, True), (14, False)])
def test_a_scene_may_lose_two_standard_errors_more_than_its_limit(n_lost: int, passed: bool, tmp_path: Path) -> None:
    """Of 400 tiles a share of 0.02 and twice 0.007."""
    bits = pa.array([1.0] * n_lost + [3.0] * (400 - n_lost), pa.float32())
    for asset in ("reference_scenes", "entropy_scores"):
        (tmp_path / asset).mkdir()
    pq.write_table(
        pa.table({"label": ["sea"] * 400, "entropy_bits": bits}), tmp_path / "reference_scenes" / "manifest.parquet"
    )
    (tmp_path / "entropy_scores" / "threshold.json").write_text(json.dumps({"threshold_bits": 3.0}))
    verdict = corpus.no_scene_erased(layout_of(tmp_path))
    assert verdict.passed is passed and verdict.figures["largest_scene_loss"] == n_lost / 400


def test_the_first_version_has_nothing_to_compare_with() -> None:
    assert coverage.scene_coverage(BEFORE, {}, max_scene_shift=0.25).passed


@pytest.mark.parametrize(("strata", "before"), [("abc", {"cluster 0": 9}), ("def", {}), ("scenes", {})])
def test_the_last_subset_is_compared_where_its_scenes_are_the_same_ones(
    strata: str, before: dict[str, int], tmp_path: Path
) -> None:
    facts = {KEPT_BY_SCENE: {"cluster 0": 9}, STRATA: "abc"}
    history = AssetHistory(RunLog(tmp_path / "run_log"), Layout.of_project(tmp_path), None)
    history.run_log.write(Record("run", "pruned_subset", "FINISHED", 1.0, "", data_version="old", facts=facts))
    assert history.scenes_of_last_subset(strata) == before


def test_a_record_that_does_not_say_what_its_scenes_are_has_those_of_the_reference(tmp_path: Path) -> None:
    history = AssetHistory(RunLog(tmp_path / "run_log"), Layout.of_project(tmp_path), None)
    record = Record("run", "pruned_subset", "FINISHED", 1.0, "", data_version="old", facts={KEPT_BY_SCENE: BEFORE})
    history.run_log.write(record)
    assert history.scenes_of_last_subset("scenes") == BEFORE
    assert history.scenes_of_last_subset("abc") == {}


def test_an_old_subset_and_one_made_from_other_versions_are_stale() -> None:
    assert coverage.fresh(3600.0, {}, max_age_days=8).passed
    fails(coverage.fresh(9 * 86_400.0, {}, max_age_days=8), "9.0 days old", "automation.enabled")
    fails(coverage.fresh(3600.0, {"raw_corpus": "0123456789"}, max_age_days=8), "raw_corpus is another version now")
