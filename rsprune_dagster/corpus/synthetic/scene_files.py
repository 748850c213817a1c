"""Synthetic scene files: 16-bit GeoTIFFs of four bands whose windows show different scenes."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from rsprune_dagster.corpus.synthetic.plan import SyntheticPlan
from rsprune_dagster.corpus.synthetic.scenes import SCENES, ground
from rsprune_dagster.corpus.synthetic.terrain import Field, fractal, over, ramp

GSD_M: Final = 10.0
NODATA: Final = 0
MIN_VALID_FRACTION: Final = 0.5
"""As `corpus.min_valid_fraction` in params.yaml: windows below it are no tiles and have no ground truth."""

DIGITAL_NUMBERS: Final = 4200
"""Digital number of reflectance 1: bright ground uses 1/16 of the 16 bits, as in surface reflectance products."""

PLACES: Final = ((32632, 500_000, 5_400_000), (32737, 300_000, 9_200_000), (32718, 620_000, 8_500_000))
"""EPSG code and upper left corner in metres, used in turn; both hemispheres."""


def scene_file(plan: SyntheticPlan, index: int) -> tuple[bytes, dict[tuple[int, int], str]]:
    """A GeoTIFF, and the scene of each window of `plan.window_px` by its left and top pixel."""
    side = plan.scene_file_px // plan.window_px
    rng = plan.generator("scene file", "", index)
    names = [str(name) for name in rng.choice(list(SCENES), side * side, p=plan.scene_weights)]
    bands = np.rint(_with_infrared(_joined(plan, names, rng)) * DIGITAL_NUMBERS).astype(np.uint16)
    valid = _on_swath(rng, plan.scene_file_px)
    bands = np.where(valid, np.maximum(bands, NODATA + 1), NODATA).astype(np.uint16)
    return geotiff_bytes(bands, index=index, nodata=NODATA), _windows(plan, names, valid)


def _joined(plan: SyntheticPlan, names: list[str], rng: np.random.Generator) -> Field:
    """The scenes side by side, each overlapping those above and left of it by an irregular margin."""
    step, margin = plan.window_px, plan.window_px // 32
    picture = np.zeros((plan.scene_file_px + margin, plan.scene_file_px + margin, 3), dtype=np.float32)
    y, x = np.mgrid[: step + margin, : step + margin].astype(np.float32)
    for at, name in enumerate(names):
        top, left = (step * i for i in divmod(at, plan.scene_file_px // step))
        cell = picture[top : top + step + margin, left : left + step + margin]
        ragged = np.minimum(x, y) + fractal(rng, step + margin) * np.float32(margin / 6)
        cell[:] = over(cell, ground(name, rng=rng, size_px=step + margin), ramp(ragged, margin * 0.4, margin * 0.6))
    return picture[margin:, margin:]


def _with_infrared(picture: Field) -> Field:
    """(4, h, w): red, green, blue, and a near infrared that is high where green exceeds red and blue."""
    red, green, blue = np.moveaxis(picture, 2, 0)
    infrared = np.clip(0.6 * green + 4 * np.maximum(green - np.maximum(red, blue), 0) + 0.3 * (red - blue), 0, 1)
    return np.stack([red, green, blue, infrared])


def _on_swath(rng: np.random.Generator, size_px: int) -> NDArray[np.bool_]:
    """Validity mask with one invalid corner beyond the slanted edge of the swath."""
    y, x = np.mgrid[:size_px, :size_px]
    inside = x + y * rng.uniform(0.4, 2.5) > size_px * rng.uniform(0.15, 0.4)
    return np.rot90(inside, int(rng.integers(4)))


def _windows(plan: SyntheticPlan, names: list[str], valid: NDArray[np.bool_]) -> dict[tuple[int, int], str]:
    """The scene of each window with enough valid pixels, by its left and top pixel."""
    step = plan.window_px
    corners = [divmod(at, plan.scene_file_px // step) for at in range(len(names))]
    return {
        (left * step, top * step): name
        for (top, left), name in zip(corners, names, strict=True)
        if valid[top * step :, left * step :][:step, :step].mean() >= MIN_VALID_FRACTION
    }


def geotiff_bytes(bands: NDArray[Any], *, index: int = 0, nodata: float | None = None) -> bytes:
    """A tiled, compressed GeoTIFF of `bands` (n, height, width); `index` chooses the place on Earth."""
    epsg, west, north = PLACES[index % len(PLACES)]
    north -= 60_000 * (index // len(PLACES) % 50)
    n, height, width = bands.shape
    profile = {
        "driver": "GTiff", "count": n, "height": height, "width": width, "dtype": bands.dtype, "nodata": nodata,
        "crs": f"EPSG:{epsg}", "transform": Affine(GSD_M, 0, west, 0, -GSD_M, north),
        "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate",
    }  # fmt: skip
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.write(bands)
            if n == 4:
                dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined)
        return bytes(memory.read())
