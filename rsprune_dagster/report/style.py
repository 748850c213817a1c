"""One look for every picture: fonts, colours, and small PNG files.

Pictures are drawn through matplotlib's object interface on Agg, so nothing here touches global state. The colours are
Okabe and Ito's, which people with any colour vision can tell apart (jfly.uni-koeln.de/color, 2008).
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image, ImageFont

DPI = 130
"""Dagster's web UI shows a picture pixel by pixel, in a window of some 1,100 px: no figure may be wider than that."""
MAX_BYTES = 120_000
"""A picture lives in Dagster's event log as text; what is larger is drawn with fewer colours, then smaller."""
PALETTES = (192, 128)
"""Colours of a PNG; with fewer, the colours of a legend merge."""
QUALITIES = (92, 84, 76, 68)
"""JPEG quality of a sheet of tiles."""
MIN_EDGE_PX = 64
"""No picture is shrunk below this."""

INK = "#24292f"
MUTED = "#6e7781"
RULE = "#d0d7de"
PALE = "#dde2e7"
KEPT = "#0072b2"
DROPPED = "#b4bcc5"
ALERT = "#d55e00"
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7b5ea7", "#8c564b", "#444c56", "#b8a800")
"""Ten colours for ten scenes; those five apart differ most, as they share a marker."""

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "text.parse_math": False,  # a name from a corpus may hold dollars
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def look() -> Iterator[None]:
    """The style, for the length of a `with` block: draw inside it."""
    with rc_context(_RC):
        yield


def figure(width_in: float, height_in: float) -> Figure:
    """An empty figure of that size with its own canvas; call it inside `look()`."""
    drawing = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def png(drawing: Figure) -> bytes:
    """The figure as the bytes of a palette PNG. A character of a name that the font lacks is drawn as a box."""
    canvas: Any = drawing.canvas
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        canvas.draw()
    return small_png(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))


def small_png(picture: Image.Image) -> bytes:
    """A drawing as PNG bytes: 192 colours where MAX_BYTES allow, else fewer, else a smaller picture."""
    for n_colours in PALETTES:
        encoded = _palette_png(picture, n_colours)
        if len(encoded) <= MAX_BYTES:
            return encoded
    return small_png(_shrunk(picture)) if min(picture.size) > MIN_EDGE_PX else encoded


def small_jpeg(picture: Image.Image) -> bytes:
    """A sheet of photographs as JPEG bytes, a third of a PNG's: high quality where MAX_BYTES allow, else lower, else
    smaller."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 80 else 2)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    return small_jpeg(_shrunk(picture)) if min(picture.size) > MIN_EDGE_PX else buffer.getvalue()


def _palette_png(picture: Image.Image, n_colours: int) -> bytes:
    reduced = picture.quantize(colors=n_colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    reduced.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _shrunk(picture: Image.Image) -> Image.Image:
    return picture.resize((int(picture.width * 0.85), int(picture.height * 0.85)), Image.Resampling.LANCZOS)


@lru_cache
def font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, for text drawn beside tiles."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size_px)


def thousands(axis_value: float, _position: int = 0) -> str:
    """12345.0 as 12,345."""
    return f"{axis_value:,.0f}"


def percent(axis_value: float, _position: int = 0) -> str:
    """A share, 0 to 1, as per cent: 0.15 as 15 %."""
    return f"{axis_value:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


def counts_on(axes: Axes, which: str) -> None:
    """Write the ticks of axis `which` (x or y) as counts with thousands separators."""
    getattr(axes, f"{which}axis").set_major_formatter(FuncFormatter(thousands))


def shares_on(axes: Axes, which: str) -> None:
    """Write the ticks of axis `which` (x or y) as per cent."""
    getattr(axes, f"{which}axis").set_major_formatter(FuncFormatter(percent))
