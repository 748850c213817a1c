"""Sorted tables: the bytes depend on the rows alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsprune_dagster.corpus import tables
from rsprune_dagster.corpus.tables import query, scalar, write_batches, write_query
from rsprune_dagster.errors import RunError

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
