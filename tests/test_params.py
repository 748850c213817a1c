"""params.yaml: one place for numbers, and clear words about bad ones."""

import math
from pathlib import Path

import pytest

from rsprune_dagster.cli.commands import _setting
from rsprune_dagster.config.params import Params, descriptions, load, parse
from rsprune_dagster.utils.errors import UsageError

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def params() -> Params:
    return load(PROJECT / "params.yaml")


def test_every_parameter_has_a_description(params: Params) -> None:
    about = descriptions((PROJECT / "params.yaml").read_text())
    assert {section: list(keys) for section, keys in about.items()} == {
        section: list(values) for section, values in params.model_dump().items()
    }
    assert about["selection"]["keep_fraction"] == "The share of readable tiles that is kept."
    assert about["entropy"]["threshold_from"].endswith("bits, or quantile.")


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
        ({"training": {"learning_rate": math.inf}}, "learning_rate is inf: expected a finite number that fits 64 bits"),
        ({"training": {"learning_rate": 10**400}}, "fits 64 bits"),
        ({"entropy": {"threshold_bits": math.nan}}, "threshold_bits is nan: expected a finite number"),
        ({"corpus": {"shard_size": 10**21}}, "shard_size is 1000000000000000000000: expected a finite number"),
        ({"corpus": {"shard_size": 1e21}}, "shard_size is 1e+21: expected a finite number"),
        ({"corpus": {"shard_size": -math.inf}}, "shard_size is -inf: expected a finite number"),
        ({"corpus": {"value_range": [0, math.inf]}}, "value_range is [0, inf]: expected a finite number"),
        ({"study": {"seeds": [1, 2**63]}}, "seeds is [1, 9223372036854775808]: expected a finite number"),
        ({"study": {"arms": ["full", "none"]}}, "take none out of arms"),
        ({"corpus": {"bands": list(range(10**5))}}, "bands.0 is 0"),
        ({"corpus": {"bands": [["x" * 10**5] * 10**4]}}, "bands.0 is ['xxx"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(params: Params, changes: dict, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        params.with_values(changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("depth", [300, 10_000])
def test_deep_nesting_is_one_line(params: Params, tmp_path: Path, depth: int) -> None:
    text = (PROJECT / "params.yaml").read_text().replace("shard_size: 1024", f"shard_size: {'[' * depth}{']' * depth}")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UsageError) as raised:
        load(tmp_path / "params.yaml")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    with pytest.raises(UsageError) as raised:
        params.with_values({"corpus": {"bands": _setting(f"corpus.bands={'[' * depth}{']' * depth}")[2]}})
    assert len(str(raised.value)) < 1000


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
