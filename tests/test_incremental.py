"""New tiles on kept centroids: the same bytes whichever way they came, and a new clustering when they have drifted."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prune_runs import settings

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import ClusteringParams
from rsprune_dagster.dagster.assets.scene_clusters import last_version
from rsprune_dagster.pruning import incremental
from rsprune_dagster.pruning.assignment import read_clusters
from rsprune_dagster.pruning.checks.scene_clusters import assigned_once, no_drift
from rsprune_dagster.pruning.checks.scene_coverage import strata_of
from rsprune_dagster.pruning.clustering import Centroids
from rsprune_dagster.pruning.encoders.vectors import create_vectors
from rsprune_dagster.pruning.incremental import Drift, FittedClustering, drift, fitted_clustering, stability_index
from rsprune_dagster.pruning.pipeline import ClusteringSpace, Fitted, SceneClusters, cluster_names
from rsprune_dagster.pruning.scenes import fit_scene_model
from rsprune_dagster.stages.embeddings import INDEX
from rsprune_dagster.stages.scene_clusters import Outcome, cluster

SCENES = ("forest", "sea", "town", "field")
DIMENSION = 24
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(len(SCENES) + 1, DIMENSION))
"""Of the scenes, and of a place that no scene knows."""


def drawn(n: int, of: Sequence[int], seed: int) -> np.ndarray:
    """Unit vectors (n, d) of the places `of`."""
    rng = np.random.default_rng(seed)
    vectors = CENTRES[rng.choice(of, n)] + 0.4 * rng.normal(size=(n, DIMENSION))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


KNOWN = range(len(SCENES))
OLD, MORE, EVEN_MORE = drawn(600, KNOWN, 1), drawn(40, KNOWN, 2), drawn(50, KNOWN, 3)
STRANGE = drawn(60, [len(SCENES)], 4)
REFERENCE = np.concatenate([drawn(40, [scene], 10 + scene) for scene in KNOWN])
LABELS = np.repeat(SCENES, 40)


def write(folder: Path, vectors: np.ndarray, labels: Sequence[str | None]) -> None:
    folder.mkdir(parents=True)
    md5 = [hashlib.md5(row.tobytes()).hexdigest() for row in vectors]
    order = np.argsort(md5)
    columns = [[md5[i] for i in order], [f"{md5[i]}.jpg" for i in order], [bytes(256)] * len(order)]
    table = pa.Table.from_arrays([pa.array(column) for column in [*columns, [labels[i] for i in order]]], schema=INDEX)
    pq.write_table(table, folder / "index.parquet")
    create_vectors(folder / "vectors", len(vectors), DIMENSION).write_rows(np.arange(len(vectors)), vectors[order])


def embedded(folder: Path, *parts: np.ndarray, labels: np.ndarray = LABELS) -> Path:
    """What the asset `embeddings` holds of these tiles."""
    vectors = np.concatenate(parts)
    write(folder, vectors, [None] * len(vectors))
    write(folder / "reference", REFERENCE, labels.tolist())
    (folder / "encoder.json").write_text(json.dumps({"name": "drawn"}))
    return folder


def params(**changes: Any) -> ClusteringParams:
    return settings(Path("x"), None, clustering={"candidates": [4, 8], **changes}).clustering


def made(embeddings: Path, folder: Path, last: Path | None = None, seed: int = 0, **changes: Any) -> Outcome:
    folder.mkdir()
    earlier = at(last) if last else None
    return cluster(at(folder, embeddings), params(**changes), seed=seed, use_gpu=False, last=earlier)


def at(clusters: Path, embeddings: Path = Path()) -> Layout:
    """The layout where scene_clusters and embeddings lie in these folders."""
    return Layout(Path(), Path(), {"scene_clusters": clusters, "embeddings": embeddings})


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that was trained."""
    work = tmp_path_factory.mktemp("first")
    outcome = made(embedded(work / "embeddings", OLD), work / "clusters")
    assert not outcome.kept and outcome.origin == "trained"
    return work / "clusters"


def test_all_that_is_kept_is_parquet_safetensors_and_json(first: Path) -> None:
    assert {path.suffix for path in first.iterdir()} == {".parquet", ".safetensors", ".json"}


def test_the_same_tiles_on_kept_centroids_give_the_very_version_that_was_trained(first: Path, tmp_path: Path) -> None:
    outcome = made(embedded(tmp_path / "embeddings", OLD), tmp_path / "again", last=first)
    assert outcome.kept and hashes(tmp_path / "again") == hashes(first)


def test_tiles_that_come_are_assigned_and_those_that_were_there_stay_where_they_are(
    first: Path, tmp_path: Path
) -> None:
    outcome = made(embedded(tmp_path / "embeddings", OLD, MORE), tmp_path / "more", last=first)
    assert outcome.kept and outcome.drift is not None and outcome.drift.n_new == len(MORE)
    assert outcome.figures()["centroids"] == "kept from the version that 600 tiles trained; 40 are new since"
    before, after = (pq.read_table(folder / "assignment.parquet").to_pylist() for folder in (first, tmp_path / "more"))
    assert len(after) == len(before) + len(MORE)
    assert [row for row in after if row in before] == before


def test_grown_in_steps_or_at_once_the_bytes_are_the_same(first: Path, tmp_path: Path) -> None:
    made(embedded(tmp_path / "e1", OLD, MORE), tmp_path / "step1", last=first)
    made(embedded(tmp_path / "e2", OLD, MORE, EVEN_MORE), tmp_path / "step2", last=tmp_path / "step1")
    made(embedded(tmp_path / "e3", EVEN_MORE, OLD, MORE), tmp_path / "at_once", last=first)
    assert hashes(tmp_path / "step2") == hashes(tmp_path / "at_once")


def test_tiles_of_another_kind_ask_for_a_new_clustering(first: Path, tmp_path: Path) -> None:
    outcome = made(embedded(tmp_path / "embeddings", OLD, STRANGE), tmp_path / "new", last=first)
    assert not outcome.kept and "new tiles lie beyond" in outcome.origin
    made(embedded(tmp_path / "same", OLD, STRANGE), tmp_path / "fresh")
    assert hashes(tmp_path / "new") == hashes(tmp_path / "fresh")
    assert no_drift(at(tmp_path / "new")).passed


def test_never_keeps_the_centroids_and_a_check_tells(first: Path, tmp_path: Path) -> None:
    outcome = made(embedded(tmp_path / "e", OLD, STRANGE), tmp_path / "kept", last=first, recluster="never")
    assert outcome.kept and "they have drifted" in outcome.origin
    verdict = no_drift(at(tmp_path / "kept"))
    assert not verdict.passed and "clustering.recluster set to always" in verdict.sentence
    assert no_drift(at(first)).passed


def test_a_pool_that_has_grown_beyond_the_limit_is_clustered_anew(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incremental, "MAX_GROWTH", 0.05)
    outcome = made(embedded(tmp_path / "e", OLD, MORE), tmp_path / "new", last=first)
    assert not outcome.kept and "40 tiles were added to 600 training tiles" in outcome.origin


@pytest.mark.parametrize("change", ["parameter", "seed", "reference", "encoder"])
def test_kept_centroids_are_of_no_use_where_what_made_them_changed(change: str, first: Path, tmp_path: Path) -> None:
    embeddings = embedded(tmp_path / "e", OLD, labels=LABELS[::-1] if change == "reference" else LABELS)
    if change == "encoder":
        (embeddings / "encoder.json").write_text(json.dumps({"name": "another"}))
    changes: dict[str, Any] = {"candidates": (3, 5)} if change == "parameter" else {}
    outcome = made(embeddings, tmp_path / "new", last=first, seed=int(change == "seed"), **changes)
    assert not outcome.kept and "others than those of the last version" in outcome.origin


def test_without_a_reference_tiles_are_topped_up_too(tmp_path: Path) -> None:
    for name, parts in (("old", (OLD,)), ("new", (OLD, MORE))):
        folder = embedded(tmp_path / name, *parts)
        empty = pq.read_table(folder / "reference" / "index.parquet").slice(0, 0)
        pq.write_table(empty, folder / "reference" / "index.parquet")
    made(tmp_path / "old", tmp_path / "first")
    outcome = made(tmp_path / "new", tmp_path / "second", last=tmp_path / "first")
    assert outcome.kept and outcome.clusters.scene_names == ("pool",)


@pytest.mark.parametrize(
    ("recluster", "enabled", "kept"),
    [("auto", False, False), ("auto", True, True), ("always", True, False), ("never", False, True)],
)
def test_centroids_are_kept_only_where_someone_asked_for_it(
    recluster: str, enabled: bool, kept: bool, tmp_path: Path
) -> None:
    class Made:
        """As much of a materialization as is asked for."""

        layout, asset = Layout(tmp_path, tmp_path), "scene_clusters"

        def present(self) -> str:
            return "abc"

    wanted = settings(tmp_path, None, clustering={"recluster": recluster}, automation={"enabled": enabled})
    made_now: Any = Made()
    assert last_version(made_now, wanted.clustering, wanted.automation) == ""  # nothing lies there yet
    (tmp_path / "scene_clusters").mkdir()
    found = last_version(made_now, wanted.clustering, wanted.automation)
    assert bool(found) is kept


def test_a_pool_of_the_reference_s_kind_has_its_scenes(first: Path) -> None:
    rows = pq.read_table(first / "assignment.parquet").to_pylist()
    assert {row["scene"] for row in rows} == set(SCENES)
    assert [row["scene"] for row in rows] == [row["reference_scene"] for row in rows]
    assert strata_of(at(first)) == "scenes"


def test_a_foreign_pool_has_its_clusters_for_scenes_and_keeps_their_names_when_tiles_come(tmp_path: Path) -> None:
    made(embedded(tmp_path / "e1", STRANGE), tmp_path / "first")
    made(embedded(tmp_path / "e2", STRANGE, drawn(9, [len(SCENES)], 5)), tmp_path / "more", last=tmp_path / "first")
    before, after = (pq.read_table(tmp_path / name / "assignment.parquet").to_pylist() for name in ("first", "more"))
    assert all(row["scene"] == f"cluster {row['cluster_id']}" for row in after)
    assert {row["reference_scene"] for row in after} <= set(SCENES)
    assert [row for row in after if row in before] == before
    found = read_clusters(at(tmp_path / "more"))
    assert found.is_foreign and [found.strata[1][number] for number in found.strata[0]] == [
        row["scene"] for row in after
    ]
    assert "guess" in found.note and assigned_once(at(tmp_path / "more", tmp_path / "e2")).passed


def test_clusters_can_be_compared_with_those_of_the_same_centroids_only(first: Path, tmp_path: Path) -> None:
    for name, pool, seed in (("a", STRANGE, 0), ("same", STRANGE, 0), ("other", drawn(60, [len(SCENES)], 6), 0)):
        made(embedded(tmp_path / f"{name}_e", pool), tmp_path / name, seed=seed)
    assert strata_of(at(tmp_path / "a")) == strata_of(at(tmp_path / "same"))
    assert len({strata_of(at(folder)) for folder in (first, tmp_path / "a", tmp_path / "other")}) == 3


def test_names_of_clusters_sort_as_their_numbers() -> None:
    assert cluster_names(1) == ("cluster 0",)
    assert cluster_names(11)[0] == "cluster 00" and list(cluster_names(101)) == sorted(cluster_names(101))


def test_the_stability_index_is_zero_for_equal_shares_symmetric_and_grows_with_the_shift() -> None:
    even, tilted, far = np.array([100, 100]), np.array([120, 80]), np.array([180, 20])
    assert stability_index(even, even) == 0
    assert stability_index(even, tilted) == pytest.approx(stability_index(tilted, even))
    assert 0 < stability_index(tilted, even) < stability_index(far, even)


def test_the_stability_index_by_hand_with_half_a_tile_added_to_each_count() -> None:
    """Shares of 3.5/5 and 1.5/5 where there were halves."""
    expected = 0.2 * np.log(0.7 / 0.5) - 0.2 * np.log(0.3 / 0.5)
    assert stability_index(np.array([3, 1]), np.array([1, 1])) == pytest.approx(expected)


def numbered(start: int, stop: int) -> np.ndarray:
    """Contents (n, 16) of tiles by their numbers."""
    return np.arange(start, stop).astype(">u8").view(np.uint8).reshape(-1, 8).repeat(2, axis=1)


TRAINED = FittedClustering(
    Fitted(None, ClusteringSpace((), (), ())),
    Centroids(np.zeros((2, 1), np.float32), 2),
    (),
    balance_over="clusters",
    trained_on=numbered(0, 200),
    counts=np.array([100, 100]),
    far_distance=1.0,
)


def drifted(
    *, n_new: int = 0, n_far: int = 0, n_old: int = 200, n_in_first: int | None = None, apart: float = 0.0
) -> Drift:
    """The drift of tiles that trained the centroids, all of them far by now, and of new ones."""
    n = n_old + n_new
    cluster_id = (np.arange(n) >= (n // 2 if n_in_first is None else n_in_first)).astype(np.int32)
    distance = np.concatenate([np.full(n_old, 9.0), np.full(n_far, 1.01), np.full(n_new - n_far, 1.0)])
    contents = np.concatenate([numbered(0, n_old), numbered(1000, 1000 + n_new)])
    return drift(TRAINED, contents, cluster_id, distance, apart)


def test_new_tiles_are_far_if_more_than_the_limit_are_and_chance_explains_it_with_less_than_a_twentieth() -> None:
    """Sixteen or more of a hundred where ten are expected: 0.040; fifteen or more: 0.073."""
    assert drifted(n_new=100, n_far=15).reasons == ()
    [reason] = drifted(n_new=100, n_far=16).reasons
    assert "16 of 100" in reason and drifted(n_new=100, n_far=16).far_fraction == 0.16
    assert drifted().reasons == () and drifted().far_fraction == 0


def test_growth_counts_from_more_new_tiles_than_the_limit_allows() -> None:
    assert drifted(n_new=200).reasons == ()
    [reason] = drifted(n_new=201).reasons
    assert "201 tiles were added to 200" in reason


def test_shares_that_moved_beyond_the_limit_of_the_stability_index_are_drift() -> None:
    """Of 200 tiles in two clusters, 148 in one have an index of 0.248, and 149 have 0.260."""
    assert drifted(n_in_first=148).reasons == ()
    [reason] = drifted(n_in_first=149).reasons
    assert "stability index 0.26" in reason


def test_a_pool_that_becomes_foreign_or_ceases_to_be_is_drift() -> None:
    model = fit_scene_model(REFERENCE, LABELS)
    fitted = replace(TRAINED.fitted, scenes=model)
    for balance_over, apart, n_reasons in (
        ("clusters", 0.26, 0),
        ("clusters", 0.24, 1),
        ("scenes", 0.26, 1),
        ("scenes", 0.24, 0),
    ):
        kept = replace(TRAINED, fitted=fitted, balance_over=balance_over)
        found = drift(kept, numbered(0, 2), np.array([0, 1], np.int32), np.zeros(2), apart)
        assert len(found.reasons) == n_reasons


def test_a_tile_is_far_beyond_the_99th_percentile_of_the_distances_that_trained() -> None:
    distance = np.random.default_rng(0).permutation(np.arange(101.0))
    one = np.zeros(101, np.int32)
    found = SceneClusters(
        one, ("pool",), one, distance, distance, TRAINED.centroids, (), 0.0, "clusters", "", TRAINED.fitted
    )
    kept = fitted_clustering(found, numbered(0, 101))
    assert kept.far_distance == 99
    assert kept.counts.tolist() == [101, 0]


def test_a_version_from_before_the_domain_shift_was_called_so_is_read(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "earlier")
    quality = tmp_path / "earlier" / "quality.json"
    content = json.loads(quality.read_text())
    assert content.pop("domain_shift") == read_clusters(at(first)).domain_shift
    quality.write_text(json.dumps({**content, "foreignness": 0.25}))
    assert read_clusters(at(tmp_path / "earlier")).domain_shift == 0.25
