"""Sorted tables: the bytes depend on the rows alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.corpus import tables
from rsprune_dagster.corpus.tables import query, rows_at, scalar, write_batches, write_query
from rsprune_dagster.pruning.ledger import RANKING
from rsprune_dagster.stages import pruned_subset as select
from rsprune_dagster.utils.errors import RunError

SCHEMA = pa.schema([pa.field("a", pa.int64()), pa.field("b", pa.string())])


def table(n: int) -> pa.Table:
    return pa.table({"a": np.arange(n), "b": [f"row {i}" for i in range(n)]}, schema=SCHEMA)


@settings(max_examples=20)
@given(n=st.integers(0, 50), cut=st.integers(1, 60))
def test_batching_does_not_show(n: int, cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROWS_PER_GROUP", 16)
        assert write_batches(table(n).to_batches(), folder / "one", SCHEMA) == n
        assert write_batches(table(n).to_batches(max_chunksize=cut), folder / "other", SCHEMA) == n
    assert (folder / "one").read_bytes() == (folder / "other").read_bytes()
    assert pq.read_table(folder / "one") == table(n)


def test_a_query_sees_named_tables_of_one_or_many_files(tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(table(10).slice(number * 3, 3), tmp_path / f"{number}'s.parquet")
    files = sorted(tmp_path.iterdir())
    assert scalar("SELECT count(*) FROM t", {"t": files}) == 9
    assert scalar("SELECT max(a) FROM t", {"t": files[0]}) == 2
    with query("SELECT t.b FROM t JOIN u USING (a) ORDER BY a DESC", {"t": files, "u": files[1]}) as batches:
        assert batches.read_all().column(0).to_pylist() == ["row 5", "row 4", "row 3"]


def test_a_missing_or_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read or sorted") as raised:
        scalar("SELECT count(*) FROM t", {"t": tmp_path / "nowhere.parquet"})
    assert "\n" not in str(raised.value)


def test_nothing_counts_as_zero(tmp_path: Path) -> None:
    pq.write_table(table(0), tmp_path / "t")
    assert scalar("SELECT max(a) FROM t", {"t": tmp_path / "t"}) == 0


def test_sorting_more_than_fits_in_memory_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 300_000
    order = np.random.default_rng(0).permutation(n)
    text = [f"{i:064d}" for i in order]
    pq.write_table(pa.table({"a": order, "b": text}, schema=SCHEMA), tmp_path / "t")
    monkeypatch.setattr(tables, "MEMORY_LIMIT", "60MB")
    write_query("SELECT * FROM t ORDER BY b", {"t": tmp_path / "t"}, tmp_path / "sorted", SCHEMA)
    assert (pq.read_table(tmp_path / "sorted").column("a").to_numpy() == np.arange(n)).all()


@settings(max_examples=20)
@given(rows=st.sets(st.integers(0, 49)))
def test_some_rows_are_those_of_the_whole_table(rows: set[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tables") / "t"
    pq.write_table(table(50), path, row_group_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROWS_PER_GROUP", 16)
        found = rows_at(path, ["b", "a"], np.array(sorted(rows), np.int64))
    assert found.to_pydict() == table(50).select(["b", "a"]).take(pa.array(sorted(rows), pa.int64())).to_pydict()
    assert found.schema.types == [pa.large_string(), pa.int64()]


def test_tile_ids_of_more_than_2_gib_are_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ids, each of them many times, so that the files are small; a few rows at a time, so that memory is too."""
    n, tile_id = 4_400, "x" * 2**19
    for module in (tables, select):
        monkeypatch.setattr(module, "ROWS_PER_GROUP", 8)
    for folder in ("embeddings", "scene_clusters", "pruned_subset"):
        (tmp_path / folder).mkdir()
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([tile_id]))
    index = pa.table({"content_md5": [f"{row:032d}" for row in range(n)], "tile_id": ids})
    pq.write_table(index, tmp_path / "embeddings" / "index.parquet", store_schema=False, write_statistics=False)
    assignment = pa.table({"scene": ["pool"] * n, "cluster_id": np.zeros(n, np.int32)})
    pq.write_table(assignment, tmp_path / "scene_clusters" / "assignment.parquet")
    leader = np.where(np.arange(n) == 4_000, 3, np.arange(n))
    layout = Layout(tmp_path, tmp_path)
    select._write_ranking(layout, np.flatnonzero(leader == np.arange(n))[::-1], leader)
    written = pq.ParquetFile(layout.file("ranking"))
    assert written.schema_arrow.equals(RANKING)
    assert written.metadata.num_rows == n
    ranks, copies = pq.read_table(layout.file("ranking"), columns=["rank", "near_copy_of"]).columns
    assert ranks.to_pylist()[4_000:4_002] == [None, n - 4_001]
    assert copies.null_count == n - 1 and copies[4_000].as_py() == tile_id
