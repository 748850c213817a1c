"""Noise, coordinates and light: the building blocks of the painted scenes.

Fields are float32 arrays of shape (size, size); pictures have a last axis of red, green and blue, reflectance
in 0 to 1. Lengths are in pixels, so a larger picture shows more ground, not larger objects.
"""

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]


def fractal(rng: np.random.Generator, size_px: int, *, roughness: float = 1.8, coarsest_px: float = 64.0) -> Field:
    """Fractal noise of mean 0 and deviation 1 whose amplitude falls as frequency to the power -`roughness`.

    Structures larger than `coarsest_px` are flattened. White noise is filtered in the Fourier domain of a larger
    square, so that the picture does not wrap around.
    """
    n = size_px + size_px // 4
    frequency = _frequency(n)
    gain = np.maximum(frequency, np.float32(1.0 / min(coarsest_px, n))) ** np.float32(-roughness)
    return _filtered(rng, gain, size_px)


def speckle(rng: np.random.Generator, size_px: int, *, period_px: float, spread: float = 0.5) -> Field:
    """Noise of mean 0 and deviation 1 whose spots are `period_px` apart; `spread`, in octaves, is disorder."""
    octaves = np.log2(np.maximum(_frequency(size_px + size_px // 4), np.float32(1e-6)) * np.float32(period_px))
    return _filtered(rng, np.exp(-np.square(octaves / np.float32(spread))), size_px)


def _frequency(n: int) -> Field:
    """Cycles per pixel of each coefficient of a real Fourier transform of an n x n field."""
    across, down = np.fft.rfftfreq(n), np.fft.fftfreq(n)
    frequency: Field = np.hypot(down[:, None], across[None, :]).astype(np.float32)
    return frequency


def _filtered(rng: np.random.Generator, gain: Field, size_px: int) -> Field:
    n = len(gain)
    gain[0, 0] = 0
    spectrum = np.fft.rfft2(rng.standard_normal((n, n), dtype=np.float32)) * gain
    field: Field = np.fft.irfft2(spectrum, s=(n, n))[:size_px, :size_px].astype(np.float32)
    field -= field.mean()
    field /= field.std() + np.float32(1e-6)
    return field


def crowns(rng: np.random.Generator, size_px: int, *, pitch_px: float) -> tuple[Field, Field]:
    """Height of tree crowns `pitch_px` apart, 0 between and 1 at the centre, and a random value per crown in -1 to 1.

    Cellular noise (Worley, A cellular texture basis function, 1996): the nearest of points jittered about a grid.
    """
    n = int(size_px / pitch_px) + 4
    offset = rng.uniform(0.05, 0.95, (2, n, n)).astype(np.float32)
    size, value = rng.uniform(0.75, 1.25, (n, n)).astype(np.float32), rng.uniform(-1, 1, (n, n)).astype(np.float32)
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32) / np.float32(pitch_px) + 1
    row, col = y.astype(np.intp), x.astype(np.intp)
    nearest, own = np.full_like(x, np.inf), np.zeros_like(x)
    for i, j in np.ndindex(3, 3):
        at = row + i - 1, col + j - 1
        away = np.hypot(at[0] + offset[0][at] - y, at[1] + offset[1][at] - x) / size[at]
        own = np.where(away < nearest, value[at], own)
        nearest = np.minimum(nearest, away)
    return np.sqrt(np.maximum(1 - np.square(nearest * np.float32(1.3)), 0)), own


def turned(rng: np.random.Generator, size_px: int) -> tuple[Field, Field]:
    """Coordinates along and across a random direction, from a random origin."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32)
    x, y = x + np.float32(rng.uniform(0, 500)), y + np.float32(rng.uniform(0, 500))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def centred(field: Field) -> Field:
    """`field` less its value in the middle of the picture."""
    middle = len(field) // 2
    moved: Field = field - field[middle, middle]
    return moved


def ramp(field: Field, low: float, high: float) -> Field:
    """0 below `low`, 1 above `high` and smooth between: an antialiased edge."""
    t: Field = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (np.float32(3) - np.float32(2) * t)


def lit(height: Field, rng: np.random.Generator, *, strength: float) -> Field:
    """Brightness, 1 on the level, of a surface lit from a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    down, across = np.gradient(height)
    slope = across * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle))
    light: Field = 1 + np.float32(strength) * np.tanh(slope)
    return light


def colour(*rgb: int) -> Field:
    """A colour of shape (3,) from its 8-bit levels."""
    return np.asarray(rgb, dtype=np.float32) / np.float32(255)


def one_of(rng: np.random.Generator, palette: Field) -> Field:
    """A random colour of the palette (n, 3), slightly varied, more in brightness than in hue."""
    light = 1 + rng.normal(0, 0.07)
    rgb: Field = (palette[rng.integers(len(palette))] * light + rng.normal(0, 0.008, 3)).astype(np.float32)
    return rgb


def over(picture: Field, top: Field, opacity: Field) -> Field:
    """`top`, a picture or a colour, laid over `picture` with the opacity (size, size) in 0 to 1."""
    return picture + (top - picture) * opacity[..., None]


def tinted(rgb: Field, brightness: Field) -> Field:
    """The colour (3,) at the brightness (size, size)."""
    return brightness[..., None] * rgb
