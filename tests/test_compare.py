"""Two ledgers compared: nothing is lost, nothing is told twice, and the way back tells the same."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsprune_dagster.corpus import tables
from rsprune_dagster.pruning.compare import (
    CHANGES,
    ENTERED,
    LEFT,
    REASONS_ENTERED,
    REASONS_LEFT,
    changed_tiles,
    compare_ledgers,
    write_changes,
)
from rsprune_dagster.pruning.ledger import DECISIONS
from rsprune_dagster.pruning.pipeline import cluster_names
from rsprune_dagster.utils.errors import RunError

EMBEDDED = ("kept", "unselected", "duplicate")
Rows = list[dict[str, Any]]


def row(tile_id: str, decision: str, *, image: int = 0, scene: str = "sea", cluster_id: int = 0) -> dict[str, Any]:
    embedded = decision in EMBEDDED
    return {
        "tile_id": tile_id,
        "uri": "file",
        "content_md5": None if decision == "quarantined" else f"{image:032x}",
        "entropy_bits": None if decision == "quarantined" else 3.0,
        "scene": scene if embedded else None,
        "cluster_id": cluster_id if embedded else None,
        "rank": None,
        "decision": decision,
        "reason": f"{decision}, they say of {tile_id}",
    }


@st.composite
def ledgers(draw: st.DrawFn) -> Rows:
    """Some of twenty tiles, each with any decision; the kept ones are ranked."""
    ids = draw(st.sets(st.integers(0, 19)))
    rows = [
        row(
            f"it's/{number:02}",
            draw(st.sampled_from([*EMBEDDED, "low_information", "quarantined"])),
            image=draw(st.integers(0, 1)),
            scene=draw(st.sampled_from(["sea", "city"])),
            cluster_id=draw(st.integers(0, 1)),
        )
        for number in sorted(ids)
    ]
    kept = [each for each in rows if each["decision"] == "kept"]
    for rank, each in enumerate(kept, start=1):
        each["rank"] = rank
    return rows


def write(rows: Rows, path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, DECISIONS), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledgers")


def kept(rows: Rows) -> set[str]:
    return {each["tile_id"] for each in rows if each["decision"] == "kept"}


@settings(max_examples=15)
@given(one=ledgers(), other=ledgers())
def test_every_tile_is_counted_once_and_the_way_back_is_the_mirror(one: Rows, other: Rows, folder: Path) -> None:
    a, b = write(one, folder / "a"), write(other, folder / "b")
    there, back = compare_ledgers(a, b), compare_ledgers(b, a)
    assert (there.n_tiles_a, there.n_tiles_b) == (len(one), len(other))
    assert (there.n_kept_a, there.n_kept_b) == (len(kept(one)), len(kept(other)))
    assert there.n_stayed == len(kept(one) & kept(other))
    assert (there.n_entered, there.n_left) == (back.n_left, back.n_entered)
    assert (there.reasons_entered, there.reasons_left) == (back.reasons_left, back.reasons_entered)
    assert sum(there.reasons_left.values()) == there.n_left
    for scene in there.scenes:
        assert scene.n_kept_b == scene.n_kept_a + scene.n_entered - scene.n_left + scene.n_moved
    for count in ("n_kept_a", "n_kept_b", "n_entered", "n_left"):
        assert sum(getattr(scene, count) for scene in there.scenes) == getattr(there, count)
    assert sum(scene.n_moved for scene in there.scenes) == 0


@settings(max_examples=10)
@given(one=ledgers(), other=ledgers())
def test_the_changed_tiles_are_those_that_only_one_keeps(one: Rows, other: Rows, folder: Path) -> None:
    a, b = write(one, folder / "a"), write(other, folder / "b")
    clusters = compare_ledgers(a, b).clusters
    n = write_changes(a, b, clusters, folder / "changes")
    rows = pq.read_table(folder / "changes", schema=CHANGES).to_pylist()
    assert n == len(rows)
    for change, expected, words in (
        (ENTERED, kept(other) - kept(one), REASONS_ENTERED),
        (LEFT, kept(one) - kept(other), REASONS_LEFT),
    ):
        told = [each for each in rows if each["change"] == change]
        assert [each["tile_id"] for each in told] == sorted(expected)
        assert {each["kind"] for each in told} <= set(words)
        examples = changed_tiles(a, b, clusters, change, 3)
        ranks = [each["rank_b" if change == ENTERED else "rank_a"] for each in examples]
        assert ranks == sorted(ranks) and len(examples) == min(3, len(expected))
        assert all(example in told for example in examples)


@settings(max_examples=15)
@given(one=ledgers())
def test_nothing_differs_from_itself(one: Rows, folder: Path) -> None:
    a = write(one, folder / "a")
    same = compare_ledgers(a, a)
    assert same.is_empty
    assert not same.reasons_entered and not same.reasons_left
    assert all(scene.n_kept_a == scene.n_kept_b and not scene.n_moved for scene in same.scenes)
    assert write_changes(a, a, same.clusters, folder / "changes") == 0


@settings(max_examples=8)
@given(one=ledgers(), share=st.floats(0, 1))
def test_a_smaller_keep_fraction_only_leaves(one: Rows, share: float, folder: Path) -> None:
    cut = int(share * len(kept(one)))
    fewer = [
        {**each, "decision": "unselected", "rank": None} if each["rank"] and each["rank"] > cut else each
        for each in one
    ]
    found = compare_ledgers(write(one, folder / "a"), write(fewer, folder / "b"))
    assert (found.n_entered, found.n_left) == (0, len(kept(one)) - cut)
    assert set(found.reasons_left) <= {"unselected"}


@pytest.mark.parametrize(
    ("later", "kind"),
    [
        (None, "absent"),
        (row("t", "quarantined"), "quarantined"),
        (row("t", "unselected", image=1), "other_image"),
        (row("t", "low_information"), "low_information"),
        (row("t", "duplicate", scene="city"), "duplicate"),
        (row("t", "unselected", scene="city", cluster_id=1), "other_scene"),
        (row("t", "unselected", cluster_id=1), "other_cluster"),
        (row("t", "unselected"), "unselected"),
    ],
)
def test_each_reason_has_its_kind(later: dict[str, Any] | None, kind: str, tmp_path: Path) -> None:
    others = [{**row(f"u{number}", "kept"), "rank": 2 + number} for number in range(9)]
    a = write([{**row("t", "kept"), "rank": 1}, *others], tmp_path / "a")
    b = write([*([later] if later else []), *others], tmp_path / "b")
    found = compare_ledgers(a, b)
    assert found.reasons_left == {kind: 1}
    assert compare_ledgers(b, a).reasons_entered == {kind: 1}
    [told] = changed_tiles(a, b, found.clusters, LEFT, 5)
    assert told["reason_b"] == (later["reason"] if later else None)
    assert kind in REASONS_LEFT and kind in REASONS_ENTERED


@pytest.mark.parametrize("foreign", [False, True])
def test_clusters_that_were_trained_anew_are_not_compared_by_their_numbers(foreign: bool, tmp_path: Path) -> None:
    def ledger(n_kept: int, shift: int) -> Rows:
        """Twenty tiles of four clusters, which are numbered anew by `shift`."""
        clusters = [(number + shift) % 4 for number in range(20)]
        rows = [
            row(
                f"t{number:02}",
                "kept" if number < n_kept else "unselected",
                scene=cluster_names(12)[cluster] if foreign else "sea",
                cluster_id=cluster,
            )
            for number, cluster in enumerate(clusters)
        ]
        return [{**each, "rank": number + 1 if number < n_kept else None} for number, each in enumerate(rows)]

    a, b, anew = (write(ledger(*how), tmp_path / name) for name, how in (("a", (8, 0)), ("b", (6, 0)), ("c", (6, 1))))
    same, other = compare_ledgers(a, b), compare_ledgers(a, anew)
    assert same.clusters.are_same and same.clusters.scenes_are_same
    assert {scene.n_left for scene in same.scenes} >= {1 if foreign else 2}
    assert not other.clusters.are_same and other.clusters.scenes_are_same is not foreign
    assert bool(other.scenes) is not foreign and (other.n_stayed, other.n_left) == (6, 2)
    assert other.reasons_left == {"unselected": 2}
    assert {each["kind"] for each in changed_tiles(a, anew, other.clusters, LEFT, 5)} == {"unselected"}
    write_changes(a, anew, other.clusters, tmp_path / "changes")
    assert set(pq.read_table(tmp_path / "changes").column("kind").to_pylist()) == {"unselected"}


def test_it_streams_where_the_ledgers_do_not_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 90_000
    # tables of long ids, in a memory that holds a fraction of one
    monkeypatch.setattr(tables, "MEMORY_LIMIT", "40MB")
    for name, stays in (("a", 2), ("b", 3)):
        rows = [row(f"{number:0100}", "unselected" if number % stays else "kept") for number in range(n)]
        write(rows, tmp_path / name)
    found = compare_ledgers(tmp_path / "a", tmp_path / "b")
    assert (found.n_stayed, found.n_entered, found.n_left) == (n // 6, n // 3 - n // 6, n // 2 - n // 6)


def test_a_missing_ledger_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        compare_ledgers(tmp_path / "a", tmp_path / "b")
