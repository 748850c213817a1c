"""Values and tables as lines of a terminal."""

import pytest

from rsprune_dagster.tracking.format import format_list, format_table, format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),
        (1e-4, "0.0001"),
        (True, "true"),
        (None, "null"),
        ("", '""'),
        ([1, "a", [False]], "[1, a, [false]]"),
    ],
)
def test_a_value_is_written_as_params_yaml_has_it(value: object, text: str) -> None:
    assert format_value(value) == text


def test_numbers_stand_right_and_words_left() -> None:
    table = format_table(("scene", "tiles", "share"), [("sea", 1234, "1 %"), ("forest", 5, "")])
    assert table.splitlines() == ["scene   tiles  share", "sea     1,234  1 %", "forest      5"]
    assert format_table(("scene", "tiles"), []) == "scene  tiles"


@pytest.mark.parametrize(("n", "text"), [(0, ""), (3, "a, b, c"), (4, "a, b, c and 1 more")])
def test_a_long_list_ends_in_a_number(n: int, text: str) -> None:
    assert format_list(list("abcd")[:n]) == text
