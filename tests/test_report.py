"""Pictures are small, readable by a browser, the same each time, and take whatever a corpus throws at them."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rsprune_dagster.viz.blocks import Bar, Code, Column, Figure, Gallery, Heat, Interval, Table, Tile, TileRow
from rsprune_dagster.viz.counts import Counts, SceneCounts
from rsprune_dagster.viz.embedding import principal_plane, spread_out
from rsprune_dagster.viz.kept import quota_table
from rsprune_dagster.viz.markdown import image, markdown_table, table
from rsprune_dagster.viz.plot import Axis, Placed, Plot, band, dots, line, linear_ticks, log_ticks, rectangles
from rsprune_dagster.viz.sheet import MAX_BYTES
from rsprune_dagster.viz.template import picture

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
HOSTILE = "a<b>&\"'\x1b[31m\x00 $x$ {{ 7 * 7 }}"
XY = RNG.random((3_000, 2))
PLOT = Plot(
    alt=HOSTILE,
    shapes=[dots(*XY.T, "kept"), line(XY[:9, 0], XY[:9, 1], "s0"), band(XY[:9, 0], XY[:9, 1], XY[9:18, 1], "s0")],
    x_ticks=Axis(1, 2000, log=True).ticks(),
    y_ticks=Axis(0, 1, vertical=True).ticks(),
    x_label=HOSTILE,
    y_label="y",
    placed=[Placed(0.5, 0.5, HOSTILE, NOISE[0]), Placed(0.1, 0.1, HOSTILE)],
    title=HOSTILE,
)
COLUMNS = [Column("scene"), Column("kept"), Column("n", numeric=True), Column(HOSTILE, upright=True), Column("bits")]
ROWS = [
    [HOSTILE, Bar("5 %", 0.05, 1.0), "1,234", Heat("12", 0.6), Interval("2 to 3", 0.2, 0.25, 0.3, (0.22, 0.28), 0.1)],
    [Code("id"), Bar("", 0.0), "7", Heat(""), Interval("1", 0.1, 0.1, 0.1)],
]
BLOCKS: dict[str, Figure | Table | Gallery] = {
    "figure": Figure(HOSTILE, HOSTILE, [PLOT, PLOT], [("kept", HOSTILE)] * 12),
    "figure of nothing": Figure("", "", [Plot("", [dots(XY[:0, 0], XY[:0, 1], "kept")])]),
    "table": Table(HOSTILE, HOSTILE, COLUMNS, ROWS, total=["all", "", "8", "", ""]),
    "table of nothing": Table("", "", COLUMNS, []),
    "gallery": Gallery(
        "", "", [TileRow(HOSTILE, [Tile(one, "", HOSTILE, kept=True) for one in NOISE])] * 9, framed="x"
    ),
    "gallery of odd tiles": Gallery(
        "", "", [TileRow("", [Tile(NOISE[0, :9], ""), Tile(None, ""), Tile(NOISE[0, :8, :8], "")])]
    ),
    "gallery of nothing": Gallery("", "", []),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_picture_is_small_and_the_same_each_time(name: str) -> None:
    drawn = picture(BLOCKS[name])
    assert len(drawn) <= MAX_BYTES
    if drawn.startswith(b"<svg"):
        root = ElementTree.fromstring(drawn)
        assert float(root.attrib["width"]) <= 1140 and float(root.attrib["height"]) > 0
    else:
        Image.open(io.BytesIO(drawn)).load()
    assert picture(BLOCKS[name]) == drawn


@pytest.mark.parametrize("name", ["figure", "table"])
def test_a_name_is_shown_as_it_is_written_and_does_nothing(name: str) -> None:
    root = ElementTree.fromstring(picture(BLOCKS[name]))
    words = "".join(root.itertext())
    assert "a<b>&\"'\\x1b[31m\\x00 $x$ {{ 7 * 7 }}" in words
    assert not [one for one in root.iter() if one.tag.rpartition("}")[2] in ("b", "script", "foreignObject")]


def test_bars_are_as_long_as_their_shares() -> None:
    drawn = picture(BLOCKS["table"]).decode()
    assert re.findall(r'class="(whole|share)" y="2" width="([\d.]+)%"', drawn)[:2] == [
        ("whole", "100.0"),
        ("share", "5.0"),
    ]
    assert 'class="whisker" x="20.0%" y="7" width="10.0%"' in drawn and 'class="cut" x="10.0%"' in drawn


def test_a_place_is_where_its_value_lies() -> None:
    np.testing.assert_allclose(Axis(10, 20).places([10, 15, 20]), [0, 0.5, 1])
    np.testing.assert_allclose(Axis(10, 20, vertical=True).places([10, 20]), [1, 0])
    np.testing.assert_allclose(Axis(1, 100, log=True).places([1, 10, 100]), [0, 0.5, 1])
    assert Axis(3, 3).at(3) == 0.5
    assert [tick.text for tick in Axis(0, 2000).ticks(4)] == ["0", "500", "1,000", "1,500", "2,000"]
    assert linear_ticks(0.1, 0.9, n=4) == [0.2, 0.4, 0.6, 0.8] and log_ticks(64, 4800) == [100, 200, 500, 1000, 2000]


def test_shapes_are_paths_in_thousandths() -> None:
    x, y = np.array([0.0, 0.5]), np.array([1.0, 0.25])
    assert dots(x, y, "kept").path == "M0 1000h0M500 250h0" and line(x, y, "kept").path == "M0 1000L500 250"
    assert rectangles(x, x + 0.25, y - 0.25, y, "kept").path == "M0 750H250V1000H0zM500 0H750V250H500z"
    assert band(x, y - 0.25, y, "kept").path == "M0 750L500 0L500 250L0 1000z"


def test_a_framed_tile_differs_from_an_unframed_one_only_in_its_frame() -> None:
    grey = np.full((8, 8, 3), 128, np.uint8)
    plain, framed = (
        np.asarray(
            Image.open(io.BytesIO(picture(Gallery("", "", [TileRow("", [Tile(grey, "", kept=kept)])])))), np.int16
        )
        for kept in (False, True)
    )
    changed = np.abs(plain - framed).max(2) > 60
    inside = np.zeros_like(changed)
    inside[14:62, 14:62] = True
    assert changed.any() and not (changed & inside).any()


def test_an_image_carries_its_bytes_and_its_kind() -> None:
    for name, kind in (("figure", "svg\\+xml"), ("gallery", "jpeg")):
        drawn = picture(BLOCKS[name])
        found = re.fullmatch(rf"!\[a \\\[b\\\]\]\(data:image/{kind};base64,(.+)\)", image(drawn, "a [b]"))
        assert found and base64.b64decode(found[1]) == drawn


def test_numbers_align_right_and_have_separators() -> None:
    lines = table(["name", "n", "x"], [["a|b", 12345, 0.12345], ["c\nd", None, 1e6]]).splitlines()
    assert lines == [
        "| name | n | x |",
        "| :--- | ---: | ---: |",
        "| a\\|b | 12,345 | 0.123 |",
        "| c d |  | 1,000,000 |",
    ]
    with pytest.raises(ValueError, match="1 cells came for 2 columns"):
        table(["a", "b"], [["only"]])


def test_a_table_of_the_page_says_in_words_what_its_cells_draw() -> None:
    block = Table("", "below", COLUMNS, [["a|b", *ROWS[0][1:]]])
    assert markdown_table(block).splitlines()[1:] == [
        "| :--- | :--- | ---: | :--- | :--- |",
        "| a\\|b | 5 % | 1,234 | ▓ 12 | 2 to 3 |",
        "",
        "below",
    ]


def test_quotas_add_up_below_and_small_scenes_are_one_row() -> None:
    scenes = [SceneCounts(f"scene {i:02d}", 100 - i, 10, 80 - i, 10, 3) for i in range(45)]
    counts = Counts({"kept": 450}, tuple(scenes), {}, {}, {})
    block = quota_table(counts)
    assert len(block.rows) == 40 and block.rows[0][0] == "scene 00" and block.rows[-1][0] == "6 smaller scenes"
    n_kept = [int(str(row[2])) for row in block.rows]
    assert n_kept == [10] * 39 + [60] and block.total[2] == "450" and block.total[5] == f"{sum(range(56, 101)):,}"


def test_the_plane_keeps_what_varies_most_and_its_sign() -> None:
    vectors = RNG.normal(size=(300, 6)) * [1, 9, 1, 4, 1, 1]
    points, explained = principal_plane(vectors)
    assert abs(np.corrcoef(points[:, 0], vectors[:, 1])[0, 1]) > 0.95
    assert abs(np.corrcoef(points[:, 1], vectors[:, 3])[0, 1]) > 0.9
    assert explained[0] > explained[1] > 0 and explained.sum() <= 1
    np.testing.assert_allclose(np.abs(points).max(0), points.max(0))


def test_shown_tiles_are_far_apart_and_never_twice() -> None:
    points = RNG.normal(size=(200, 2))
    chosen = spread_out(points, 20)
    gaps = np.linalg.norm(points[chosen][:, None] - points[chosen][None], axis=2)[np.triu_indices(20, 1)]
    others = np.linalg.norm(points[:20, None] - points[None, :20], axis=2)[np.triu_indices(20, 1)]
    assert len(set(chosen)) == 20 and gaps.min() > 2 * others.min()
    assert len(spread_out(np.zeros((5, 2)), 3)) == 1
