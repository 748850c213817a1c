"""Faults of a crawled corpus: blank tiles, noise, near-duplicates, and files that are no images."""

import io
from collections.abc import Callable
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Fault = Callable[[np.random.Generator, int], Pixels]
Change = Callable[[np.random.Generator, Pixels], Pixels]


def constant(rng: np.random.Generator, size_px: int) -> Pixels:
    """One colour."""
    return np.full((size_px, size_px, 3), rng.integers(0, 256, 3), dtype=np.uint8)


def nodata(rng: np.random.Generator, size_px: int) -> Pixels:
    """Black, as beyond the edge of a swath."""
    return np.zeros((size_px, size_px, 3), dtype=np.uint8)


def faint(rng: np.random.Generator, size_px: int) -> Pixels:
    """One grey level, 6 % of the pixels one level brighter: under half a bit of entropy."""
    grey = int(rng.integers(4, 250))
    noisy = rng.random((size_px, size_px, 1)) < 0.06
    return np.repeat((grey + noisy).astype(np.uint8), 3, axis=2)


def white_noise(rng: np.random.Generator, size_px: int) -> Pixels:
    """Independent uniform values in every pixel and band: maximal entropy without content."""
    return rng.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


def dark_noise(rng: np.random.Generator, size_px: int) -> Pixels:
    """Sensor noise without light, with column stripes."""
    stripes = rng.normal(0, 6, (1, size_px, 1))
    return np.clip(rng.normal(40, 14, (size_px, size_px, 3)) + stripes, 0, 255).astype(np.uint8)


BLANKS: Final[dict[str, Fault]] = {"constant": constant, "nodata": nodata, "faint": faint}
NOISES: Final[dict[str, Fault]] = {"white_noise": white_noise, "dark_noise": dark_noise}


def turn(rng: np.random.Generator, tile: Pixels) -> Pixels:
    """One of the seven rotations and flips that are not the tile itself."""
    way = int(rng.integers(1, 8))
    turned = np.rot90(tile, way % 4)
    return np.flip(turned, axis=1) if way >= 4 else turned


def keep(rng: np.random.Generator, tile: Pixels) -> Pixels:
    """The same pixels, to be encoded at another quality."""
    return tile


def brighten(rng: np.random.Generator, tile: Pixels) -> Pixels:
    """Up to 8 % brighter or darker."""
    gain = 1 + rng.uniform(0.03, 0.08) * rng.choice((-1, 1))
    brighter: Pixels = np.clip(np.rint(tile * gain), 0, 255).astype(np.uint8)
    return brighter


def add_noise(rng: np.random.Generator, tile: Pixels) -> Pixels:
    """Add noise with a standard deviation of two grey levels."""
    return np.clip(np.rint(tile + rng.normal(0, 2, tile.shape)), 0, 255).astype(np.uint8)


def shift(rng: np.random.Generator, tile: Pixels) -> Pixels:
    """Shift by two pixels, the edge mirrored."""
    down, across = ((2, 0), (0, 2), (2, 2))[int(rng.integers(3))]
    padded = np.pad(tile, ((0, down), (0, across), (0, 0)), mode="reflect")
    return padded[down:, across:]


CHANGES: Final[dict[str, Change]] = {
    "turned": turn,
    "recompressed": keep,
    "brighter": brighten,
    "noisier": add_noise,
    "shifted": shift,
}
"""Ways to make a near-duplicate; each is saved as a JPEG of lower quality than the originals."""


def encode(tile: Pixels, suffix: str, *, quality: int = 92) -> bytes:
    """The tile as a JPEG or PNG; `quality` is the JPEG's, 0 to 100."""
    if suffix == ".jpg":
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality=quality, colorsubsampling="420"))
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    """The inverse of `encode`."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def truncated_jpeg(picture: Pixels) -> bytes:
    """The first half of a JPEG, as after an interrupted transfer."""
    data = encode(picture, ".jpg")
    return data[: len(data) // 2]


def empty(picture: Pixels) -> bytes:
    """No bytes."""
    return b""


def html_page(picture: Pixels) -> bytes:
    """An error page sent by a server instead of the image."""
    return b"<html><head><title>429 Too Many Requests</title></head><body>Try again later.</body></html>\n"


def lfs_pointer(picture: Pixels) -> bytes:
    """A Git LFS pointer, as left by git when the file was not fetched."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0f" * 32 + b"\nsize 48213\n"


def complex_tif(picture: Pixels) -> bytes:
    """A complex-valued radar scene, as in single-look complex products."""
    from rsprune_dagster.corpus.synthetic.scene_files import geotiff_bytes

    grey = picture.astype(np.float32).mean(axis=2)
    return geotiff_bytes((grey + 1j * grey.T).astype(np.complex64)[None])


def desktop_leftover(picture: Pixels) -> bytes:
    """A settings file of a file manager; not a fault."""
    return b"\x00\x00\x00\x01Bud1" + bytes(120)


def readme(picture: Pixels) -> bytes:
    """A text file beside the images; not a fault."""
    return b"Synthetic tiles, painted by rsprune_dagster. Nothing here was photographed.\n"


BROKEN: Final[dict[str, tuple[str, Callable[[Pixels], bytes]]]] = {
    "truncated": ("{:06d}.jpg", truncated_jpeg),
    "zero_bytes": ("{:06d}.jpg", empty),
    "text": ("{:06d}.jpg", html_page),
    "lfs_pointer": ("{:06d}.png", lfs_pointer),
    "complex": ("{:06d}.tif", complex_tif),
    "ds_store": (".DS_Store", desktop_leftover),
    "readme": ("README.txt", readme),
}
"""Name pattern and content of each kind of file that is no valid tile."""
