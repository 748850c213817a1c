"""Super-resolution of a whole GeoTIFF: window by window with overlap, resumable, in its own bit depth.

The denoiser works on windows of its own size. Neighbouring windows overlap, start from the same noise where they do,
and are blended linearly, so that no border shows. Values are shown to the model as the corpus is (`corpus.rasters`).
The detail is the output of the model less the bicubic enlargement. The result is the enlargement of the stored values
plus the detail, so values outside of the range that the model is shown are kept.
"""

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from rsprune_dagster.corpus.gdal import TIFF_SUFFIXES, scaled_points
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.downstream.degradation import enlarged
from rsprune_dagster.downstream.open_scene import OpenScene, Scaling, open_scene
from rsprune_dagster.downstream.windows import corners, ramp
from rsprune_dagster.utils.atomic_write import atomic_write, check_output
from rsprune_dagster.utils.progress import Progress, silent

NOISE_BLOCK_PX: Final = 64
BLOCK_PX: Final = 256
"""Edge of the blocks of the written file."""
KERNEL_PX: Final = 4
"""Lines beyond a part of the scene that its bicubic enlargement may depend on; the kernel reaches two."""

Enhance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(windows (n, 3, w, w) float32 in [-1, 1], noise (n, channels, edge, edge)) to high-resolution (n, 3, s, s)."""


def upscale(
    source: Path,
    target: Path,
    scaling: Scaling,
    enhance: Enhance,
    *,
    options: ReadOptions,
    key: str,
    progress: Progress = silent,
) -> list[str]:
    """Write `source`, enlarged by `scaling.scale`, to `target`; returns remarks.

    Finished rows of windows are kept beside the target in `.TARGET.rows` until it is written, so a killed run goes on.
    They take 8 bytes for a pixel of the result. Memory: some 40 bytes for a pixel of 256 lines of the result.

    Args:
        options: how the corpus of the model was read: bands and range of values.
        key: a digest of the model and how it is sampled; rows of another key are not used.

    Raises:
        UsageError: the source is no GeoTIFF, is smaller than a window, has too few or other bands, or is the target.
        RunError: the target cannot be written.
    """
    check_output(source, target, TIFF_SUFFIXES)
    rows = target.with_name(f".{target.name}.rows") / _key(source, scaling, options, key)
    with open_scene(source, scaling, options) as scene:
        tops, lefts = (corners(length, scaling.window_px, scaling.overlap_px) for length in scene.shape)
        with progress("windows", len(tops) * len(lefts)) as advance:
            for number, top in enumerate(tops):
                if not (file := rows / f"{number:06d}.npy").exists():
                    detail = _row_of_windows(scene, top, lefts, enhance)
                    with atomic_write(file) as draft, draft.open("wb") as opened:
                        np.save(opened, detail.astype(np.float16))
                advance(len(lefts))
        with atomic_write(target) as draft:
            _write(scene, draft, rows, tops)
        remarks = scene.remarks()
    shutil.rmtree(rows)
    if not any(rows.parent.iterdir()):
        rows.parent.rmdir()
    return remarks


def noise_at(top: int, left: int, edge: int, channels: int, seed: int) -> np.ndarray:
    """Noise (channels, edge, edge) float32 of the result's window at (top, left); overlapping windows share theirs."""
    block = NOISE_BLOCK_PX
    first = top // block, left // block
    last = (top + edge - 1) // block, (left + edge - 1) // block
    rows = [
        np.concatenate([_noise_block(seed, row, column, channels) for column in range(first[1], last[1] + 1)], axis=2)
        for row in range(first[0], last[0] + 1)
    ]
    field = np.concatenate(rows, axis=1)
    down, right = top - first[0] * block, left - first[1] * block
    return field[:, down : down + edge, right : right + edge]


@lru_cache(maxsize=256)
def _noise_block(seed: int, row: int, column: int, channels: int) -> np.ndarray:
    shape = (channels, NOISE_BLOCK_PX, NOISE_BLOCK_PX)
    return np.random.default_rng((seed, row, column)).standard_normal(shape, np.float32)


def _row_of_windows(scene: OpenScene, top: int, lefts: Sequence[int], enhance: Enhance) -> np.ndarray:
    """The detail of a row of windows, blended from left to right: (3, edge, width scale) float32, 1 for the range."""
    scaling, (low, high) = scene.scaling, scene.range
    scale, edge, size = scaling.scale, scaling.edge_px, scaling.window_px
    values, _ = scene.colours(top, top + size)
    seen = (np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 2 - 1).astype(np.float32)
    total = np.zeros((3, edge, seen.shape[2] * scale), np.float32)
    weights = np.zeros(total.shape[2], np.float32)
    profile = ramp(edge, scaling.overlap_px * scale)
    for start in range(0, len(lefts), scaling.at_once):
        some = lefts[start : start + scaling.at_once]
        windows = torch.from_numpy(np.stack([seen[:, :, left : left + size] for left in some]))
        noise = torch.from_numpy(np.stack([_noise_of_window(top, left, scaling) for left in some]))
        detail = (enhance(windows, noise) - enlarged(windows, scale).clamp(-1, 1)).numpy() / 2
        for left, one in zip(some, detail, strict=True):
            area = np.s_[left * scale : left * scale + edge]
            total[:, :, area] += one * profile
            weights[area] += profile
    return total / weights


def _noise_of_window(top: int, left: int, scaling: Scaling) -> np.ndarray:
    channels, edge = scaling.noise_shape
    down, right = (place * scaling.scale * edge // scaling.edge_px for place in (top, left))
    return noise_at(down, right, edge, channels, scaling.seed)


def _write(scene: OpenScene, target: Path, rows: Path, tops: Sequence[int]) -> None:
    """Blend the rows of windows, add the bicubic enlargement, and write whole rows of the file's blocks at a time."""
    scaling, given, (height, width) = scene.scaling, scene.dataset, scene.shape
    scale, starts = scaling.scale, [top * scaling.scale for top in tops]
    profile = ramp(scaling.edge_px, scaling.overlap_px * scale)
    layout = {
        "driver": "GTiff",
        "count": given.count,
        "dtype": scene.kind,
        "height": height * scale,
        "width": width * scale,
        "nodata": scene.nodata,
        "crs": scene.raster.scene.crs,
        "transform": _finer(scene.raster.scene.transform, scale),
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
        **({"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX} if width * scale >= BLOCK_PX else {}),
    }
    # else the mask would be a file beside the draft
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(target, "w", **layout) as out:
        _copy_metadata(given, out, scale)
        step = math.lcm(BLOCK_PX, scale) // scale
        for top in range(0, height, step):
            end = min(top + step, height)
            detail = _blended(rows, starts, slice(top * scale, end * scale), profile)
            _write_lines(scene, out, top, end, detail * np.float32(scene.range[1] - scene.range[0]))


def _copy_metadata(given: Any, out: Any, scale: int) -> None:
    out.colorinterp, out.descriptions, out.units = given.colorinterp, given.descriptions, given.units
    out.scales, out.offsets = given.scales, given.offsets
    out.update_tags(**given.tags())
    for band in given.indexes:
        out.update_tags(band, **given.tags(band))
    points, crs = given.gcps
    if points:
        out.gcps = scaled_points(points, scale, scale), crs


def _blended(rows: Path, tops: Sequence[int], lines: slice, profile: np.ndarray) -> np.ndarray:
    """Lines of the result's detail, (3, n, width) float32, from all rows of windows that have a part of them."""
    edge, total, weights = len(profile), np.zeros(1, np.float32), np.zeros(lines.stop - lines.start, np.float32)
    for number, first in enumerate(tops):
        begin, stop = max(first, lines.start), min(first + edge, lines.stop)
        if begin >= stop:
            continue
        detail = np.load(rows / f"{number:06d}.npy", mmap_mode="r")
        if total.ndim == 1:
            total = np.zeros((3, len(weights), detail.shape[2]), np.float32)
        own, part = profile[begin - first : stop - first], np.s_[begin - lines.start : stop - lines.start]
        total[:, part] += detail[:, begin - first : stop - first] * own[:, None]
        weights[part] += own
    total /= weights[:, None]
    return total


def _finer(transform: Affine, scale: int) -> Affine:
    a, b, c, d, e, f = transform[:6]
    return Affine(a / scale, b / scale, c, d / scale, e / scale, f)


def _write_lines(scene: OpenScene, out: Any, top: int, end: int, detail: np.ndarray) -> None:
    """The lines of the result that belong to lines `top` to `end` of the scene."""
    scale = scene.scaling.scale
    above, below = max(0, top - KERNEL_PX), min(scene.shape[0], end + KERNEL_PX)
    area = np.s_[(top - above) * scale : (end - above) * scale]
    to = Window(0, top * scale, scene.shape[1] * scale, (end - top) * scale)
    values, valid = scene.colours(above, below)
    colours = enlarged(torch.from_numpy(values[None]), scale).numpy()[0, :, area] + detail
    shown = _repeated(valid, scale)[area]
    bands = {band: _stored(colour, shown, scene) for band, colour in zip(scene.bands, colours, strict=True)}
    for band in scene.others:
        plane, has_value = scene.other(band, above, below)
        big = enlarged(torch.from_numpy(plane[None]), scale).numpy()[0, 0, area]
        bands[band] = _stored(big, _repeated(has_value, scale)[area], scene)
    for band in scene.alpha:
        bands[band] = _repeated(scene.stored(band, above, below), scale)[area]
    out.write(np.stack([bands[band] for band in scene.dataset.indexes]), window=to)
    if scene.writes_mask():
        out.write_mask(shown, window=to)


def _repeated(plane: NDArray[Any], scale: int) -> NDArray[Any]:
    return plane.repeat(scale, axis=0).repeat(scale, axis=1)


def _stored(values: np.ndarray, valid: NDArray[Any], scene: OpenScene) -> NDArray[Any]:
    """Values in the kind of the file; invalid pixels get nodata or, if there is none, NaN in a float file."""
    kind, nodata = scene.kind, scene.nodata
    if kind.kind == "f":
        stored = values.astype(kind)
    else:
        limits = np.iinfo(kind)
        stored = np.clip(np.rint(values), limits.min, limits.max).astype(kind)
    if nodata is not None:
        stored[valid & (stored == nodata)] = _beside(nodata, kind)
        stored[~valid] = nodata
    elif kind.kind == "f":
        stored[~valid] = np.nan
    return stored


def _beside(nodata: float, kind: np.dtype[Any]) -> float:
    """The value next to nodata: a valid pixel must not become invalid by rounding."""
    if kind.kind == "f":
        return float(np.nextafter(np.array(nodata, kind), np.array(np.inf, kind)))
    return nodata + 1 if nodata < np.iinfo(kind).max else nodata - 1


def _key(source: Path, scaling: Scaling, options: ReadOptions, key: str) -> str:
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    how = scaling.scale, scaling.edge_px, scaling.noise_shape, scaling.seed, options.bands, options.value_range
    return hashlib.sha256(f"{content} {how} {key}".encode()).hexdigest()[:20]
