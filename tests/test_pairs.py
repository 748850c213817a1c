"""Pairs of images and masks: what is read, what is refused with which words, and how crops are drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pair_folders import CLASSES, drawn_mask
from PIL import Image

from rsprune_dagster.downstream.masks import UNLABELED, Palette, read_mask
from rsprune_dagster.downstream.pairs import (
    Crop,
    Crops,
    Pair,
    PairSet,
    class_shares,
    grid_of_crops,
    read_pairs,
    reduced_image,
    reduced_mask,
)
from rsprune_dagster.utils.errors import UsageError


@pytest.fixture
def palette() -> Palette:
    return Palette.of(CLASSES)


PALETTE_RGB = ((0, 0, 255), (0, 255, 0), (255, 0, 0))


def write_pair(folder: Path, stem: str, mask: np.ndarray, palette: Palette) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(1).integers(0, 255, (*mask.shape, 3), np.uint8)
    Image.fromarray(image).save(folder / "images" / f"{stem}.jpg")
    Image.fromarray(palette.picture(mask)).save(folder / "masks" / f"{stem}.png")


def test_pairs_are_read_below_a_source_in_order(tmp_path: Path, palette: Palette) -> None:
    masks = {place: drawn_mask(seed=number) for number, place in enumerate(("b/tile 1", "a"))}
    for place, mask in masks.items():
        write_pair(tmp_path / place, "one", mask, palette)
    pairs = read_pairs([str(tmp_path)], palette)
    assert [pair.name.split("/", 1)[1] for pair in pairs] == ["a/one", "b/tile 1/one"]
    assert np.array_equal(pairs[0].mask, masks["a"]) and np.array_equal(pairs[1].mask, masks["b/tile 1"])
    assert pairs[0].image.shape == (24, 32, 3)


def test_palette_pictures_and_label_rasters_give_the_same_classes(tmp_path: Path, palette: Palette) -> None:
    mask = drawn_mask()
    indexed = Image.fromarray((mask + 7).astype(np.uint8), "P")
    indexed.putpalette([0] * 21 + [0, 0, 255, 0, 255, 0, 255, 0, 0])
    indexed.save(tmp_path / "indexed.png")
    profile = {"driver": "GTiff", "height": 24, "width": 32, "count": 1, "dtype": "uint16"}
    with rasterio.open(tmp_path / "labels.tif", "w", **profile) as raster:
        raster.write(mask.astype(np.uint16), 1)
    assert np.array_equal(read_mask(tmp_path / "indexed.png", palette), mask)
    assert np.array_equal(read_mask(tmp_path / "labels.tif", palette), mask)


def test_a_colour_of_no_class_is_named_with_its_pixels(tmp_path: Path, palette: Palette) -> None:
    picture = palette.picture(drawn_mask())
    picture[0, :5] = (1, 2, 3)
    picture[1, :2] = (9, 9, 9)
    Image.fromarray(picture).save(tmp_path / "mask.png")
    with pytest.raises(
        UsageError, match=r"not in the palette: #010203 \(5 pixels\), #090909 \(2 pixels\); give them a class in"
    ):
        read_mask(tmp_path / "mask.png", palette)


def test_a_label_of_no_class_is_named(tmp_path: Path, palette: Palette) -> None:
    labels = drawn_mask().astype(np.int16)
    labels[0, :4] = -1
    with rasterio.open(
        tmp_path / "labels.tif", "w", driver="GTiff", height=24, width=32, count=1, dtype="int16"
    ) as raster:
        raster.write(labels, 1)
    with pytest.raises(UsageError, match=r"labels that are no class: -1 \(4 pixels\)"):
        read_mask(tmp_path / "labels.tif", palette)


def test_what_has_no_partner_is_named(tmp_path: Path, palette: Palette) -> None:
    for stem in ("one", "two"):
        write_pair(tmp_path, stem, drawn_mask(), palette)
    (tmp_path / "masks" / "two.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 files in .*images have no partner in masks/, such as two\.jpg"):
        read_pairs([str(tmp_path)], palette)
    (tmp_path / "images" / "two.jpg").unlink()
    write_pair(tmp_path, "three", drawn_mask(), palette)
    (tmp_path / "images" / "three.jpg").unlink()
    with pytest.raises(UsageError, match=r"masks have no partner in images/, such as three\.png"):
        read_pairs([str(tmp_path)], palette)


def test_other_bad_pairs_are_one_sentence(tmp_path: Path, palette: Palette) -> None:
    write_pair(tmp_path / "sizes", "one", drawn_mask(), palette)
    Image.fromarray(palette.picture(drawn_mask(20, 32))).save(tmp_path / "sizes" / "masks" / "one.png")
    write_pair(tmp_path / "clear", "one", drawn_mask(), palette)
    clear = np.dstack([palette.picture(drawn_mask()), np.full((24, 32), 255, np.uint8)])
    clear[0, 0, 3] = 7
    Image.fromarray(clear).save(tmp_path / "clear" / "masks" / "one.png")
    write_pair(tmp_path / "twins", "one", drawn_mask(), palette)
    Image.fromarray(palette.picture(drawn_mask())).save(tmp_path / "twins" / "masks" / "one.tif")
    write_pair(tmp_path / "deep", "one", drawn_mask(), palette)
    (tmp_path / "deep" / "images" / "one.jpg").unlink()
    Image.fromarray(drawn_mask().astype(np.uint16) * 1000).save(tmp_path / "deep" / "images" / "one.png")
    write_pair(tmp_path / "broken", "one", drawn_mask(), palette)
    (tmp_path / "broken" / "masks" / "one.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("sizes", r"one\.jpg has 32 x 24 px and its mask .*one\.png 32 x 20"),
        ("clear", "1 transparent pixels, which belong to no class"),
        ("twins", r"one\.png and one\.tif in .*masks have one name"),
        ("deep", r"one\.png has more than 8 bits"),
        ("broken", "cannot be read as a picture"),
        ("empty", "no pairs in .*empty: expected folders images/ and masks/"),
        ("absent", "is no local folder"),
    ):
        with pytest.raises(UsageError, match=words) as raised:
            read_pairs([str(tmp_path / name)], palette)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("red a", "#000000 b"), "'red a': expected a colour and a class, such as '#3c1098 building'"),
        (("#00ff a", "#000000 b"), "'#00ff a'"),
        (("#0000ff", "#000000 b"), "'#0000ff': expected"),
        (("#0a0000 a", "#0A0000 b"), "the colour #0a0000 twice"),
        (("#000000 a", "#000001 unlabeled"), "has 1 classes, expected 2 to 254"),
    ],
)
def test_bad_palettes_are_one_sentence(classes: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Palette.of(classes)


def test_several_colours_may_show_a_class_and_none_is_shown_black() -> None:
    palette = Palette.of(("#0000ff open water", "#9b9b9b unlabeled", "#00ff00 field", "#0000fe open water"))
    assert palette.names == ("open water", "field")
    picture = np.array([[[0, 0, 255], [0, 0, 254], [155, 155, 155], [0, 255, 0]]], np.uint8)
    assert palette.classes(picture, "mask").tolist() == [[0, 0, UNLABELED, 1]]
    assert palette.picture(palette.classes(picture, "mask")).tolist() == [
        [[0, 0, 255], [0, 0, 255], [155, 155, 155], [0, 255, 0]]
    ]
    assert Palette.of(CLASSES).picture(np.array([[UNLABELED]], np.uint8)).tolist() == [[[0, 0, 0]]]


def test_what_a_label_raster_leaves_out_is_unlabeled(tmp_path: Path, palette: Palette) -> None:
    labels = drawn_mask().astype(np.int16)
    labels[0, :4] = -9
    layout = {"driver": "GTiff", "height": 24, "width": 32, "count": 1, "dtype": "int16"}
    with rasterio.open(tmp_path / "nodata.tif", "w", nodata=-9, **layout) as raster:
        raster.write(labels, 1)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "masked.tif", "w", **layout) as raster:
        raster.write(drawn_mask().astype(np.int16), 1)
        raster.write_mask(labels >= 0)
    for name in ("nodata.tif", "masked.tif"):
        read = read_mask(tmp_path / name, palette)
        assert (read[0, :4] == UNLABELED).all() and np.array_equal(read[1:], labels[1:])


def test_a_tiff_with_a_colour_table_is_a_picture_and_255_is_no_class(tmp_path: Path, palette: Palette) -> None:
    mask = drawn_mask()
    layout = {"driver": "GTiff", "height": 24, "width": 32, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "table.tif", "w", **layout) as raster:
        raster.write_colormap(1, {2 - number: (*PALETTE_RGB[number], 255) for number in range(3)})
        raster.write(2 - mask, 1)
    assert np.array_equal(read_mask(tmp_path / "table.tif", palette), mask)
    with rasterio.open(tmp_path / "white.tif", "w", **layout) as raster:
        raster.write(np.where(mask == 1, 255, mask).astype(np.uint8), 1)
    with pytest.raises(UsageError, match=r"labels that are no class: 255 .*numbered from 0 \(water\) to 2 \(city\)"):
        read_mask(tmp_path / "white.tif", palette)


def test_a_file_of_another_format_is_not_opened_by_its_content(tmp_path: Path, palette: Palette) -> None:
    with rasterio.open(
        tmp_path / "real.tif", "w", driver="GTiff", height=24, width=32, count=1, dtype="uint8"
    ) as raster:
        raster.write(drawn_mask(), 1)
    virtual = f"""<VRTDataset rasterXSize="32" rasterYSize="24"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>{tmp_path / "real.tif"}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>
</VRTDataset>"""
    (tmp_path / "mask.tif").write_text(virtual)
    with pytest.raises(UsageError, match=r"mask\.tif cannot be read"):
        read_mask(tmp_path / "mask.tif", palette)


def matching(crop: Crop) -> bool:
    return np.array_equal(crop.image[..., 0], crop.mask * 50)


@pytest.fixture
def pair_set() -> PairSet:
    masks = [drawn_mask(40, 40, seed) for seed in range(3)]
    pairs = tuple(Pair(str(n), np.dstack([mask * 50] * 3), mask) for n, mask in enumerate(masks))
    return PairSet(pairs, n_classes=3, image_size_px=8, crop_px=16)


def test_a_crop_and_its_mask_are_turned_together_and_depend_on_number_and_seed(pair_set: PairSet) -> None:
    crops = [pair_set.crop(number, 0) for number in range(20)]
    assert all(matching(crop) and crop.image.shape == (16, 16, 3) for crop in crops)
    assert len({crop.mask.tobytes() for crop in crops}) > 15 and {crop.pair for crop in crops} == {0, 1, 2}
    again = [pair_set.crop(number, 0) for number in range(20)]
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(crops, again, strict=True))
    assert any(not np.array_equal(pair_set.crop(number, 1).mask, crops[number].mask) for number in range(3))


def test_a_larger_pair_is_cropped_more_often(pair_set: PairSet) -> None:
    large = Pair("large", np.zeros((160, 120, 3), np.uint8), np.zeros((160, 120), np.uint8))
    crops = [replace(pair_set, pairs=(*pair_set.pairs, large)).crop(number, 0) for number in range(400)]
    assert np.mean([crop.pair == 3 for crop in crops]) == pytest.approx(12 / 15, abs=0.06)


def test_batches_do_not_depend_on_where_they_begin(pair_set: PairSet) -> None:
    whole = next(pair_set.batches(start=0, end=8, batch_size=8, seed=0))
    late = next(pair_set.batches(start=4, end=8, batch_size=4, seed=0))
    assert whole.condition is not None and late.condition is not None
    assert np.array_equal(whole.images[4:], late.images)
    assert np.array_equal(whole.condition.planes[4:], late.condition.planes)
    assert whole.condition.planes.shape == (8, 3, 8, 8)


def test_shares_are_those_of_the_pixels() -> None:
    mask = np.array([[0, 1, 2, 2], [0, 0, 2, 2], [1, 1, 0, 1], [1, 1, 1, 0]], np.uint8)
    shares = class_shares(mask, 3, (2, 2))
    assert np.allclose(shares[:, 0, 0], [0.75, 0.25, 0]) and np.allclose(shares[:, 1, 1], [0.5, 0.5, 0])
    assert np.allclose(shares.sum(axis=0), 1)
    assert reduced_mask(mask, 3, 2).tolist() == [[0, 2], [1, 0]]
    mask[:2, :2], mask[2:, :2] = UNLABELED, [[1, 1], [UNLABELED, 1]]
    assert np.allclose(class_shares(mask, 3, (2, 2))[:, :, 0], [[0, 0], [0, 0.75], [0, 0]])
    assert reduced_mask(mask, 3, 2).tolist() == [[UNLABELED, 2], [1, 0]]


def test_grid_crops_tile_the_pair_once() -> None:
    mask = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30) % 251
    pair = Pair("p", np.dstack([mask] * 3).astype(np.uint8), mask.astype(np.uint8))
    crops = grid_of_crops(7, pair, 8)
    assert [crop.pair for crop in crops] == [7] * 6
    assert np.array_equal(crops[4].mask, pair.mask[8:16, 8:16]) and np.array_equal(
        crops[4].image, pair.image[8:16, 8:16]
    )
    assert grid_of_crops(7, pair, 21) == []


def test_images_smaller_than_a_crop_are_named(pair_set: PairSet) -> None:
    with pytest.raises(UsageError, match=r"3 of 3 images are smaller than a crop of 41 px, such as 0 of 40 x 40"):
        replace(pair_set, crop_px=41)


def test_crops_of_a_set_are_its_training_images_or_spread_over_its_pairs(pair_set: PairSet) -> None:
    random, batch = pair_set.random_crops(3, seed=4), next(pair_set.batches(start=0, end=3, batch_size=3, seed=4))
    assert np.array_equal(random.images, batch.images) and batch.condition is not None
    assert np.array_equal(random.shares, batch.condition.planes)
    assert np.array_equal(random.masks[0], reduced_mask(pair_set.crop(0, 4).mask, 3, 8))
    spread, whole = pair_set.spread_crops(3), pair_set.spread_crops(100)
    assert whole.pairs.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and spread.pairs.tolist() == [0, 1, 2]
    assert np.array_equal(whole.images[4], reduced_image(pair_set.pairs[1].image[:16, :16], 8))
    assert np.array_equal(spread.images[1], whole.images[round(11 / 2)]) and len(pair_set) == 3 * 25 * 25


def test_crops_with_the_most_classes_are_shown() -> None:
    masks = np.zeros((5, 10, 10), np.uint8)
    masks[1, :5], masks[3, :5], masks[3, 5:, :5] = 1, 1, 2
    masks[4, 0, :4] = 1  # 4 % of it
    shares = np.stack([class_shares(mask, 3, (10, 10)) for mask in masks])
    crops = Crops(np.zeros((5, 10, 10, 3), np.uint8), masks, shares, np.arange(5))
    assert crops.varied(2).pairs.tolist() == [1, 3] and crops.varied(3).pairs.tolist() == [0, 1, 3]
    assert np.array_equal(crops.varied(2).masks, masks[[1, 3]]) and len(crops.varied(9)) == 5


def test_crops_that_are_half_labelled_are_measured_on(pair_set: PairSet) -> None:
    blank, less, half = (np.full((40, 40), UNLABELED, np.uint8) for _ in range(3))
    less[:7, :16], half[:8, :16] = 0, 0
    pairs = tuple(replace(pair_set.pairs[0], mask=mask) for mask in (blank, less, half, pair_set.pairs[0].mask))
    chosen = replace(pair_set, pairs=pairs)
    assert chosen.n_labelled == 2 and chosen.spread_crops(100).pairs.tolist() == [2, 3, 3, 3, 3]


def test_other_pairs_sizes_or_classes_are_another_training(pair_set: PairSet) -> None:
    other = (Pair("x", pair_set.pairs[0].image, 2 - pair_set.pairs[0].mask), *pair_set.pairs[1:])
    sets = [
        pair_set,
        replace(pair_set, pairs=other),
        replace(pair_set, crop_px=20),
        replace(pair_set, image_size_px=4),
        replace(pair_set, n_classes=4),
    ]
    assert len({each.fingerprint() for each in sets}) == 5
