"""Eight procedural scenes as seen by an aerial camera, generated from noise without photographs.

A painter returns the ground's reflectance, float32 (size, size, 3); `paint` adds atmosphere and camera. Every painter
draws scale, direction, season and colours at random, so that the tiles of a scene vary realistically.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.corpus.synthetic.terrain import (
    Field,
    centred,
    colour,
    crowns,
    fractal,
    lit,
    one_of,
    over,
    ramp,
    speckle,
    tinted,
    turned,
)

GRASS: Final = np.stack([colour(94, 104, 62), colour(112, 112, 74), colour(80, 98, 60), colour(128, 120, 84)])
CROPS: Final = {
    "spring": np.stack([colour(86, 112, 58), colour(104, 126, 66), colour(138, 116, 90), colour(118, 98, 76)]),
    "summer": np.stack([colour(78, 102, 56), colour(168, 152, 100), colour(186, 166, 112), colour(104, 118, 64)]),
    "autumn": np.stack([colour(142, 118, 92), colour(120, 98, 78), colour(160, 142, 108), colour(100, 106, 68)]),
    "dry": np.stack([colour(176, 156, 124), colour(150, 128, 100), colour(84, 104, 62), colour(192, 174, 140)]),
}
CROWNS: Final = np.stack(
    [colour(52, 72, 46), colour(44, 62, 44), colour(64, 82, 48), colour(84, 82, 50), colour(58, 70, 40)]
)
SOIL: Final = np.stack([colour(146, 124, 98), colour(166, 148, 118), colour(126, 110, 88)])
SAND: Final = np.stack([colour(212, 188, 148), colour(198, 164, 122), colour(186, 136, 94), colour(222, 206, 176)])
SEA: Final = np.stack(
    [colour(26, 52, 72), colour(34, 62, 78), colour(22, 44, 66), colour(46, 76, 82), colour(52, 74, 70)]
)
SHALLOWS: Final = np.stack([colour(86, 136, 136), colour(104, 142, 132), colour(72, 118, 126)])
MUD: Final = np.stack([colour(62, 80, 76), colour(92, 96, 78), colour(112, 104, 80), colour(44, 64, 68)])
ROOFS: Final = np.stack(
    [
        colour(150, 146, 140),
        colour(176, 172, 166),
        colour(204, 202, 198),
        colour(118, 112, 108),
        colour(152, 104, 84),
        colour(134, 92, 78),
        colour(100, 102, 108),
    ]
)
FOAM: Final = colour(226, 230, 228)
CLOUD: Final = colour(240, 241, 244)


def farmland(rng: np.random.Generator, size_px: int) -> Field:
    """Parcels in strips, each with its crop and its rows, between paths or hedges; now and then an irrigated circle."""
    along, across = turned(rng, size_px)
    bend = fractal(rng, size_px) * np.float32(rng.uniform(0, 1.2))
    parcel, row, edge = _parcels(rng, along + bend, across + bend)
    crops = one_of_each(rng, CROPS[str(rng.choice(list(CROPS)))], parcel, spread=0.03)
    texture = (
        1 + 0.05 * fractal(rng, size_px, roughness=1.2) + 0.02 * rng.standard_normal((size_px, size_px), np.float32)
    )
    picture = crops * (texture + row)[..., None]
    hedge = colour(58, 70, 46) if rng.random() < 0.5 else one_of(rng, SOIL + np.float32(0.06))
    return over(picture, hedge, (1 - ramp(edge, 0.3, 1.3)) * np.float32(rng.uniform(0.4, 0.9)))


def _parcels(rng: np.random.Generator, along: Field, across: Field) -> tuple[NDArray[np.int64], Field, Field]:
    """Number of the parcel, brightness of its rows around 0, and distance to its edge in pixels, of each point."""
    strip, to_side = cut(rng, across, mean_px=rng.uniform(14, 34))
    n_strips = int(strip.max()) + 1
    length = rng.uniform(20, 80, n_strips).astype(np.float32)[strip]
    position = along / length + rng.uniform(0, 1, n_strips).astype(np.float32)[strip]
    piece = np.floor(position)
    to_end = (0.5 - np.abs(position - piece - 0.5)) * length
    parcel = np.unique(strip * 100_003 + piece.astype(np.int64), return_inverse=True)[1].reshape(strip.shape)
    n = int(parcel.max()) + 1
    along_rows = np.where((rng.random(n) < 0.5)[parcel], along, across)
    period = rng.uniform(2.4, 5, n).astype(np.float32)[parcel]
    depth = (rng.uniform(0, 0.14, n) ** 1.3).astype(np.float32)[parcel]
    return parcel, depth * np.sin(2 * np.pi * along_rows / period), np.minimum(to_side, to_end)


def cut(rng: np.random.Generator, position: Field, *, mean_px: float) -> tuple[NDArray[np.int64], Field]:
    """A line cut at random into pieces about `mean_px` long: number of the piece, distance to the nearer cut."""
    low, high = float(position.min()), float(position.max())
    n = int((high - low) / mean_px * 2) + 3
    cuts = (low - rng.uniform(0, mean_px) + np.cumsum(rng.uniform(0.6, 1.4, n) * mean_px) - mean_px * 1.4).astype(
        np.float32
    )
    piece = np.searchsorted(cuts, position) - 1
    piece = np.clip(piece, 0, n - 2)
    start, end = cuts[piece], cuts[piece + 1]
    return piece, np.minimum(position - start, end - position)


def one_of_each(rng: np.random.Generator, palette: Field, number: NDArray[np.int64], *, spread: float) -> Field:
    """A picture that gives each numbered piece a colour of the palette, a little off."""
    n = int(number.max()) + 1
    colours = palette[rng.integers(len(palette), size=n)] + rng.normal(0, spread / 4, (n, 3))
    return (colours * (1 + rng.normal(0, 2.5 * spread, (n, 1)))).astype(np.float32)[number]


def forest(rng: np.random.Generator, size_px: int) -> Field:
    """Crowns lit from one side, two kinds of tree in drifts, relief, and clearings here and there."""
    trees, height = _trees(rng, size_px, pitch_px=rng.uniform(3.0, 7.5))
    relief = fractal(rng, size_px, roughness=2.2)
    picture = trees * (1 + np.float32(rng.uniform(0.02, 0.1)) * relief)[..., None]
    gap = ramp(fractal(rng, size_px, roughness=1.7) - 0.4 * height, *_rarely(rng))
    floor = tinted(one_of(rng, np.concatenate([GRASS, SOIL])), 1 + 0.06 * fractal(rng, size_px, roughness=1.0))
    return over(picture, floor, gap)


def _trees(rng: np.random.Generator, size_px: int, *, pitch_px: float) -> tuple[Field, Field]:
    """A closed canopy of two kinds of tree and the height of its crowns, 0 to 1."""
    height, own = crowns(rng, size_px, pitch_px=pitch_px)
    uneven = height + 0.12 * fractal(rng, size_px, roughness=0.8)
    light = lit(uneven * np.float32(pitch_px / 4), rng, strength=rng.uniform(0.3, 0.6)) * (0.5 + 0.7 * height)
    light *= 1 + np.float32(rng.uniform(0.04, 0.16)) * own
    kind = ramp(fractal(rng, size_px, roughness=1.6) + 0.9 * own, -0.5, 0.5)
    return over(tinted(one_of(rng, CROWNS), light), tinted(one_of(rng, CROWNS), light), kind), height


def _rarely(rng: np.random.Generator) -> tuple[float, float]:
    """Ramp limits over unit noise that select nothing in many tiles and up to a fifth of the ground in some."""
    level = rng.uniform(0.9, 3.2)
    return level, level + 0.25


def city(rng: np.random.Generator, size_px: int) -> Field:
    """Streets around blocks, blocks cut into lots, a building with its shadow on most lots, trees and parks between."""
    along, across = turned(rng, size_px)
    road_x, block_x = _streets(rng, along)
    road_y, block_y = _streets(rng, across)
    block = _numbered(block_x, block_y)
    green = (rng.random(int(block.max()) + 1) < rng.uniform(0.02, 0.2)).astype(np.float32)[block]
    picture = _yards(rng, size_px)
    roof, shadow, lot = _buildings(rng, along, across)
    picture *= 1 - 0.55 * (shadow * (1 - green))[..., None]
    picture = over(picture, one_of_each(rng, ROOFS, lot, spread=0.05), roof * (1 - green))
    picture = over(picture, _park(rng, size_px), green)
    asphalt = one_of(rng, np.stack([colour(92, 92, 94), colour(112, 110, 108), colour(128, 124, 118)]))
    return over(picture, asphalt, np.maximum(road_x, road_y)) * (1 + 0.03 * fractal(rng, size_px))[..., None]


def _streets(rng: np.random.Generator, position: Field) -> tuple[Field, NDArray[np.int64]]:
    """Opacity of the street and number of the block, along one axis."""
    block, to_street = cut(rng, position, mean_px=rng.uniform(22, 52))
    half_width = np.float32(rng.uniform(1.0, 2.0))
    return 1 - ramp(to_street - half_width, -0.5, 0.5), block


def _numbered(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number from 0 for each pair."""
    number: NDArray[np.int64] = np.unique(a * 100_003 + b, return_inverse=True)[1].reshape(a.shape)
    return number


def _yards(rng: np.random.Generator, size_px: int) -> Field:
    """Pavement and lawns with trees."""
    lawn = ramp(fractal(rng, size_px, roughness=1.1), *_threshold(rng, -0.5, 1.2))
    ground = over(tinted(one_of(rng, SOIL), np.ones_like(lawn)), one_of(rng, GRASS), lawn)
    trees = ramp(speckle(rng, size_px, period_px=5.0, spread=0.8), 0.9, 1.4)
    return over(ground, one_of(rng, CROWNS), trees * np.float32(0.85))


def _threshold(rng: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    """A soft threshold over unit noise somewhere between `low` and `high`."""
    level = rng.uniform(low, high)
    return level, level + 0.4


def _park(rng: np.random.Generator, size_px: int) -> Field:
    """Grass with groups of trees."""
    trees, height = _trees(rng, size_px, pitch_px=5.0)
    lawn = tinted(one_of(rng, GRASS), 1 + 0.05 * fractal(rng, size_px))
    return over(lawn, trees, ramp(height + 0.5 * fractal(rng, size_px, roughness=1.3), 0.4, 0.8))


def _buildings(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field, NDArray[np.int64]]:
    """Opacity of the roofs and of their shadows, and the number of the lot."""
    pitch_x, pitch_y = rng.uniform(6, 15, 2)
    sun, tall = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 3.0)
    built = rng.random((64, 64)) < rng.uniform(0.7, 0.97)
    inset = rng.uniform(0.08, 0.24, (4, 64, 64)).astype(np.float32)

    def roof(dx: float, dy: float) -> tuple[Field, NDArray[np.int64]]:
        u, v = (x + np.float32(dx)) / np.float32(pitch_x), (y + np.float32(dy)) / np.float32(pitch_y)
        i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
        left, right, low, high = inset[:, i % 64, j % 64]
        u, v = u - i, v - j
        depth_px = np.minimum(
            np.minimum(u - left, 1 - right - u) * pitch_x, np.minimum(v - low, 1 - high - v) * pitch_y
        )
        return ramp(depth_px.astype(np.float32), -0.5, 0.5) * built[i % 64, j % 64], _numbered(i, j)

    opacity, lot = roof(0, 0)
    shadow, _ = roof(tall * np.cos(sun), tall * np.sin(sun))
    return opacity, shadow, lot


def water(rng: np.random.Generator, size_px: int) -> Field:
    """Open water: one colour, slow drifts, faint waves in one direction, sometimes glint."""
    along, _ = turned(rng, size_px)
    drift = fractal(rng, size_px, roughness=2.4) * np.float32(rng.uniform(0.015, 0.06))
    phase = along / np.float32(rng.uniform(3, 9)) + fractal(rng, size_px, roughness=1.6) * np.float32(0.6)
    patches = ramp(fractal(rng, size_px), -1.5, 1.5)
    waves = np.sin(2 * np.pi * phase) * patches * np.float32(rng.uniform(0, 0.06))
    glint = np.maximum(speckle(rng, size_px, period_px=3.0) - 2.0, 0) * np.float32(max(0.0, rng.uniform(-0.1, 0.08)))
    picture: Field = tinted(one_of(rng, SEA), 1 + drift + waves) + glint[..., None]
    return picture


def desert(rng: np.random.Generator, size_px: int) -> Field:
    """Dunes with a steep side away from the wind, ripples, and stony ground between them in some tiles."""
    along, _ = turned(rng, size_px)
    period = rng.uniform(9, 34)
    bend = fractal(rng, size_px, roughness=2.2, coarsest_px=48) * np.float32(rng.uniform(0.15, 0.4))
    phase: Field = along / np.float32(period) + bend
    saw: Field = phase - np.floor(phase)
    steep = ramp(saw, 0.6, 0.78) * (1 - ramp(saw, 0.9, 1.0))
    shade = np.float32(rng.uniform(0.08, 0.3)) * (0.4 * ramp(saw, 0.0, 0.6) - steep)
    grain = lit(fractal(rng, size_px, roughness=1.7), rng, strength=rng.uniform(0.04, 0.14))
    sand = tinted(one_of(rng, SAND), grain * (1 + shade * ramp(fractal(rng, size_px), -2.5, 0.5)))
    stones = tinted(one_of(rng, SOIL), 1 + 0.08 * fractal(rng, size_px, roughness=0.8))
    return over(sand, stones, ramp(fractal(rng, size_px) - np.float32(0.6) * saw, *_rarely(rng)) * np.float32(0.7))


def river(rng: np.random.Generator, size_px: int) -> Field:
    """A meandering river with sand on its inner bends, through trees and meadow."""
    along, across = (centred(c) for c in turned(rng, size_px))
    wave = 2 * np.pi / rng.uniform(40, 90)
    swing = np.float32(rng.uniform(4, 13))
    start = np.float32(rng.uniform(0, 2 * np.pi))
    wander = fractal(rng, size_px, roughness=2.6) * np.float32(2.0)
    middle = swing * np.sin(np.float32(wave) * along + start) + wander + np.float32(rng.uniform(-0.15, 0.15) * size_px)
    slope = swing * np.float32(wave) * np.cos(np.float32(wave) * along + start)
    side = (across - middle) / np.sqrt(1 + slope * slope)
    inner = -np.sin(np.float32(wave) * along + start) * np.sign(side)
    away = np.abs(side) - np.float32(rng.uniform(2.5, 6.5))
    bank = ramp(inner, -0.2, 0.7) * np.float32(rng.uniform(1, 4)) + np.float32(0.3)
    picture = over(_wooded(rng, size_px, away), one_of(rng, SAND) * np.float32(0.9), 1 - ramp(away - bank, -0.6, 0.8))
    stream = tinted(one_of(rng, MUD), 1 + 0.04 * fractal(rng, size_px) + 0.08 * ramp(away, -5, 0))
    return over(picture, stream, 1 - ramp(away, -0.6, 0.6))


def _wooded(rng: np.random.Generator, size_px: int, away: Field) -> Field:
    """Meadow or fields with trees, denser by the water."""
    ground = farmland(rng, size_px) if rng.random() < 0.35 else _meadow(rng, size_px)
    trees, height = _trees(rng, size_px, pitch_px=rng.uniform(3.5, 6))
    near = np.clip(1.3 - away / np.float32(rng.uniform(8, 30)), -0.8, 1.2)
    cover = ramp(fractal(rng, size_px, roughness=1.4) + 1.2 * height + near, 0.9, 1.4)
    return over(ground, trees, cover)


def _meadow(rng: np.random.Generator, size_px: int) -> Field:
    """Grass of two colours, a little uneven."""
    mix = ramp(fractal(rng, size_px, roughness=1.3), -1, 1)
    grass = over(tinted(one_of(rng, GRASS), np.ones_like(mix)), one_of(rng, GRASS), mix)
    return grass * (1 + 0.06 * fractal(rng, size_px, roughness=0.9))[..., None]


def coast(rng: np.random.Generator, size_px: int) -> Field:
    """Deep water, shallows, lines of surf, a beach, and scrub behind it."""
    _, across = turned(rng, size_px)
    shore = fractal(rng, size_px, roughness=2.3) * np.float32(rng.uniform(2, 7))
    inland = centred(across) + shore + np.float32(rng.uniform(-0.2, 0.2) * size_px)
    shelf = rng.uniform(8, 26)
    sea = tinted(one_of(rng, SEA), 1 + 0.03 * fractal(rng, size_px))
    picture = over(sea, one_of(rng, SHALLOWS), ramp(inland, -shelf, 0) * np.float32(rng.uniform(0.6, 1)))
    picture = over(picture, FOAM, _surf(rng, inland))
    width = rng.uniform(2, 9)
    beach = tinted(one_of(rng, SAND), 1 + 0.03 * fractal(rng, size_px) - 0.16 * (1 - ramp(inland, 0, 2.5)))
    picture = over(picture, beach, ramp(inland, -0.6, 0.6))
    land = _wooded(rng, size_px, inland - np.float32(width) + np.float32(rng.uniform(0, 30)))
    return over(picture, land, ramp(inland + 0.8 * fractal(rng, size_px, roughness=1.0), width, width + 1.5))


def _surf(rng: np.random.Generator, inland: Field) -> Field:
    """Opacity of two to four broken lines of foam along the shore."""
    foam = np.zeros_like(inland)
    offshore = rng.uniform(0.5, 1.5)
    for _ in range(rng.integers(2, 5)):
        broken = ramp(fractal(rng, len(inland), roughness=1.1, coarsest_px=24), -0.6, 0.9)
        wobble = inland + np.float32(offshore) + 0.7 * fractal(rng, len(inland), roughness=1.8)
        foam = np.maximum(foam, np.exp(-np.square(wobble / np.float32(0.9))) * broken)
        offshore += rng.uniform(2, 5)
    return foam * np.float32(rng.uniform(0.5, 0.95))


def cloud(rng: np.random.Generator, size_px: int) -> Field:
    """Cloud with its shadow over any other ground: heaps with hard edges, or a veil."""
    below = [name for name in SCENES if name != "cloud"]
    ground = SCENES[below[rng.integers(len(below))]](rng, size_px)
    veil = rng.random() < 0.3
    mass = fractal(rng, size_px, roughness=1.9, coarsest_px=rng.uniform(28, 96))
    level = rng.uniform(-1.3, 0.1)
    opacity = ramp(mass, level - 0.3, level + (2.4 if veil else 0.8))
    drop = rng.integers(-7, 8, 2)
    shadow = np.roll(opacity, (int(drop[0]), int(drop[1])), (0, 1)) * np.float32(0.45)
    light = lit(mass, rng, strength=0.12) - 0.1 * (1 - ramp(mass, level, level + 1.6))
    top = tinted(CLOUD * np.float32(rng.uniform(0.86, 1.0)), light)
    return over(ground * (1 - shadow[..., None]), top, opacity)


SCENES: Final[dict[str, Callable[[np.random.Generator, int], Field]]] = {
    "fields": farmland,
    "forest": forest,
    "water": water,
    "desert": desert,
    "city": city,
    "coast": coast,
    "river": river,
    "cloud": cloud,
}
"""The painters by name, the most common scene first."""


def ground(scene: str, *, rng: np.random.Generator, size_px: int) -> Field:
    """Reflectance of the scene under air, float32 (size, size, 3) in 0 to 1. Raises KeyError for an unknown scene."""
    picture = SCENES[scene](rng, size_px)
    haze = np.float32(rng.uniform(0.0, 0.16) ** 1.2)
    light = np.float32(rng.normal(1.0, 0.07))
    return np.clip(picture * light * (1 - haze) + haze * colour(176, 188, 204), 0, 1)


def paint(scene: str, *, rng: np.random.Generator, size_px: int) -> NDArray[np.uint8]:
    """A tile of the scene as a camera image, uint8 (size, size, 3). Raises KeyError for an unknown scene."""
    picture = ground(scene, rng=rng, size_px=size_px)
    grain = rng.standard_normal((size_px, size_px, 3), np.float32) * np.float32(rng.uniform(0.003, 0.006))
    tile: NDArray[np.uint8] = np.rint(np.clip(picture + grain, 0, 1) * 255).astype(np.uint8)
    return tile
