"""Plots as shapes in a unit square: SVG stretches them to any width, while words and tiles keep their size.

A place is 0 to 1 from the left, and from the top. Shapes are rounded to thousandths.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.floating]
N_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Shape:
    """An SVG path: filled areas, a line, or round dots. `tone` is a class of page.tones.css."""

    path: str
    tone: str
    form: Literal["area", "line", "dots"] = "area"
    n_marks: int = 0
    """Dots: the fewer on the plot, the larger they are drawn."""
    opacity: float = 1.0


@dataclass(frozen=True)
class Placed:
    """A tile or a word at a place of the plot; a word stands to its right, or to its left."""

    x: float
    y: float
    text: str
    pixels: NDArray[np.uint8] | None = None
    side: Literal["start", "end"] = "start"


@dataclass(frozen=True)
class Plot:
    """Shapes, axes, and what lies upon them. `alt` tells in words what one sees. `aspect`: width to height."""

    alt: str
    shapes: Sequence[Shape]
    x_ticks: Sequence[Tick] = ()
    y_ticks: Sequence[Tick] = ()
    x_label: str = ""
    y_label: str = ""
    placed: Sequence[Placed] = ()
    title: str = ""
    aspect: float = 2.2
    fixed_aspect: bool = False
    """Whether the aspect holds on a phone too, as a map's does."""

    @property
    def dot_px(self) -> float:
        """Diameter of a dot: thousands are fine-grained, a dozen can be seen."""
        n = sum(shape.n_marks for shape in self.shapes)
        return round(min(max(60 / math.sqrt(max(n, 1)), 2.6), 9.0), 1)


@dataclass(frozen=True)
class Axis:
    """From values to places, 0 to 1: linear or logarithmic, upwards where it stands."""

    low: float
    high: float
    log: bool = False
    vertical: bool = False

    def places(self, values: Iterable[float] | Places) -> Places:
        """The positions, 0 to 1, of values (n,); all 0.5 if low equals high."""
        numbers = np.asarray(list(values) if not isinstance(values, np.ndarray) else values, np.float64)
        low, high = self.low, self.high
        if self.log:
            numbers, low, high = np.log(numbers), math.log(low), math.log(high)
        at = (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
        return 1 - at if self.vertical else at

    def at(self, value: float) -> float:
        """The place of one value."""
        return float(self.places([value])[0])

    def ticks(self, n: int = N_TICKS) -> list[Tick]:
        """At round values, as the value is written."""
        values = log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, n=n)
        return [Tick(self.at(value), f"{value:,.0f}" if value >= 1000 else f"{value:g}") for value in values]


def dots(x: Places, y: Places, tone: str) -> Shape:
    """Dots at (n,), (n,): strokes of zero length with round caps, which stay round when the SVG is scaled."""
    path = "".join(f"M{a} {b}h0" for a, b in zip(_thousandths(x), _thousandths(y), strict=True))
    return Shape(path, tone, "dots", len(x))


def line(x: Places, y: Places, tone: str) -> Shape:
    """A line through (n,), (n,)."""
    return Shape(_polyline(x, y), tone, "line")


def band(x: Places, top: Places, bottom: Places, tone: str) -> Shape:
    """The area between two lines through (n,), pale."""
    outline = _polyline(np.concatenate([x, x[::-1]]), np.concatenate([top, bottom[::-1]]))
    return Shape(f"{outline}z" if len(x) > 1 else "", tone, opacity=0.16)


def rectangles(left: Places, right: Places, top: Places, bottom: Places, tone: str, opacity: float = 1.0) -> Shape:
    """Filled rectangles; each place (n,)."""
    edges = zip(*(_thousandths(edge) for edge in (left, right, top, bottom)), strict=True)
    path = "".join(f"M{a} {t}H{b}V{u}H{a}z" for a, b, t, u in edges if b > a and u > t)
    return Shape(path, tone, opacity=opacity)


def linear_ticks(low: float, high: float, *, n: int = N_TICKS) -> list[float]:
    """Round values from low to high, about `n`: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 3 and 5 times powers of ten within low to high; fewer of them where there would be too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 5), (1, 2, 5), (1,)):
        values = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        inside = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(inside) <= N_TICKS + 1:
            break
    return inside


def _polyline(x: Places, y: Places) -> str:
    points = [f"{a} {b}" for a, b in zip(_thousandths(x), _thousandths(y), strict=True)]
    return f"M{'L'.join(points)}" if points else ""


def _thousandths(places: Places) -> list[int]:
    return [int(value) for value in np.round(1000 * np.asarray(places, np.float64))]
