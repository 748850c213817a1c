"""params.yaml: one place for numbers, and clear words about bad ones."""

from pathlib import Path

import pytest

from rsprune_dagster.errors import UsageError
from rsprune_dagster.params import Params, load, parse

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def params() -> Params:
    return load(PROJECT / "params.yaml")


def test_every_value_has_a_sentence_of_reason() -> None:
    lines = (PROJECT / "params.yaml").read_text().splitlines()
    values = [index for index, line in enumerate(lines) if line.startswith("  ") and not line.strip().startswith("#")]
    assert len(values) > 20
    covered = [index for index in values if lines[index - 1].strip().startswith("#") or index - 1 in values]
    assert covered == values


def test_every_value_has_a_description() -> None:
    for section in Params.model_fields.values():
        assert all(field.description for field in section.annotation.model_fields.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selection": {"keep_fraction": 15}}, "give 0.15 to keep 15 %"),
        ({"selection": {"keep_fraction": 0}}, "keep_fraction is 0"),
        ({"selection": {"keep_fracton": 0.1}}, "did you mean keep_fraction"),
        ({"corpus": {"overlap_px": 256}}, "less than tile_size_px"),
        ({"corpus": {"bands": [1, 2]}}, "1 or 3 bands"),
        ({"corpus": {"value_range": [5, 5]}}, "low < high"),
        ({"entropy": {"threshold_from": "magic"}}, "'reference', 'bits' or 'quantile'"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(params: Params, changes: dict, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        params.with_values(changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_section_is_named(params: Params) -> None:
    raw = params.model_dump()
    del raw["entropy"]
    with pytest.raises(UsageError, match="entropy is missing"):
        parse(raw, source="params.yaml")


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="RSPRUNE_PROJECT"):
        load(tmp_path / "params.yaml")


def test_parameters_do_not_change(params: Params) -> None:
    with pytest.raises(ValueError, match="frozen"):
        params.selection.keep_fraction = 0.5
