"""Damaged tars and Parquet files end as rows, reasons or one clear line, and never hang."""

from pathlib import Path

import pytest
from fuzz_containers import KINDS, fuzz, mutated

N_INPUTS = 200


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_damaged_container_is_rows_or_reasons(kind: str, tmp_path: Path) -> None:
    found = fuzz(kind, range(N_INPUTS), tmp_path)
    assert found["tile"] > N_INPUTS
    assert found.total() - found["tile"] > N_INPUTS / 3


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_seed_makes_the_same_inputs(kind: str) -> None:
    assert [mutated(kind, 0, index) for index in range(20)] == [mutated(kind, 0, index) for index in range(20)]
    assert mutated(kind, 0, 0) != mutated(kind, 1, 0)
