"""Decoding: the same pixels wherever they lie, and a reason for every tile that cannot be used."""

import hashlib
import io
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.io import MemoryFile

from rsprune_dagster.corpus import formats
from rsprune_dagster.corpus.decode import MOST_TILE_BYTES, Pixels, TileReader
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.pixels import luma
from rsprune_dagster.utils.errors import TileError

OPTIONS = ReadOptions()
EDGE_PX = 24


def texture(n_planes: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(seed).integers(0, 256, (EDGE_PX, EDGE_PX, n_planes), np.uint8)
    return noise[:, :, 0] if n_planes == 1 else noise


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def gdal_bytes(planes: np.ndarray[Any, Any], driver: str = "GTiff", **profile: Any) -> bytes:
    """(C, H, W) planes as a file in memory."""
    count, height, width = planes.shape
    shape = {"count": count, "height": height, "width": width, "dtype": planes.dtype.name}
    profile = {"transform": Affine(1, 0, 0, 0, -1, 100), **shape, **profile}
    with MemoryFile() as file:
        with file.open(driver=driver, **profile) as dataset:
            dataset.write(planes)
        return bytes(file.read())


def colour(data: bytes, suffix: str = "", options: ReadOptions = OPTIONS) -> Pixels:
    return formats.read_colour(data, suffix, options)


def refusal(data: bytes, suffix: str = "", options: ReadOptions = OPTIONS) -> str:
    reasons = set()
    for read in (formats.read_grey, formats.read_colour):
        with pytest.raises(TileError) as caught:
            read(data, suffix, options)
        reasons.add(str(caught.value))
    (reason,) = reasons
    assert "\n" not in reason
    return reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WebP"])
def test_lossless_formats_give_the_pixels_that_were_saved(kind: str) -> None:
    pixels = colour(encoded(texture(), kind, **({"lossless": True} if kind == "WebP" else {})))
    assert np.array_equal(pixels.rgb, texture())
    assert np.array_equal(pixels.grey, luma(texture()))
    assert (pixels.width_px, pixels.height_px, pixels.n_bands, pixels.dtype) == (EDGE_PX, EDGE_PX, 3, "uint8")
    assert pixels.valid is None


def test_luma_is_that_of_itu_r_601() -> None:
    assert np.array_equal(luma(texture()), np.asarray(Image.fromarray(texture()).convert("L")))


def test_jpeg_grey_is_the_stored_luma_and_colours_are_pillows() -> None:
    data = encoded(texture(), "JPEG", quality=90)
    grey = formats.read_grey(data, ".jpg", OPTIONS)
    stored = Image.open(io.BytesIO(data))
    stored.draft("L", stored.size)
    assert np.array_equal(grey.grey, np.asarray(stored))
    rgb = colour(data, ".jpg")
    assert np.array_equal(rgb.rgb, np.asarray(Image.open(io.BytesIO(data))))
    assert rgb._replace(rgb=None, grey=None) == grey._replace(rgb=None, grey=None)  # type: ignore[arg-type]
    assert np.array_equal(rgb.grey, grey.grey)


@pytest.mark.parametrize(("mode", "n_bands"), [("L", 1), ("CMYK", 4)])
def test_grey_and_cmyk_jpegs(mode: str, n_bands: int) -> None:
    data = encoded(Image.fromarray(texture()).convert(mode), "JPEG")
    assert formats.read_grey(data, ".jpg", OPTIONS).n_bands == colour(data).n_bands == n_bands
    assert (colour(data).rgb is None) == (mode == "L")


def test_palette_and_one_bit_images_are_seen_in_their_colours() -> None:
    palette = Image.fromarray(texture()).quantize(16)
    assert np.array_equal(colour(encoded(palette, "PNG")).rgb, np.asarray(palette.convert("RGB")))
    one_bit = Image.fromarray(texture(1)).convert("1")
    assert np.array_equal(colour(encoded(one_bit, "PNG")).grey, np.asarray(one_bit.convert("L")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_lies_below_transparency_never_shows(mode: str) -> None:
    seen = []
    for hidden in (0, 255):
        planes = texture(len(mode), seed=3)
        planes[:, :, -1] = 255
        planes[:10, :10, -1] = 0
        planes[:10, :10, :-1] = hidden
        seen.append(colour(encoded(Image.fromarray(planes, mode), "PNG")))
    assert np.array_equal(seen[0].grey, seen[1].grey)
    assert seen[0].valid is not None
    assert int((~seen[0].valid).sum()) == 100
    below = seen[0].grey[:10, :10]
    assert abs(float(below.mean()) - float(seen[0].grey[seen[0].valid].mean())) <= 1
    assert "not one valid pixel" in refusal(encoded(Image.new(mode, (16, 16)), "PNG"))


@pytest.mark.parametrize("suffix_driver", [(".tif", "GTiff"), (".png", "PNG")])
@pytest.mark.parametrize("n_bands", [1, 3])
def test_sixteen_bits_keep_their_detail(suffix_driver: tuple[str, str], n_bands: int) -> None:
    suffix, driver = suffix_driver
    reflectance = texture(3).transpose(2, 0, 1)[:n_bands].astype(np.uint16) * 12
    pixels = colour(gdal_bytes(reflectance, driver), suffix)
    high = 255 + 1.5 * (np.percentile(reflectance, 98) - 255)
    assert (pixels.dtype, pixels.scale_low, pixels.scale_high) == ("uint16", 0, pytest.approx(high))
    assert len(np.unique(pixels.grey)) > 100
    given = colour(gdal_bytes(reflectance, driver), suffix, ReadOptions(value_range=(0, 255 * 12)))
    first = given.grey if given.rgb is None else given.rgb[:, :, 0]
    assert np.array_equal(first, texture(3)[:, :, 0])


def test_eight_bit_values_in_sixteen_bit_files_stay_as_they_are() -> None:
    wide = colour(gdal_bytes(texture(1)[None].astype(np.uint16)))
    assert np.array_equal(wide.grey, colour(gdal_bytes(texture(1)[None])).grey)


def test_calm_water_is_not_blown_up_to_full_contrast() -> None:
    water = np.random.default_rng(0).normal(300, 3, (1, 64, 64)).astype(np.uint16)
    assert colour(gdal_bytes(water)).grey.std() < 3


def test_float_images_with_nan() -> None:
    values = texture(1)[None] / np.float32(255)
    values[0, :5, :5] = np.nan
    pixels = colour(gdal_bytes(values))
    assert pixels.valid is not None
    assert int((~pixels.valid).sum()) == 25
    assert (pixels.scale_low, pixels.scale_high) == (0, pytest.approx(1.5 * np.nanpercentile(values, 98)))
    assert "not one valid pixel" in refusal(gdal_bytes(np.full((1, 9, 9), np.nan, np.float32)))


def test_six_bands_are_seen_through_the_chosen_three() -> None:
    planes = np.stack([texture(1, seed) for seed in range(6)])
    assert np.array_equal(colour(gdal_bytes(planes)).rgb, planes[:3].transpose(1, 2, 0))
    chosen = colour(gdal_bytes(planes), options=ReadOptions(bands=(4, 3, 2)))
    assert np.array_equal(chosen.rgb, planes[[3, 2, 1]].transpose(1, 2, 0))
    assert chosen.n_bands == 6
    assert "6 bands" in refusal(gdal_bytes(planes), options=ReadOptions(bands=(7, 1, 2)))


def test_two_bands_are_seen_as_the_first() -> None:
    planes = np.stack([texture(1, seed) for seed in range(2)])
    assert np.array_equal(colour(gdal_bytes(planes)).grey, planes[0])


def test_a_georeferenced_tile_in_a_tar_knows_its_place() -> None:
    data = gdal_bytes(texture(1)[None], crs="EPSG:32632", transform=Affine(10, 0, 5e5, 0, -10, 5.5e6))
    pixels = colour(data)
    assert pixels.crs == "EPSG:32632"
    assert pixels.lon == pytest.approx(9.0, abs=0.01)
    assert pixels.gsd_m == pytest.approx(10, rel=0.001)


def bomb_png() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(40)


def bomb_jpeg() -> bytes:
    data = bytearray(encoded(texture(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60000, 60000)
    return bytes(data)


def bomb_scans() -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(texture(), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 50 + data[-2:]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n"
JPEG = encoded(texture(), "JPEG")
PNG = encoded(texture(), "PNG")
TIFF = gdal_bytes(texture().transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("data", "suffix", "reason"),
    [
        (b"", ".jpg", "zero bytes"),
        (LFS, ".tif", "git-LFS pointer"),
        (bytes(500), ".png", "all 500 bytes are zero"),
        (b"<!DOCTYPE html><html></html>", ".jpg", "wrongly named: .jpg on an HTML page"),
        (b"404: not found\n", ".jpg", "wrongly named: .jpg on text"),
        (PNG, ".jpg", "wrongly named: .jpg on a PNG image"),
        (JPEG, ".png", "wrongly named: .png on a JPEG image"),
        (b"GIF89a....", ".png", "GIF"),
        (bytes(range(1, 200)), ".webp", "no known format"),
        (JPEG[:-20], ".jpg", "truncated JPEG"),
        (JPEG[:-200], ".jpg", "truncated JPEG"),
        (JPEG[:30], ".jpg", "JPEG"),
        (PNG[: len(PNG) // 2], ".png", "damaged PNG"),
        (PNG[:20], ".png", "truncated PNG"),
        (TIFF[: len(TIFF) // 2], ".tif", "damaged TIFF"),
        (TIFF[:6], ".tif", "damaged TIFF"),
        (encoded(texture(), "WebP")[:60], ".webp", "damaged WebP"),
        (encoded(texture(), "BMP")[:60], ".bmp", "damaged BMP"),
        (bomb_png(), ".png", "oversized: 60000 x 60000"),
        (bomb_jpeg(), ".jpg", "oversized: 60000 x 60000"),
        (bomb_scans(), ".jpg", "oversized: 59 JPEG scans are more than 50 (MOST_JPEG_SCANS"),
        (gdal_bytes(np.ones((1, 16, 16), np.complex64)), ".tif", "complex values"),
        (encoded(texture()[:7], "PNG"), ".png", "too small: 24 x 7"),
        (encoded(texture()[:, :7], "JPEG"), ".jpg", "too small: 7 x 24"),
        (gdal_bytes(texture(1)[None, :7]), ".tif", "too small: 24 x 7"),
    ],
)
def test_a_reason_for_every_tile_that_cannot_be_used(data: bytes, suffix: str, reason: str) -> None:
    assert reason in refusal(data, suffix)


@pytest.mark.parametrize("data", [JPEG, PNG, TIFF, encoded(texture(), "BMP")])
def test_oversized_images_of_every_format_are_refused(data: bytes) -> None:
    assert "more than 100 pixels" in refusal(data, options=ReadOptions(max_tile_pixels=100))


@pytest.mark.parametrize("progressive", [True, False])
def test_only_the_scans_of_the_picture_itself_count(progressive: bool) -> None:
    data = encoded(texture(), "JPEG", progressive=progressive, restart_marker_blocks=1)
    thumbnail = b"\xff\xe1\x02\x02" + b"\xff\xda" * 256
    assert formats.jpeg_scans(data) == (10 if progressive else 1)
    busy = data[:2] + thumbnail + data[2:] + b"\xff\xda" * 100
    assert formats.jpeg_scans(busy) == formats.jpeg_scans(data)
    assert np.array_equal(colour(busy).grey, colour(data).grey)


def test_a_float_tile_of_too_many_bytes_is_refused() -> None:
    data = gdal_bytes(np.ones((3, 32, 32), np.float64), compress="deflate")
    assert "24,576 bytes, more than 16,000" in refusal(data, options=ReadOptions(max_tile_pixels=2000))


@pytest.mark.parametrize("data", [JPEG, PNG, TIFF, encoded(texture(), "WebP"), encoded(texture(), "BMP")])
def test_no_cut_and_no_flipped_byte_gets_past_tile_error(data: bytes) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        broken = bytearray(data[: rng.integers(len(data) // 2, len(data))])
        broken[rng.integers(len(broken))] ^= 0xFF
        try:
            formats.read_grey(bytes(broken), "", OPTIONS)
        except TileError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 30


def test_the_same_bytes_in_a_file_and_in_a_tar_are_the_same_tile(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(tmp_path / "a.jpg", "a.jpg")
    with tarfile.open(tmp_path / "t.tar") as archive:
        offset = archive.getmembers()[0].offset_data
    file = {"tile_id": "a.jpg", "uri": str(tmp_path / "a.jpg"), "kind": "file"}
    tar = {
        "tile_id": "t.tar/a.jpg",
        "uri": str(tmp_path / "t.tar"),
        "kind": "tar",
        "offset": offset,
        "length": len(JPEG),
    }
    with TileReader(OPTIONS) as reader:
        for row in (file, tar, file):
            assert reader.read_grey(row).content_md5 == hashlib.md5(JPEG).hexdigest()
            assert np.array_equal(reader.read_rgb(row), np.asarray(Image.open(io.BytesIO(JPEG))))
            assert reader.read_bytes(row) == JPEG
            assert reader.read_md5(row) == hashlib.md5(JPEG).hexdigest()


def test_a_large_file_or_member_is_read_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * (1 << 15)
    (tmp_path / "a.jpg").write_bytes(data)
    calls: list[int] = []
    for name in ("read", "pread"):
        monkeypatch.setattr(os, name, counted(getattr(os, name), calls))
    row = {"tile_id": "a.jpg", "uri": str(tmp_path / "a.jpg"), "offset": 0, "length": len(data)}
    for kind in ("file", "tar"):
        calls.clear()
        with TileReader(OPTIONS) as reader:
            assert reader.read_bytes({**row, "kind": kind}) == data
        assert calls == [len(data)]


def counted(call: Any, lengths: list[int]) -> Any:
    """The call, noting how many bytes each gave."""

    def noting(*arguments: Any) -> bytes:
        data: bytes = call(*arguments)
        lengths.append(len(data))
        return data

    return noting


def test_pieces_as_a_network_gives_them_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: whole(fd, min(length, 100), offset))
    with TileReader(OPTIONS) as reader:
        assert reader.read_bytes({"tile_id": "a.jpg", "uri": str(tmp_path / "a.jpg"), "kind": "file"}) == JPEG


def test_a_file_of_many_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    os.truncate(tmp_path / "a.jpg", MOST_TILE_BYTES + 1)
    row = {"tile_id": "a.jpg", "uri": str(tmp_path / "a.jpg"), "offset": 0, "length": MOST_TILE_BYTES + 1}
    tracemalloc.start()
    for kind in ("file", "tar"):
        with TileReader(OPTIONS) as reader, pytest.raises(TileError, match="oversized: 1,073,741,825 bytes"):
            reader.read_grey({**row, "kind": kind})
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_grey_tiles_come_in_three_equal_planes(tmp_path: Path) -> None:
    (tmp_path / "g.png").write_bytes(encoded(texture(1), "PNG"))
    with TileReader(OPTIONS) as reader:
        rgb = reader.read_rgb({"tile_id": "g.png", "uri": str(tmp_path / "g.png"), "kind": "file"})
    assert np.array_equal(rgb, np.repeat(texture(1)[:, :, None], 3, axis=2))


def test_a_vanished_file_is_a_reason(tmp_path: Path) -> None:
    for kind, name in (("file", "a.jpg"), ("tar", "t.tar"), ("window", "s.tif"), ("parquet", "p.parquet")):
        place = {"offset": 0, "length": 1, "x": 0, "y": 0, "w": 8, "h": 8}
        with TileReader(OPTIONS) as reader, pytest.raises(TileError, match="vanished"):
            reader.read_grey({"tile_id": name, "uri": str(tmp_path / name), "kind": kind, **place})


@pytest.mark.parametrize("kind", ["file", "window"])
def test_pixels_are_of_the_content_that_the_row_names(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.tif"
    row = {"tile_id": "s.tif", "uri": str(path), "kind": kind, "x": 0, "y": 0, "w": 9, "h": 10}
    path.write_bytes(gdal_bytes(texture().transpose(2, 0, 1)))
    with TileReader(ReadOptions(min_valid_fraction=0)) as reader:
        row["content_md5"] = reader.read_md5(row)
        before = reader.read_rgb(row)
    path.write_bytes(gdal_bytes(texture(seed=1).transpose(2, 0, 1)))
    with TileReader(ReadOptions(min_valid_fraction=0)) as reader:
        for read in (reader.read_rgb, *([reader.read_bytes] if kind == "window" else [])):
            with pytest.raises(TileError, match=f"changed: its content hash was {row['content_md5']}, now it is "):
                read(row)
        assert not np.array_equal(reader.read_rgb({**row, "content_md5": None}), before)


def test_a_window_is_exported_as_it_is_seen(tmp_path: Path) -> None:
    (tmp_path / "s.tif").write_bytes(gdal_bytes(texture().transpose(2, 0, 1)))
    row = {
        "tile_id": "s.tif#2,3,9,10",
        "uri": str(tmp_path / "s.tif"),
        "kind": "window",
        "x": 2,
        "y": 3,
        "w": 9,
        "h": 10,
    }
    with TileReader(ReadOptions(min_valid_fraction=0)) as reader:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(reader.read_bytes(row)))), texture()[3:13, 2:11])


def test_palette_tiffs_are_seen_in_their_colours(tmp_path: Path) -> None:
    profile = {"width": 16, "height": 16, "count": 1, "dtype": "uint8", "transform": Affine(1, 0, 0, 0, -1, 16)}
    with rasterio.open(tmp_path / "p.tif", "w", driver="GTiff", photometric="palette", **profile) as dataset:
        dataset.write(np.ones((1, 16, 16), np.uint8))
        dataset.write_colormap(1, {0: (0, 0, 0, 255), 1: (10, 200, 30, 255)})
    pixels = colour((tmp_path / "p.tif").read_bytes(), ".tif")
    assert pixels.rgb is not None
    assert pixels.rgb[0, 0].tolist() == [10, 200, 30]
