"""A scene is read with the few files that may lie beside it, and nothing else is opened: no other file, no URL."""

import html
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.crs import CRS
from test_rasters import SMALL, noise, read_all, write_scene

from rsprune_dagster.corpus import rasters
from rsprune_dagster.corpus.fingerprint import fingerprint_of
from rsprune_dagster.corpus.shards import ShardCache
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.utils.progress import silent

UTM_33 = CRS.from_epsg(32633).to_wkt().replace('"', "&quot;")
PAM = f"<PAMDataset><SRS dataAxisToSRSAxisMapping='1,2'>{UTM_33}</SRS></PAMDataset>"
BANDS = """<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{source}</SourceFilename>
</SimpleSource></VRTRasterBand>"""
RAW = """<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand"><SourceFilename>{source}</SourceFilename>
<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>64</LineOffset></VRTRasterBand>"""
WMS = """<GDAL_WMS><Service name="TMS"><ServerUrl>{source}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>
<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY><LowerRightX>64</LowerRightX><LowerRightY>64</LowerRightY>
<SizeX>64</SizeX><SizeY>64</SizeY><TileLevel>1</TileLevel></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>"""


def vrt(source: object, band: str = BANDS) -> str:
    return f'<VRTDataset rasterXSize="64" rasterYSize="64">{band.format(source=source)}</VRTDataset>'


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address that nothing may ask for."""
    for name, value in (("GDAL_HTTP_TIMEOUT", "1"), ("NO_PROXY", "*"), ("no_proxy", "*")):
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the corpus that nothing may read."""
    path = tmp_path / "secret"
    path.mkdir()
    write_scene(path / "other.tif", noise(1, 64, 64))
    return path / "other.tif"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    return write_scene(tmp_path / "corpus" / "s.tif", noise(1, 64, 64))


@pytest.mark.parametrize("text", [vrt, lambda source: vrt(source, RAW)])
def test_a_text_that_names_another_file_is_no_scene(tmp_path: Path, secret: Path, text: Callable[[Path], str]) -> None:
    (tmp_path / "evil.tif").write_text(text(secret))
    tiles, reasons = read_all(tmp_path / "evil.tif", SMALL)
    assert not tiles
    assert reasons == {"evil.tif": "wrongly named: .tif on XML text"}


@pytest.mark.parametrize("text", [WMS, vrt("/vsicurl/{source}/a.tif"), "/vsicurl/{source}/a.tif"])
def test_a_text_that_names_a_url_sends_no_request(tmp_path: Path, url: str, text: str) -> None:
    (tmp_path / "evil.tif").write_text(text.replace("{source}", url).replace("${{", "${").replace("}}", "}"))
    tiles, reasons = read_all(tmp_path / "evil.tif", SMALL)
    assert not tiles
    assert "wrongly named: .tif on" in reasons["evil.tif"]


@pytest.mark.parametrize("ending", [".ovr", ".aux", ".aux.xml"])
def test_what_lies_beside_a_scene_leads_nowhere(scene: Path, secret: Path, url: str, ending: str) -> None:
    alone, _ = read_all(scene, SMALL)
    for source in (secret, f"/vsicurl/{url}/a.tif"):
        overview = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{source}</MDI></Metadata>'
        pam = f"<PAMDataset>{overview}</PAMDataset>"
        scene.with_name(scene.name + ending).write_text(pam if ending == ".aux.xml" else vrt(source))
        tiles, _ = read_all(scene, SMALL)
        assert tiles.keys() == alone.keys()
        assert [each.content_md5 for each in tiles.values()] == [each.content_md5 for each in alone.values()]


def test_a_mask_that_is_no_tiff_is_a_reason(scene: Path, secret: Path, url: str) -> None:
    for source in (secret, f"/vsicurl/{url}/a.tif"):
        Path(f"{scene}.msk").write_text(vrt(source))
        tiles, reasons = read_all(scene, SMALL)
        assert not tiles
        assert reasons == {"s.tif": "the mask s.tif.msk is no TIFF that can be read; mend or remove it"}


def test_the_overviews_that_a_tiff_names_are_not_opened(scene: Path, url: str) -> None:
    alone, _ = read_all(scene, SMALL)
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{url}/a.tif")
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED=False),
        rasterio.open(scene) as dataset,
    ):
        assert "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS")
    tiles, _ = read_all(scene, SMALL)
    assert [each.content_md5 for each in tiles.values()] == [each.content_md5 for each in alone.values()]


@pytest.mark.parametrize("compress", ["jpeg", "lzw", "deflate", "zstd", "webp", "lerc", "packbits", "lzma"])
def test_every_compression_is_read(tmp_path: Path, compress: str) -> None:
    planes = np.full((3, 64, 64), 90, np.uint8)
    tiles, _ = read_all(write_scene(tmp_path / "s.tif", planes, compress=compress), SMALL)
    assert {int(level) for pixels in tiles.values() for level in np.unique(pixels.grey)} <= set(range(88, 93))
    assert len(tiles) == 4


def test_a_mask_beside_a_scene_takes_the_place_of_nodata(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", np.zeros((1, 32, 64), np.uint8), nodata=0)
    assert not read_all(scene, SMALL)[0]
    valid = np.zeros((1, 32, 64), np.uint8)
    valid[:, :, 40:] = 255
    write_scene(tmp_path / "s.tif.msk", valid)
    tiles, reasons = read_all(scene, SMALL)
    assert list(tiles) == ["s.tif#32,0,32,32"]
    mask = tiles["s.tif#32,0,32,32"].valid
    assert mask is not None
    assert np.array_equal(mask, valid[0, :, 32:] > 0)
    assert reasons == {"s.tif#0,0,32,32": "only 0 % valid pixels, 50 % asked"}


def test_masks_as_gdal_writes_them(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", noise(3, 32, 64))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(scene, "r+") as dataset:
        dataset.write_mask(np.arange(64) >= np.full((32, 1), 32))
    assert (tmp_path / "s.tif.msk").exists()
    assert list(read_all(scene, SMALL)[0]) == ["s.tif#32,0,32,32"]


def test_a_mask_of_another_size_is_a_reason(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", noise(3, 32, 64))
    write_scene(tmp_path / "s.tif.msk", noise(1, 32, 32))
    assert read_all(scene, SMALL)[1]["s.tif"].startswith("the mask s.tif.msk has 32 x 32 px and 1 bands, but the scene")


def test_the_crs_of_an_aux_xml_goes_before_the_scenes_own(scene: Path) -> None:
    before, _ = read_all(scene, SMALL)
    Path(f"{scene}.aux.xml").write_text(PAM)
    after, _ = read_all(scene, SMALL)
    assert {pixels.crs for pixels in before.values()} == {"EPSG:32632"}
    assert {pixels.crs for pixels in after.values()} == {"EPSG:32633"}
    assert [each.lon for each in after.values()] == pytest.approx([(each.lon or 0) + 6 for each in before.values()])


def test_the_grid_that_a_crs_names_is_not_opened(scene: Path, secret: Path) -> None:
    shifted = (
        CRS.from_epsg(32633)
        .to_wkt()
        .replace(
            ',AUTHORITY["EPSG","32633"]]', f',EXTENSION["PROJ4","+proj=utm +zone=33 +nadgrids={secret} +units=m"]]'
        )
    )
    Path(f"{scene}.aux.xml").write_text(f"<PAMDataset><SRS>{html.escape(shifted)}</SRS></PAMDataset>")
    tiles, _ = read_all(scene, SMALL)
    assert len(tiles) == 4
    assert {(each.crs, each.lon) for each in tiles.values()} == {("EPSG:32633", None)}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", ["s.tfw", "s.tifw", "s.wld", "s.TFW"])
def test_a_world_file_is_the_geotransform_of_a_scene_without(tmp_path: Path, name: str) -> None:
    scene = write_scene(tmp_path / "s.tif", noise(1, 64, 64), crs=None, transform=None)
    (tmp_path / name).write_text("10\n1\n2\n-10\n500005\n5499995\n")
    Path(f"{scene}.aux.xml").write_text(PAM)
    with rasterio.open(scene) as seen_by_gdal, rasters.opened(str(scene)) as read:
        assert seen_by_gdal.transform.almost_equals(read.transform)
        assert seen_by_gdal.crs == read.crs
    assert next(iter(read_all(scene, SMALL)[0].values())).gsd_m == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.tfw", "10 0 0"),
        ("s.tif.aux.xml", "<PAMDataset><GeoTransform>1, 2</GeoTransform></PAMDataset>"),
        ("s.tif.aux.xml", "<PAMDataset><SRS>somewhere</SRS></PAMDataset>"),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_a_reason(scene: Path, name: str, text: str) -> None:
    (scene.parent / name).write_text(text)
    tiles, reasons = read_all(scene, SMALL)
    assert not tiles
    assert reasons["s.tif"].startswith(f"{name} ")
    assert "mend it" in reasons["s.tif"]


@pytest.mark.parametrize("ending", [".msk", ".aux.xml"])
@pytest.mark.parametrize("source", [".", "s.tif"])
def test_a_sidecar_that_comes_or_goes_is_seen_by_the_next_scan(
    tmp_path: Path, scene: Path, ending: str, source: str
) -> None:
    sidecar, sources = Path(f"{scene}{ending}"), [str(scene.parent / source)]

    def facts(run: int) -> list[tuple[str, str, str]]:
        scanner = Scanner(SMALL, 8, ShardCache(tmp_path / "cache"), 1, silent)
        (tmp_path / str(run)).mkdir()
        scan(sources, tmp_path / str(run), scanner, labelled=False, label="test")
        rows = pq.read_table(tmp_path / str(run) / "manifest.parquet").to_pylist()
        return sorted((row["tile_id"], row["crs"], row["content_md5"]) for row in rows)

    before, seen = facts(1), fingerprint_of(sources)
    if ending == ".msk":
        write_scene(sidecar, np.triu(np.ones((1, 64, 64), np.uint8)))
    else:
        sidecar.write_text(PAM)
    assert facts(2) != before
    assert fingerprint_of(sources) != seen
    assert fingerprint_of(sources).n_files == seen.n_files
    sidecar.unlink()
    assert facts(3) == before
    assert fingerprint_of(sources) == seen


def test_a_georeference_of_megabytes_of_beginnings_is_read_in_one_pass(scene: Path) -> None:
    """Each beginning was once followed to the end of the text: this took a day."""
    Path(f"{scene}.aux.xml").write_text("<SRS " * 1_000_000 + PAM)
    tiles, reasons = read_all(scene, SMALL)
    assert not reasons and {each.crs for each in tiles.values()} == {"EPSG:32633"}


@pytest.mark.parametrize("name", ["s.tif.aux.xml", "s.tfw"])
def test_a_sidecar_that_may_not_be_read_is_a_reason(scene: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = scene.with_name(name)
    sidecar.write_text(PAM)

    def refused(path: str) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.path.getsize", refused)
    tiles, reasons = read_all(scene, SMALL)
    assert not tiles and set(reasons.values()) == {f"{name} cannot be read: Permission denied; mend or remove it"}
