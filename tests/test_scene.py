"""A GeoTIFF enlarged window by window: georeference, bit depth, nodata, seams, and a run that was killed."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.downstream import scene
from rsprune_dagster.downstream.degradation import enlarged
from rsprune_dagster.downstream.open_scene import Scaling
from rsprune_dagster.downstream.scene import NOISE_BLOCK_PX, Enhance, noise_at
from rsprune_dagster.downstream.windows import corners, ramp
from rsprune_dagster.utils.errors import UsageError

ORIGIN = Affine(30.0, 0.0, 500_000.0, 0.0, -30.0, 4_200_000.0)
SCALING = Scaling(scale=2, edge_px=32, noise_shape=(3, 32), seed=0)


def smooth(bands: int, height: int, width: int, kind: str, seed: int = 0) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(bands, height, width)), (0, 3, 3))
    top = 1.0 if kind.startswith("float") else np.iinfo(kind).max * 0.6
    return ((field - field.min()) / np.ptp(field) * top).astype(kind)


def write_scene(path: Path, values: np.ndarray, **changes: Any) -> Path:
    profile = {
        "driver": "GTiff",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": "EPSG:32618",
        "transform": ORIGIN,
    }
    with rasterio.open(path, "w", **{**profile, **changes}) as raster:
        raster.write(values)
    return path


def nothing(low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """No detail: the bicubic enlargement."""
    return enlarged(low, SCALING.scale).clamp(-1, 1)


def upscale(
    source: Path,
    target: Path,
    scaling: Scaling,
    enhance: Enhance,
    *,
    key: str = "k",
    options: ReadOptions = ReadOptions(),  # noqa: B008
) -> list[str]:
    return scene.upscale(source, target, scaling, enhance, options=options, key=key)


class Stopping:
    """An enhancer that is interrupted at one of its calls."""

    def __init__(self, enhance: Enhance, at_call: int) -> None:
        self.enhance, self.at_call, self.n_calls = enhance, at_call, 0

    def __call__(self, low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        self.n_calls += 1
        if self.n_calls == self.at_call:
            raise KeyboardInterrupt
        return self.enhance(low, noise)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return np.asarray(raster.read())


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("height", "width"), [(50, 61), (300, 17)])
def test_without_detail_it_is_the_bicubic_enlargement_in_the_same_kind(
    tmp_path: Path, kind: str, height: int, width: int
) -> None:
    """Of a tall scene, which is written a row of blocks at a time."""
    values = smooth(3, height, width, kind)
    source = write_scene(tmp_path / "in.tif", values)
    assert upscale(source, tmp_path / "out.tif", SCALING, nothing) == []
    found = read(tmp_path / "out.tif")
    whole = enlarged(torch.from_numpy(values.astype(np.float32)[None]), 2).numpy()[0]
    assert found.dtype == kind and found.shape == (3, 2 * height, 2 * width)
    stored, tolerance = (whole, 1e-6) if kind == "float32" else (np.clip(whole, 0, None), 0.501)  # of rounding
    assert np.abs(found.astype(np.float64) - stored).max() <= tolerance
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]


def test_a_pixel_lies_where_it_lay(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", smooth(3, 50, 61, "uint8"))
    upscale(source, tmp_path / "out.tif", SCALING, nothing)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert after.crs == before.crs and after.bounds == before.bounds
        assert after.res == (15.0, 15.0)
        assert after.xy(40, 20, offset="ul") == before.xy(20, 10, offset="ul")


def test_nodata_stays_and_no_other_pixel_becomes_it(tmp_path: Path) -> None:
    values = smooth(3, 50, 61, "uint8") // 4 + 1
    values[:, :9, :13] = 0
    source = write_scene(tmp_path / "in.tif", values, nodata=0)

    def darker(low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.full_like(noise, -1.0)

    upscale(source, tmp_path / "out.tif", SCALING, darker)
    found = read(tmp_path / "out.tif")
    assert (found[:, :18, :26] == 0).all()
    rest = np.ones((100, 122), bool)
    rest[:18, :26] = False
    assert (found[:, rest] == 1).all()


def test_values_around_nodata_do_not_bleed(tmp_path: Path) -> None:
    values = np.full((3, 50, 61), 200, np.uint8)
    values[:, 20:30, 20:30] = 0
    source = write_scene(tmp_path / "in.tif", values, nodata=0)
    upscale(source, tmp_path / "out.tif", SCALING, nothing)
    assert set(np.unique(read(tmp_path / "out.tif"))) == {0, 200}


def test_other_bands_are_refused_or_enlarged_and_alpha_follows(tmp_path: Path) -> None:
    values = smooth(5, 50, 61, "uint8")
    values[4] = np.where(np.arange(61) < 30, 0, 255)
    source = write_scene(tmp_path / "in.tif", values)
    with rasterio.open(source, "r+") as raster:
        raster.colorinterp = [
            ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined, ColorInterp.alpha
        ]  # fmt: skip
    with pytest.raises(UsageError, match="1 band beside red, green and blue"):
        upscale(source, tmp_path / "out.tif", SCALING, nothing)
    assert not (tmp_path / "out.tif").exists()
    scaling = replace(SCALING, other_bands="bicubic")

    def red(low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        big = nothing(low, noise)
        return torch.cat([torch.ones_like(big[:, :1]), big[:, 1:]], dim=1)

    said = upscale(source, tmp_path / "out.tif", scaling, red)
    assert said == ["band 4 enlarged by bicubic interpolation alone"]
    found = read(tmp_path / "out.tif")
    assert (found[2] == 255).mean() > 0.99 and (found[0] == 255).mean() < 0.01  # red is the third band
    assert np.array_equal(found[4], values[4].repeat(2, 0).repeat(2, 1))


def test_windows_cover_the_scene_and_overlap() -> None:
    for length, edge in ((50, 32), (16, 32), (17, 32), (1000, 16), (30, 10), (30, 4)):
        window = edge // 2
        scaling = replace(SCALING, edge_px=edge)
        found = corners(length, scaling.window_px, scaling.overlap_px)
        assert found[0] == 0 and found[-1] == length - window
        assert all(0 < b - a <= window - window / 4 for a, b in itertools.pairwise(found))


def test_overlapping_windows_start_from_the_same_noise() -> None:
    whole = noise_at(0, 0, 3 * NOISE_BLOCK_PX, 2, seed=5)
    for top, left in ((0, 0), (10, 70), (63, 64), (100, 1)):
        part = noise_at(top, left, 48, 2, seed=5)
        assert np.array_equal(part, whole[:, top : top + 48, left : left + 48])
    assert not np.array_equal(noise_at(0, 0, 48, 2, seed=6), whole[:, :48, :48])
    assert abs(whole.mean()) < 0.02 and abs(whole.std() - 1) < 0.02


def test_blending_leaves_no_seam(tmp_path: Path) -> None:
    """Windows of different brightness: steps between neighbours are those of a slope, not of an edge."""
    source = write_scene(tmp_path / "in.tif", np.full((3, 150, 64), 128, np.uint8))
    offsets = iter(np.random.default_rng(0).uniform(-0.2, 0.2, 1000))

    def uneven(low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return nothing(low, noise) + torch.tensor([next(offsets) for _ in low]).float()[:, None, None, None]

    upscale(source, tmp_path / "out.tif", SCALING, uneven)
    found = read(tmp_path / "out.tif").astype(int)
    overlap = 8  # of 32 pixels
    steepest = 0.4 * 127.5 / overlap + 1  # the largest difference of two windows over the overlap, and rounding
    assert max(np.abs(np.diff(found, axis=axis)).max() for axis in (1, 2)) <= steepest
    assert ramp(32, 8)[:3].tolist() == pytest.approx([0.0625, 0.1875, 0.3125])


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", smooth(3, 90, 61, "uint16"))

    def detailed(low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return nothing(low, noise) + 0.1 * noise

    upscale(source, tmp_path / "whole.tif", SCALING, detailed)
    stopped = Stopping(detailed, at_call=4)
    with pytest.raises(KeyboardInterrupt):
        upscale(source, tmp_path / "out.tif", SCALING, stopped)
    assert not (tmp_path / "out.tif").exists()
    n_before = stopped.n_calls - 1
    upscale(source, tmp_path / "out.tif", SCALING, stopped)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    n_rows = len(corners(90, SCALING.window_px, SCALING.overlap_px))
    assert n_before > 0 and stopped.n_calls - 4 < n_rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif", "whole.tif"]


def test_bad_scenes_are_one_sentence(tmp_path: Path) -> None:
    small = write_scene(tmp_path / "small.tif", smooth(3, 12, 61, "uint8"))
    grey = write_scene(tmp_path / "grey.tif", smooth(1, 50, 61, "uint8"))
    (tmp_path / "broken.tif").write_bytes(b"II*\0 and no more")
    good = write_scene(tmp_path / "good.tif", smooth(3, 50, 61, "uint8"))
    wide = write_scene(tmp_path / "wide.tif", smooth(3, 50, 61, "int32"))
    complex_ = write_scene(tmp_path / "complex.tif", smooth(3, 50, 61, "float32").astype(np.complex64))
    (tmp_path / "folder.tif").mkdir()
    for source, target, words in (
        (small, "out.tif", "61 x 12 px, less than a window of 16 px"),
        (grey, "out.tif", "has 1 band, expected red, green and blue"),
        (tmp_path / "broken.tif", "out.tif", "cannot be read as a GeoTIFF"),
        (tmp_path / "absent.tif", "out.tif", r"absent\.tif is no file"),
        (wide, "out.tif", "values of type int32, expected uint8"),
        (complex_, "out.tif", "complex values"),
        (good, "good.tif", "is the input itself"),
        (good, "out.png", r"expected a file that ends in \.tif"),
        (good, "folder.tif", "cannot be the output"),
        (good, "nowhere/out.tif", "there is no folder .*nowhere"),
    ):
        with pytest.raises(UsageError, match=words) as raised:
            upscale(source, tmp_path / target, SCALING, nothing)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.tif").exists()


def test_without_georeference_the_result_has_none_and_says_so(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", smooth(3, 50, 61, "uint8"), crs=None, transform=Affine.identity())
    said = upscale(source, tmp_path / "out.tif", SCALING, nothing)
    assert said == ["the input has no georeference, so the result has none"]
    with rasterio.open(tmp_path / "out.tif") as raster:
        assert raster.crs is None


def brighter(low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A detail of a tenth of the range."""
    return nothing(low, noise) + 0.2


@pytest.mark.parametrize(("kind", "low", "high"), [("uint8", 0, 255), ("uint16", 200, 5200), ("float32", -0.1, 0.4)])
def test_detail_is_added_in_the_range_that_the_model_is_shown(
    tmp_path: Path, kind: str, low: float, high: float
) -> None:
    """The range is corpus.value_range; values beyond it are kept."""
    flat = np.full((3, 20, 20), low + 0.3 * (high - low), kind)
    flat[:, :, 10:] = low + 3 * (high - low) if kind != "uint8" else 60
    source = write_scene(tmp_path / "in.tif", flat)
    upscale(source, tmp_path / "out.tif", SCALING, brighter, options=ReadOptions(value_range=(low, high)))
    found, tolerance = read(tmp_path / "out.tif"), (high - low) / 1000 if kind == "float32" else 1
    step = (high - low) / 10
    for part, value in ((found[:, :, :16], flat[0, 0, 0]), (found[:, :, 24:], flat[0, 0, -1])):
        assert np.abs(part.astype(float) - float(value) - step).max() <= tolerance


def test_the_bands_of_the_corpus_are_enlarged(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", np.full((4, 20, 20), 100, np.uint8))
    scaling, options = replace(SCALING, other_bands="bicubic"), ReadOptions(bands=(4, 3, 2))
    assert upscale(source, tmp_path / "out.tif", scaling, brighter, options=options) == [
        "band 1 enlarged by bicubic interpolation alone"
    ]
    found = read(tmp_path / "out.tif").astype(int)
    assert np.abs(found[0] - 100).max() == 0 and np.abs(found[1:] - 125.5).max() <= 1


def test_nan_in_a_float_scene_stays_where_it_is(tmp_path: Path) -> None:
    values = smooth(3, 40, 40, "float32")
    values[:, 5:9, 5:9] = np.nan
    source = write_scene(tmp_path / "in.tif", values)
    upscale(source, tmp_path / "out.tif", SCALING, nothing)
    found = np.isnan(read(tmp_path / "out.tif"))
    assert found[:, 10:18, 10:18].all() and found.sum() == 3 * 8 * 8


def test_a_constant_16_bit_scene_stays_constant(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", np.full((3, 40, 40), 40_000, np.uint16))
    upscale(source, tmp_path / "out.tif", SCALING, nothing)
    assert (read(tmp_path / "out.tif") == 40_000).all()


def test_a_jpeg_scene_is_written_without_loss(tmp_path: Path) -> None:
    values = smooth(3, 160, 160, "uint8") // 2 + 60
    values[:, :32, :32] = 0
    source = write_scene(tmp_path / "in.tif", values, compress="jpeg", photometric="ycbcr", nodata=0)
    given = read(source)
    upscale(source, tmp_path / "out.tif", SCALING, nothing)
    found, empty = read(tmp_path / "out.tif"), (given == 0).all(axis=0).repeat(2, 0).repeat(2, 1)
    assert ((found == 0).all(axis=0) == empty).all() and empty.any()
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.compression == rasterio.enums.Compression.deflate and out.profile["tiled"]


def test_a_mask_is_written_into_the_file(tmp_path: Path) -> None:
    values = smooth(3, 40, 40, "uint8")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        source = write_scene(tmp_path / "in.tif", values)
        with rasterio.open(source, "r+") as scene:
            scene.write_mask(np.arange(40 * 40).reshape(40, 40) >= 40 * 7)
    upscale(source, tmp_path / "out.tif", SCALING, nothing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]
    with rasterio.open(tmp_path / "out.tif") as out:
        assert ((out.dataset_mask() > 0) == (np.arange(80) >= 14)[:, None]).all()


def test_scales_units_tags_and_control_points_are_kept(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, column, column * 2.0, -row * 3.0) for row, column in ((0, 0), (10, 0), (0, 20))]
    source = write_scene(tmp_path / "in.tif", smooth(3, 40, 40, "uint16"), crs=None, transform=Affine.identity())
    with rasterio.open(source, "r+") as given:
        given.scales, given.offsets, given.units = (1e-4,) * 3, (-0.1,) * 3, ("reflectance",) * 3
        given.update_tags(2, wavelength="560")
        given.gcps = points, "EPSG:4326"
    assert upscale(source, tmp_path / "out.tif", SCALING, nothing) == []
    with rasterio.open(tmp_path / "out.tif") as out:
        assert (out.scales, out.offsets, out.units) == ((1e-4,) * 3, (-0.1,) * 3, ("reflectance",) * 3)
        assert out.tags(2)["wavelength"] == "560"
        found, crs = out.gcps
        assert [(p.row, p.col, p.x, p.y) for p in found] == [(2 * p.row, 2 * p.col, p.x, p.y) for p in points]
        assert crs == "EPSG:4326"


def test_three_times_and_wider_than_a_block(tmp_path: Path) -> None:
    scaling = Scaling(scale=3, edge_px=24, noise_shape=(3, 24), seed=0)
    values = smooth(3, 270, 100, "uint8")
    source = write_scene(tmp_path / "in.tif", values)
    upscale(source, tmp_path / "out.tif", scaling, lambda low, noise: enlarged(low, 3).clamp(-1, 1))
    whole = enlarged(torch.from_numpy(values.astype(np.float32)[None]), 3).numpy()[0]
    assert np.abs(read(tmp_path / "out.tif") - np.clip(whole, 0, 255)).max() <= 0.501


def test_windows_are_given_the_noise_of_their_place(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", np.full((3, 40, 40), 128, np.uint8))
    scaling = Scaling(scale=2, edge_px=32, noise_shape=(4, 16), seed=7, at_once=3)  # latents of half the size
    seen: list[torch.Tensor] = []

    def listening(low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen.extend(noise)
        return nothing(low, noise)

    upscale(source, tmp_path / "out.tif", scaling, listening)
    found = corners(40, scaling.window_px, scaling.overlap_px)
    places = [(top, left) for top in found for left in found]
    assert len(seen) == len(places) == 9
    for noise, (top, left) in zip(seen, places, strict=True):
        assert np.array_equal(noise.numpy(), noise_at(top, left, 16, 4, seed=7))


def test_rows_of_another_scene_seed_or_model_are_not_used(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", smooth(3, 90, 40, "uint8"))
    stopped = Stopping(brighter, at_call=3)
    with pytest.raises(KeyboardInterrupt):
        upscale(source, tmp_path / "out.tif", SCALING, stopped)
    for number, (seed, key, options) in enumerate(
        [(1, "k", ReadOptions()), (0, "other", ReadOptions()), (0, "k", ReadOptions(value_range=(0.0, 9.0)))]
    ):
        made = [tmp_path / f"{number}.tif", tmp_path / "out.tif"]
        for path in made:
            upscale(source, path, replace(SCALING, seed=seed), nothing, key=key, options=options)
        assert np.array_equal(*map(read, made))
    assert (tmp_path / ".out.tif.rows").is_dir()  # of the run that was stopped


def test_a_damaged_scene_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", smooth(3, 300, 300, "uint8", seed=3))
    source.write_bytes(source.read_bytes()[:60_000])
    with pytest.raises(UsageError, match=r"in\.tif (is damaged|cannot be)"):
        upscale(source, tmp_path / "out.tif", SCALING, nothing)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tif"] == ["in.tif"]


LARGE = Scaling(scale=2, edge_px=256, noise_shape=(1, 8), seed=0, other_bands="bicubic")
"""Few windows, for scenes of real size."""
SCENES = (
    "rasterio_RGB.byte",
    "riocolor_rgb16",
    "stars_L7_ETMs",
    pytest.param("riotiler_mosaic_cog1", marks=pytest.mark.slow),
    pytest.param("naip_m_4709963_se_14_1_20200831", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("name", SCENES)
def test_a_real_scene_keeps_place_type_and_nodata(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "geotiff" / f"{name}.tif"
    upscale(source, tmp_path / "out.tif", LARGE, nothing)
    with rasterio.open(source) as given, rasterio.open(tmp_path / "out.tif") as made:
        assert made.shape == (2 * given.height, 2 * given.width)
        assert (made.crs, made.dtypes, made.nodata) == (given.crs, given.dtypes, given.nodata)
        assert made.bounds == pytest.approx(given.bounds)
        before, after = given.read(masked=True), made.read(masked=True)
        empty = np.ma.getmaskarray(before)[:3].all(axis=0).repeat(2, 0).repeat(2, 1)
        assert np.array_equal(np.ma.getmaskarray(after)[:3].all(axis=0), empty)
        limit = np.ma.max(before).astype(float) * 0.002
        assert (
            np.abs(np.ma.mean(after.astype(float), axis=(1, 2)) - np.ma.mean(before.astype(float), axis=(1, 2))).max()
            < limit
        )


def test_two_overlapping_scenes_agree_where_they_overlap(shared_data: Path, tmp_path: Path) -> None:
    """By their georeference, apart from the lines that the border of a scene changes."""
    made = []
    with rasterio.open(shared_data / "geotiff" / "riocolor_rgb16.tif") as whole:
        for number, box in enumerate([Window(0, 0, 80, 80), Window(40, 24, 80, 80)]):
            place = {"crs": whole.crs, "transform": whole.window_transform(box)}
            source = write_scene(tmp_path / f"{number}.tif", whole.read(window=box), **place)
            made.append(tmp_path / f"{number}.large.tif")
            upscale(source, made[-1], SCALING, nothing)
    with rasterio.open(made[0]) as one, rasterio.open(made[1]) as other:
        left, bottom, right, top = other.bounds.left, one.bounds.bottom, one.bounds.right, other.bounds.top
        common = [each.read(window=each.window(left, bottom, right, top).round()) for each in (one, other)]
    assert common[0].shape == common[1].shape == (3, 112, 80)
    inside = np.s_[:, 8:-8, 8:-8]
    assert np.array_equal(common[0][inside], common[1][inside])


def test_a_real_damaged_scene_is_one_sentence(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rasterio_corrupt\.tif (is damaged|cannot be)"):
        upscale(shared_data / "geotiff" / "bad" / "rasterio_corrupt.tif", tmp_path / "out.tif", LARGE, nothing)
    assert not (tmp_path / "out.tif").exists()
