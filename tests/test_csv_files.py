"""CSV files: what was written is read again, and no spreadsheet takes a cell for a formula."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsprune_dagster.utils.csv_files import formula_escaped, formula_unescaped, read_sheet, write_sheet

FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1", "\n=1+1")


@given(st.text())
def test_a_shielded_text_is_told_from_every_other_and_is_no_formula(text: str) -> None:
    assert formula_unescaped(formula_escaped(text)) == text
    assert not formula_escaped(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


@pytest.mark.parametrize("name", [*FORMULAS, "forest", "'forest", "'=1+1", "a,b", 'the "old" port', "ä"])
def test_names_come_back_and_figures_stay_figures(name: str, tmp_path: Path) -> None:
    path = tmp_path / "scenes.csv"
    write_sheet(path, ("scene", "n", "distance"), [(name, 3, "-0.25")])
    assert read_sheet(path) == [{"scene": name, "n": "3", "distance": "-0.25"}]
    [_, (cell, *figures)] = csv.reader(path.open(newline=""))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) and figures == ["3", "-0.25"]
