"""Where on Earth the tiles lie: longitude and latitude over a graticule, nothing loaded from the net.

Few tiles are dots, many are cells shaded by their number. Where the tiles lie in small places far apart, the places
with the most tiles are drawn by themselves too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from scipy.ndimage import find_objects, label

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.viz.blocks import Block, Figure, Text
from rsprune_dagster.viz.formatting import count, counted
from rsprune_dagster.viz.plot import Axis, Placed, Plot, Shape, Tick, dots, linear_ticks, rectangles
from rsprune_dagster.viz.thumbnails import Rows, fetch

MAX_DOTS = 4_000
N_CELLS = 96
"""Cells from west to east on a map of more tiles than MAX_DOTS."""
N_SHADES = 6
MAX_PLACES = 4
LETTERS = "ABCDEFGH"
SEARCH_CELLS = 64
"""Cells along each edge in which separate places are sought."""
FAR_APART = 0.25
"""Places are drawn by themselves where none is larger than this part of the whole map."""
MIN_SPAN_DEG = 0.01
SQUARE, FLAT = 1.15, 2.2
"""Least aspect of a map, and of one that only tells where the others lie."""
MAX_ASPECT: Final = 2.4


@dataclass(frozen=True)
class Extent:
    """A part of the Earth, in degrees."""

    west: float
    east: float
    south: float
    north: float

    @property
    def squeeze(self) -> float:
        """Kilometres of a degree of longitude to one of latitude, in the middle; not less than a tenth."""
        return max(math.cos(math.radians((self.south + self.north) / 2)), 0.1)

    @property
    def aspect(self) -> float:
        """Width to height on the ground."""
        return (self.east - self.west) * self.squeeze / (self.north - self.south)

    @property
    def x(self) -> Axis:
        return Axis(self.west, self.east)

    @property
    def y(self) -> Axis:
        return Axis(self.south, self.north, vertical=True)

    def framed(self, min_aspect: float) -> "Extent":
        """With a margin, and an aspect from `min_aspect` to MAX_ASPECT: a narrow or flat extent gets more around it."""
        width = 1.12 * (self.east - self.west) + 2 * MIN_SPAN_DEG
        height = 1.12 * (self.north - self.south) + 2 * MIN_SPAN_DEG
        width, height = max(width, min_aspect * height / self.squeeze), max(height, width * self.squeeze / MAX_ASPECT)
        lon, lat = (self.west + self.east) / 2, (self.south + self.north) / 2
        return Extent(lon - width / 2, lon + width / 2, lat - height / 2, lat + height / 2)

    def condition(self) -> str:
        """As SQL over lon and lat."""
        return f"lon BETWEEN {self.west!r} AND {self.east!r} AND lat BETWEEN {self.south!r} AND {self.north!r}"

    def cells(self, n_x: int, n_y: int) -> str:
        """As SQL: the cell of a tile, `cell_x` from the west and `cell_y` from the north."""
        width, height = max(self.east - self.west, 1e-9), max(self.north - self.south, 1e-9)
        return (
            f"least(floor((lon - {self.west!r}) / {width!r} * {n_x}), {n_x - 1})::INTEGER AS cell_x, "
            f"least(floor(({self.north!r} - lat) / {height!r} * {n_y}), {n_y - 1})::INTEGER AS cell_y"
        )


def maps(layout: Layout) -> list[Block]:
    """The map of all tiles that have coordinates, and of separate places where there are."""
    sql = """SELECT count(lon) AS n, min(lon) AS west, max(lon) AS east, min(lat) AS south, max(lat) AS north
             FROM manifest"""
    found = fetch(sql, layout.tables("manifest"))[0]
    n = found.pop("n")
    if not n:
        return [Text("No tile of this corpus says where on Earth it lies, so there is no map.", absent=True)]
    whole = Extent(**found)
    places = _places(layout, whole)
    plot = _map(layout, whole.framed(FLAT if places else SQUARE), places, "")
    legend = [("kept", "kept"), ("dropped", "went")]
    caption = (
        f"{counted(n, 'tile')} with coordinates (WGS 84), by the centre of each, over longitude and latitude. {_how(n)}"
    )
    blocks: list[Block] = [Figure("Where the tiles lie", caption, [plot], legend)]
    if places:
        closer = [_map(layout, place.framed(SQUARE), (), LETTERS[i]) for i, place in enumerate(places)]
        words = "The places with the most tiles, under the letters of the map above."
        blocks.append(Figure("Closer", words, closer, legend))
    return blocks


def _how(n: int) -> str:
    if n <= MAX_DOTS:
        return "A dot is a tile."
    return "The darker a cell, the more tiles, in steps of equal ratio: grey for all of them, in colour for those kept."


def _map(layout: Layout, extent: Extent, places: Sequence[Extent], title: str) -> Plot:
    rows = _cells(layout, extent)
    n, n_kept = sum(row["n"] for row in rows), sum(row["n_kept"] for row in rows)
    n_ticks = 2 if title else 4
    return Plot(
        alt=f"Map of {count(n)} tiles, {count(n_kept)} of them kept",
        shapes=_dots(layout, extent) if n <= MAX_DOTS else _shaded(rows, extent),
        x_ticks=_ticks(extent.x, n_ticks, "EW"),
        y_ticks=_ticks(extent.y, n_ticks, "NS"),
        placed=[
            Placed(extent.x.at((place.west + place.east) / 2), extent.y.at(place.north), LETTERS[i])
            for i, place in enumerate(places)
        ],
        title=f"{title} · {count(n_kept)} of {counted(n, 'tile')} kept" if title else "",
        aspect=extent.aspect,
        fixed_aspect=True,
    )


def _ticks(axis: Axis, n: int, ends: str) -> list[Tick]:
    """About `n` of them, two at least: one alone tells of no scale. With as many decimals as tell them apart."""
    values = linear_ticks(axis.low, axis.high, n=n)
    values = values if len(values) > 1 else linear_ticks(axis.low, axis.high, n=n + 2)
    step = min((abs(b - a) for a, b in pairwise(values)), default=1.0)
    decimals = next((d for d in range(5) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 5)
    sides = ["" if value == 0 else ends[value < 0] for value in values]
    return [
        Tick(axis.at(value), f"{abs(value):.{decimals}f}°{side}") for value, side in zip(values, sides, strict=True)
    ]


_JOINED = """(SELECT lon, lat, decision = 'kept' AS kept FROM manifest
              JOIN (SELECT tile_id, decision FROM decisions) AS decided USING (tile_id) WHERE lon IS NOT NULL)"""


def _cells(layout: Layout, extent: Extent) -> Rows:
    """Counts in a grid of about square cells, N_CELLS from west to east."""
    sql = f"""SELECT {extent.cells(*_grid(extent))}, count(*) AS n, count(*) FILTER (kept) AS n_kept
              FROM {_JOINED} WHERE {extent.condition()} GROUP BY ALL ORDER BY ALL"""
    return fetch(sql, layout.tables("manifest", "decisions"))


def _grid(extent: Extent) -> tuple[int, int]:
    return N_CELLS, max(1, round(N_CELLS / extent.aspect))


def _dots(layout: Layout, extent: Extent) -> list[Shape]:
    sql = f"SELECT * FROM {_JOINED} WHERE {extent.condition()} ORDER BY lon, lat, kept"
    rows = fetch(sql, layout.tables("manifest", "decisions"))
    x, y = extent.x.places([row["lon"] for row in rows]), extent.y.places([row["lat"] for row in rows])
    kept = np.array([row["kept"] for row in rows], dtype=bool)
    return [dots(x[some], y[some], tone) for tone, some in (("dropped", ~kept), ("kept", kept))]


def _shaded(rows: Rows, extent: Extent) -> list[Shape]:
    """All tiles in grey, the kept ones over them as smaller squares, each in N_SHADES."""
    n_x, n_y = _grid(extent)
    x, y = (np.array([row[axis] for row in rows], float) for axis in ("cell_x", "cell_y"))
    shapes = []
    for column, tone, inset in (("n", "dropped", 0.0), ("n_kept", "kept", 0.22)):
        n = np.array([row[column] for row in rows], float)
        shade = np.ceil(N_SHADES * np.log1p(n) / max(np.log1p(n.max()), 1e-9)).astype(int)
        for step in range(1, N_SHADES + 1):
            some = shade == step
            left, top = (x[some] + inset) / n_x, (y[some] + inset) / n_y
            right, bottom = (x[some] + 1 - inset) / n_x, (y[some] + 1 - inset) / n_y
            shapes.append(rectangles(left, right, top, bottom, tone, opacity=round(step / N_SHADES, 3)))
    return [shape for shape in shapes if shape.path]


def _places(layout: Layout, whole: Extent) -> list[Extent]:
    """Up to MAX_PLACES places with the most tiles; none where the tiles are not in small places far apart."""
    sql = f"""SELECT {whole.cells(SEARCH_CELLS, SEARCH_CELLS)}, min(lon) AS west, max(lon) AS east,
                     min(lat) AS south, max(lat) AS north, count(*) AS n
              FROM manifest WHERE lon IS NOT NULL GROUP BY ALL ORDER BY ALL"""
    rows = fetch(sql, layout.tables("manifest"))
    occupied = np.zeros((SEARCH_CELLS, SEARCH_CELLS), bool)
    occupied[[row["cell_y"] for row in rows], [row["cell_x"] for row in rows]] = True
    numbers, n_places = label(occupied, structure=np.ones((3, 3)))
    largest = max(max(part.stop - part.start for part in found) for found in find_objects(numbers))
    if n_places < 2 or largest > FAR_APART * SEARCH_CELLS:
        return []
    groups: dict[int, Rows] = {}
    for row in rows:
        groups.setdefault(int(numbers[row["cell_y"], row["cell_x"]]), []).append(row)
    by_size = sorted(
        groups.values(), key=lambda some: (-sum(row["n"] for row in some), min(row["west"] for row in some))
    )
    return [_around(some) for some in by_size[:MAX_PLACES]]


def _around(rows: Rows) -> Extent:
    return Extent(
        min(row["west"] for row in rows),
        max(row["east"] for row in rows),
        min(row["south"] for row in rows),
        max(row["north"] for row in rows),
    )
