"""Scenes: windows that cover, values that keep their meaning, and places that are right."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from rsprune_dagster.corpus import rasters
from rsprune_dagster.corpus.decode import Pixels, TileReader
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.sources import list_corpus, members
from rsprune_dagster.pruning.entropy import tile_entropy
from rsprune_dagster.utils.errors import TileError

SMALL = ReadOptions(tile_size_px=32)
LAEA = "+proj=laea +lat_0=45 +lon_0=-100 +units=us-ft"


def write_scene(path: Path, planes: np.ndarray[Any, Any], **profile: Any) -> Path:
    """(C, H, W) planes as a GeoTIFF of 10 m pixels in UTM zone 32 unless told otherwise."""
    count, height, width = planes.shape
    own = {"crs": "EPSG:32632", "transform": Affine(10, 0, 5e5, 0, -10, 5.5e6)}
    shape = {"count": count, "height": height, "width": width, "dtype": planes.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **{**own, **shape, **profile}) as dataset:
        dataset.write(planes)
    return path


def noise(n_planes: int, height: int, width: int, dtype: str = "uint8", top: int = 255) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(1, top, (n_planes, height, width)).astype(dtype)


def read_all(path: Path, options: ReadOptions) -> tuple[dict[str, Pixels], dict[str, str]]:
    """Pixels of the windows that are tiles, reasons of those that are not."""
    tiles, reasons = {}, {}
    (container,) = list_corpus([str(path)]).containers
    with TileReader(options) as reader:
        for table in members(container, options=options):
            for row in table.to_pylist():
                try:
                    tiles[row["tile_id"]] = reader.read_grey(row)
                except TileError as error:
                    reasons[row["tile_id"]] = str(error)
    return tiles, reasons


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(0, 7))
def test_windows_cover_the_scene(width: int, height: int, tile: int, overlap: int) -> None:
    boxes = rasters.grid(width, height, tile_size_px=tile, overlap_px=overlap)
    seen = np.zeros((height, width), int)
    for x, y, w, h in boxes:
        assert 0 < w <= tile
        assert 0 < h <= tile
        seen[y : y + h, x : x + w] += 1
    assert seen.min() == 1
    assert seen.max() == 1 or overlap
    assert len(set(boxes)) == len(boxes)
    assert len(boxes) == 1 or all(w > overlap or x == 0 for x, _, w, _ in boxes)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(2, 16))
def test_probes_stay_inside_and_reach_every_edge(width: int, height: int, n_along: int) -> None:
    boxes = list(rasters.probes(width, height, n_along))
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    assert (max(x + w for x, _, w, _ in boxes), max(y + h for _, y, _, h in boxes)) == (width, height)


@given(st.floats(1e-6, 1e9))
def test_exposure_follows_the_brightness(value: float) -> None:
    assert rasters.exposure_range(np.full(10, value)) == (0, pytest.approx(1.5 * value))
    assert rasters.exposure_range(np.full(10, -value)) == (pytest.approx(-1.5 * value), 0)


@given(st.integers(0, 60_000), st.integers(1, 500))
def test_exposure_grows_steadily_and_starts_with_8_bits(value: int, more: int) -> None:
    (_, high), (_, higher) = (rasters.exposure_range(np.full(9, each, np.uint16)) for each in (value, value + more))
    assert high >= max(255, value)
    assert high == 255 or value > 255
    assert 0 <= higher - high <= 1.5 * more


def test_exposure_of_negative_and_constant_values() -> None:
    assert rasters.exposure_range(np.array([-20.0] * 50 + [-5.0] * 50)) == (-30, 0)
    assert rasters.exposure_range(np.zeros(9)) == (0, 1)
    assert rasters.exposure_range(np.zeros(9, np.int16)) == (0, 255)


def bits_in_light(mean: float, noise: float) -> float:
    """Entropy of a 16-bit tile of noise, whose standard deviation is given as a part of the mean."""
    values = np.rint(mean * (1 + noise * np.random.default_rng(0).standard_normal((64, 64, 1)))).astype(np.uint16)
    levels = rasters.to_8_bits(values, *rasters.exposure_range(values.reshape(-1)))
    return tile_entropy(levels[:, :, 0], np.zeros((0, 0), np.bool_), 4)[0]


def test_a_little_more_light_changes_the_entropy_a_little() -> None:
    bits = [bits_in_light(100 * 1.01**step, 0.03) for step in range(600)]
    assert np.abs(np.diff(bits)).max() < 0.15


def test_the_noise_of_calm_water_has_little_entropy_however_bright_it_is() -> None:
    assert max(bits_in_light(600 * 1.01**step, 0.002) for step in range(450)) < 1.25


@given(st.integers(1, 70), st.integers(1, 300))
def test_scaling_in_chunks_is_scaling(height: int, chunk: int) -> None:
    values = np.random.default_rng(height).normal(500, 300, (height, 7, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rasters, "CHUNK_VALUES", chunk)
        scaled = rasters.to_8_bits(values, 100, 900)
    assert np.array_equal(scaled, np.rint(np.clip((values - 100) * (255 / 800), 0, 255)))


def test_windows_of_a_scene_put_together_are_the_scene(tmp_path: Path) -> None:
    planes = noise(3, 70, 90)
    tiles, reasons = read_all(
        write_scene(tmp_path / "s.tif", planes), ReadOptions(tile_size_px=32, min_valid_fraction=0)
    )
    assert reasons == {name: reason for name, reason in reasons.items() if "too small" in reason}
    for name, pixels in tiles.items():
        x, y, w, h = (int(part) for part in name.partition("#")[2].split(","))
        assert pixels.rgb is not None
        assert np.array_equal(pixels.rgb, planes[:, y : y + h, x : x + w].transpose(1, 2, 0))
    assert len(tiles) + len(reasons) == 9


def test_a_sliver_at_the_edge_is_quarantined_for_its_valid_share(tmp_path: Path) -> None:
    tiles, reasons = read_all(write_scene(tmp_path / "s.tif", noise(1, 64, 40)), SMALL)
    assert list(tiles) == ["s.tif#0,0,32,32", "s.tif#0,32,32,32"]
    assert reasons["s.tif#32,0,8,32"] == "only 25 % valid pixels, 50 % asked"


def test_a_georeferenced_raster_smaller_than_a_tile_is_one_whole_tile(tmp_path: Path) -> None:
    tiles, reasons = read_all(write_scene(tmp_path / "s.tif", noise(1, 20, 24)), SMALL)
    assert list(tiles) == ["s.tif#0,0,24,20"]
    assert not reasons


def test_nodata_alpha_and_nan_are_not_valid(tmp_path: Path) -> None:
    corner = noise(1, 32, 64)
    corner[:, :, :20] = 0
    by_value, reasons = read_all(write_scene(tmp_path / "v.tif", corner, nodata=0), SMALL)
    assert reasons == {"v.tif#0,0,32,32": "only 38 % valid pixels, 50 % asked"}
    alpha = np.concatenate([noise(3, 32, 64), np.where(corner > 0, 255, 0).astype(np.uint8)])
    by_alpha, reasons = read_all(write_scene(tmp_path / "a.tif", alpha, photometric="rgb", alpha="yes"), SMALL)
    assert len(reasons) == 1
    floats = np.where(corner > 0, corner / 300, np.nan).astype(np.float32)
    by_nan, reasons = read_all(write_scene(tmp_path / "n.tif", floats), SMALL)
    assert len(reasons) == 1
    assert [len(tiles) for tiles in (by_value, by_alpha, by_nan)] == [1, 1, 1]
    assert by_alpha["a.tif#32,0,32,32"].rgb is not None


def test_a_pixel_is_valid_where_any_seen_band_is(tmp_path: Path) -> None:
    planes = noise(3, 16, 16)
    planes[0] = 0
    tiles, _ = read_all(write_scene(tmp_path / "s.tif", planes, nodata=0), SMALL)
    assert tiles["s.tif#0,0,16,16"].valid is None


def test_a_scene_is_scaled_as_a_whole(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint16) * 100, (1, 64, 1))
    tiles, _ = read_all(write_scene(tmp_path / "s.tif", ramp), SMALL)
    ranges = {(pixels.scale_low, pixels.scale_high) for pixels in tiles.values()}
    assert len(ranges) == 1
    low, high = ranges.pop()
    assert (low, high) == pytest.approx((100, 6200), abs=100)
    assert tiles["s.tif#0,0,32,32"].grey.mean() < tiles["s.tif#32,0,32,32"].grey.mean() - 80
    given, _ = read_all(tmp_path / "s.tif", ReadOptions(tile_size_px=32, value_range=(0, 6300)))
    assert given["s.tif#0,0,32,32"].scale_high == 6300


def test_noise_of_a_calm_scene_stays_small(tmp_path: Path) -> None:
    sea = np.random.default_rng(0).normal(300, 3, (1, 64, 64)).astype(np.uint16)
    tiles, _ = read_all(write_scene(tmp_path / "s.tif", sea), SMALL)
    assert max(pixels.grey.std() for pixels in tiles.values()) < 26


def test_the_identity_of_a_window_is_its_values_and_mask(tmp_path: Path) -> None:
    planes = np.tile(noise(1, 32, 32), (1, 1, 2))
    same, _ = read_all(write_scene(tmp_path / "same.tif", planes), SMALL)
    assert len({pixels.content_md5 for pixels in same.values()}) == 1
    planes[0, 0, 0] ^= 1
    other, _ = read_all(write_scene(tmp_path / "other.tif", planes), SMALL)
    assert len({pixels.content_md5 for pixels in other.values()}) == 2
    assert {pixels.content_md5 for pixels in same.values()} < {pixels.content_md5 for pixels in other.values()}


@pytest.mark.parametrize(
    ("crs", "transform", "gsd_m"),
    [
        ("EPSG:32632", Affine(10, 0, 5e5, 0, -10, 5.5e6), 10),
        ("EPSG:4326", Affine(1e-4, 0, 9, 0, -1e-4, 60), (55_800 * 111_412) ** 0.5 * 1e-4),
        ("EPSG:3857", Affine(10, 0, 1e6, 0, -10, 8_399_737.89), 5.0),
        (LAEA, Affine(100, 0, 0, 0, -100, 0), 30.48),
        ("EPSG:32632", Affine(6, -8, 5e5, -8, -6, 5.5e6), 10),
    ],
)
def test_ground_sample_distance_in_metres_of_the_ground(
    tmp_path: Path, crs: str, transform: Affine, gsd_m: float
) -> None:
    tiles, _ = read_all(write_scene(tmp_path / "s.tif", noise(1, 16, 16), crs=crs, transform=transform), SMALL)
    assert tiles["s.tif#0,0,16,16"].gsd_m == pytest.approx(gsd_m, rel=0.005)


def test_the_centre_of_a_window_is_where_it_is(tmp_path: Path) -> None:
    degrees = Affine(0.01, 0, 8, 0, -0.01, 50)
    tiles, _ = read_all(write_scene(tmp_path / "s.tif", noise(1, 32, 64), crs="EPSG:4326", transform=degrees), SMALL)
    right = tiles["s.tif#32,0,32,32"]
    assert (right.lon, right.lat) == pytest.approx((8.48, 49.84))
    assert right.crs == "EPSG:4326"


def test_a_large_raster_without_crs_is_a_scene_too(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", noise(1, 64, 64), crs=None, transform=Affine(1, 0, 0, 0, 1, 1))
    tiles, _ = read_all(path, SMALL)
    assert len(tiles) == 4
    assert all(pixels.crs is None and pixels.gsd_m is None for pixels in tiles.values())


def test_seen_bands_follow_the_colour_tags(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", noise(4, 16, 16))
    with rasterio.open(path, "r+") as dataset:
        names = ("blue", "green", "red", "undefined")
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in names]
    with rasterio.open(path) as dataset:
        assert rasters.select_bands(dataset, ()) == [3, 2, 1]
        assert rasters.select_bands(dataset, (4,)) == [4]


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_a_complex_scene_is_one_refused_row(tmp_path: Path, dtype: str) -> None:
    tiles, reasons = read_all(write_scene(tmp_path / "s.tif", noise(1, 64, 64).astype(dtype)), SMALL)
    assert not tiles
    assert reasons == {"s.tif": f"complex values ({dtype}) are no picture; save their amplitude instead"}


def sparse(path: Path, width: int, height: int, count: int = 1, dtype: str = "uint8", **profile: Any) -> Path:
    """A TIFF of some kB without one stored block, however large it claims to be."""
    shape = {"width": width, "height": height, "count": count, "dtype": dtype}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        crs="EPSG:32632",
        transform=Affine(10, 0, 5e5, 0, -10, 5.5e6),
        sparse_ok=True,
        **shape,
        **profile,
    ):
        pass
    return path


TILED = {"tiled": True, "compress": "deflate"}


@pytest.mark.parametrize(
    ("size", "profile", "reason"),
    [
        ((32 * 708, 32 * 708), {}, "22656 x 22656 px make about 501,264 windows, more than 500,000 (MOST_WINDOWS"),
        ((64, 64), {"count": 10_001}, "has 10,001 bands, more than 10,000 (MOST_BANDS"),
        ((64, 64), {"blockxsize": 4096, "blockysize": 4096, **TILED}, "a block would take 16,777,216 bytes, more than"),
        (
            (64, 64),
            {"count": 300, "interleave": "pixel", "blockxsize": 256, "blockysize": 256, **TILED},
            "a block would take 19,660,800 bytes, more than 8,000,000, which are 8 for each of 1,000,000 pixels",
        ),
        ((32, 32), {"dtype": "float64", "count": 1000, "interleave": "band"}, ""),
    ],
)
def test_small_files_that_would_take_a_machine_are_one_refused_row(
    tmp_path: Path, size: tuple[int, int], profile: dict[str, Any], reason: str
) -> None:
    path = sparse(tmp_path / "s.tif", *size, **profile)
    assert path.stat().st_size < 20_000_000
    tiles, reasons = read_all(path, ReadOptions(tile_size_px=32, max_tile_pixels=10**6))
    assert (list(reasons), len(tiles)) == ((["s.tif"], 0) if reason else ([], 1))
    assert reason in reasons.get("s.tif", "")


def test_a_scene_whose_large_blocks_would_be_decoded_for_each_window_is_refused(tmp_path: Path) -> None:
    path = sparse(tmp_path / "s.tif", 9000, 9000, blockxsize=9008, blockysize=9008, **TILED)
    assert read_all(path, SMALL)[1]["s.tif"].startswith(
        "oversized: each of 79,524 windows would decode blocks of 9008 x 9008 px, 81,144,064 bytes, together "
    )


def test_a_window_of_too_many_bytes_is_refused(tmp_path: Path) -> None:
    options = ReadOptions(tile_size_px=256, max_tile_pixels=20_000)
    path = sparse(tmp_path / "s.tif", 256, 256, 3, "float64", interleave="band")
    assert read_all(path, options)[1] == {
        "s.tif": "oversized: 256 x 256 px x 3 bands of float64 would take 1,572,864 bytes, more than 160,000, which "
        "are 8 for each of 20,000 pixels; refused before decoding"
    }


def test_a_scene_that_is_cut_off_is_one_refused_row(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", noise(3, 200, 200))
    path.write_bytes(path.read_bytes()[:60_000])
    tiles, reasons = read_all(path, SMALL)
    assert not tiles
    assert list(reasons) == ["s.tif"]
    assert "damaged" in reasons["s.tif"]
    assert str(tmp_path) not in reasons["s.tif"]


def test_threads_and_repeats_see_the_same_tiles(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", noise(3, 128, 128, "uint16", 4000))
    (container,) = list_corpus([str(path)]).containers
    rows = next(members(container, options=SMALL)).to_pylist()

    def contents(_: int) -> list[tuple[str, bytes, float | None]]:
        with TileReader(SMALL) as reader:
            seen = [reader.read_grey(row) for row in rows]
            assert [reader.read_md5(row) for row in rows] == [pixels.content_md5 for pixels in seen]
        return [(pixels.content_md5, pixels.grey.tobytes(), pixels.scale_high) for pixels in seen]

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(contents, range(8))
    assert len(first) == 16
    assert all(other == first for other in others)


def test_the_real_scenes(shared_data: Path) -> None:
    listing = list_corpus([str(shared_data / "geotiff")])
    options = ReadOptions()
    rows = [r for each in listing.containers for table in members(each, options=options) for r in table.to_pylist()]
    by_file: dict[str, list[Pixels]] = {}
    reasons = {}
    with TileReader(options) as reader:
        for row in rows:
            try:
                pixels = reader.read_grey(row)
                by_file.setdefault(row["tile_id"].partition("#")[0], []).append(pixels)
            except TileError as error:
                reasons[row["tile_id"]] = str(error)
    assert reasons["bad/rasterio_corrupt.tif"].startswith("damaged raster")
    assert {tile_id for tile_id, reason in reasons.items() if "valid pixels" not in reason} == {
        "bad/rasterio_corrupt.tif"
    }
    expected = {
        "naip_m_4709963_se_14_1_20200831.tif": ("EPSG:26914", 5),
        "rasterio_RGB.byte.tif": ("EPSG:32618", 300),
        "riocolor_rgb16.tif": ("EPSG:32620", 60),
        "riotiler_mosaic_cog1.tif": ("EPSG:32618", 300),
        "stars_L7_ETMs.tif": ("EPSG:31985", 28.5),
    }
    assert set(by_file) == set(expected)
    for name, (crs, gsd_m) in expected.items():
        assert {pixels.crs for pixels in by_file[name]} == {crs}
        assert by_file[name][0].gsd_m == pytest.approx(gsd_m, rel=0.01)
    assert {pixels.dtype for pixels in by_file["riocolor_rgb16.tif"]} == {"uint16"}
