"""Numbers as a person reads them: thousands separators, units, per cents."""

from collections.abc import Sequence

NBSP = "\N{NO-BREAK SPACE}"


def count(n: float) -> str:
    """12345 as 12,345."""
    return f"{n:,.0f}"


def counted(n: int, noun: str, plural: str = "") -> str:
    """`1 tile`, `12,345 tiles`; the plural where it is not the noun with an s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def share(part: float, whole: float = 1.0) -> str:
    """A part of a whole in per cent, with as many decimals as tell it from 0 and from all; empty of nothing."""
    if not whole:
        return ""
    percent = 100 * part / whole
    if percent in (0.0, 100.0):
        return f"{percent:.0f}{NBSP}%"
    if percent < 0.1:
        return f"under 0.1{NBSP}%"
    return f"{min(percent, 99.9):.1f}{NBSP}%"


def quantity(value: float) -> str:
    """A measured number with three or four significant digits: 0.0123, 4.56, 1,234."""
    size = abs(value)
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.3g}"


def number(value: object) -> str:
    """A measured number, as JSON holds it; a dash where there is none."""
    return quantity(value) if isinstance(value, int | float) else "\N{EN DASH}"


def size(n_bytes: float) -> str:
    """Bytes as kB, MB, GB or TB, powers of ten."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    step = next((i for i in range(len(units)) if n_bytes < 1000 ** (i + 1)), len(units) - 1)
    value = n_bytes / 1000**step
    return f"{value:.{0 if step == 0 or value >= 100 else 1}f}{NBSP}{units[step]}"


def name(word: str) -> str:
    """An identifier as a person writes it: low_information as low information."""
    return word.replace("_", " ")


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    *most, last = words or ("",)
    return f"{', '.join(most)} and {last}" if most else last


def shortened(text: str, n_letters: int = 34) -> str:
    """The text with its middle left out where it is long: both ends of a path tell something."""
    if len(text) <= n_letters:
        return text
    head = n_letters // 2
    return f"{text[:head]}…{text[-(n_letters - head - 1) :]}"
