"""Synthetic pairs of an image and its land-cover mask, for the demo and the tests of semantic image synthesis.

An image shows the ground of each scene where the mask has that scene's colour, so that a class has the texture that
it has in the synthetic corpus.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rsprune_dagster.corpus.synthetic.faults import encode
from rsprune_dagster.corpus.synthetic.generated import Generated, write_once
from rsprune_dagster.corpus.synthetic.plan import PAINTING_VERSION
from rsprune_dagster.corpus.synthetic.scenes import ground
from rsprune_dagster.corpus.synthetic.terrain import Field, fractal
from rsprune_dagster.utils.progress import Progress, silent

COLOURS: Final[Mapping[str, str]] = {
    "#2b5f8a": "water",
    "#1f5c2e": "forest",
    "#c8b560": "fields",
    "#9c9c9c": "city",
    "#d9b38c": "desert",
}
"""Class by its colour in the masks; the classes are names of SCENES."""

PLACES: Final[Mapping[str, Mapping[str, tuple[float, float, float]]]] = {
    "pairs": {
        "north": (0.95, 0.98, 1.06),
        "east": (1.02, 0.97, 0.95),
        "south": (1.08, 1.03, 0.95),
        "west": (0.95, 0.98, 0.93),
    },
    "held_out_pairs": {
        "highland": (0.92, 0.95, 1.02),
        "island": (1.05, 1.06, 1.03),
    },
}
"""The places of training and of held-out pairs, each with its light: a factor for red, green and blue."""

N_PAIRS_PER_PLACE: Final[Mapping[str, int]] = {"pairs": 10, "held_out_pairs": 10}
SIZE_PX: Final = 128
N_CLASSES: Final = (2, 3, 4)
"""Classes per image, used in turn."""

PAIRS_VERSION: Final = 1
"""Increment when the same constants give other bytes, so that existing pairs are regenerated."""

OURS: Final = {*PLACES, "pairs.json"}
"""The entries of a folder of synthetic pairs; a folder with other entries is not replaced."""


def write_pairs(folder: Path, *, progress: Progress = silent) -> None:
    """Write `folder/pairs/PLACE/{images,masks}/NNN.png`, the same under `folder/held_out_pairs`, and `pairs.json`.

    Images and masks are RGB; the masks have the colours of COLOURS. Every run gives the same bytes. Existing pairs of
    this version are kept; those of another are replaced once the new ones are complete. Raises UsageError if the
    folder holds anything else, RunError if writing fails.
    """
    write_once(folder, generated(), lambda new: _write(new, progress))


def generated() -> Generated:
    """What a folder of these pairs holds, and what it was made with."""
    return Generated("folder of synthetic pairs", "pairs.json", _description(), OURS)


def _description() -> str:
    """Everything that the bytes of the pairs depend on, as JSON."""
    made_with: dict[str, Any] = {
        "painting_version": PAINTING_VERSION,
        "pairs_version": PAIRS_VERSION,
        "size_px": SIZE_PX,
        "n_classes": N_CLASSES,
        "n_pairs_per_place": N_PAIRS_PER_PLACE,
        "places": PLACES,
        "colours": COLOURS,
    }
    return json.dumps(made_with, indent=2) + "\n"


def _write(folder: Path, progress: Progress) -> None:
    total = sum(len(places) * N_PAIRS_PER_PLACE[part] for part, places in PLACES.items())
    with progress("synthetic pairs", total) as advance:
        for part, places in PLACES.items():
            for place, light in places.items():
                _write_place(folder / part / place, N_PAIRS_PER_PLACE[part], light, advance)
    (folder / "pairs.json").write_text(_description())


def _write_place(folder: Path, n_pairs: int, light: tuple[float, float, float], advance: Callable[[int], None]) -> None:
    """Write `images/NNN.png` and `masks/NNN.png`; the name of the place chooses the random numbers."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(n_pairs):
        rng = np.random.default_rng((zlib.crc32(folder.name.encode()), index))
        cover = land_cover(rng, SIZE_PX, n_classes=N_CLASSES[index % len(N_CLASSES)])
        (folder / "masks" / f"{index:03d}.png").write_bytes(encode(coloured(cover), ".png"))
        (folder / "images" / f"{index:03d}.png").write_bytes(encode(pictured(cover, rng=rng, light=light), ".png"))
        advance(1)


def land_cover(rng: np.random.Generator, size_px: int, *, n_classes: int) -> NDArray[np.intp]:
    """The class of each pixel, (size, size), as its place in COLOURS: a few large regions of `n_classes` classes.

    A pixel has the class whose smooth field is the highest; all have mean 0, so that no class is left with a sliver.
    """
    classes = rng.choice(len(COLOURS), n_classes, replace=False)
    fields = [fractal(rng, size_px, roughness=2.6, coarsest_px=size_px) for _ in classes]
    cover: NDArray[np.intp] = classes[np.argmax(fields, axis=0)]
    return cover


def coloured(cover: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The mask, uint8 (size, size, 3): each pixel in the colour of its class."""
    palette = np.array([list(bytes.fromhex(colour.removeprefix("#"))) for colour in COLOURS], dtype=np.uint8)
    return palette[cover]


def pictured(
    cover: NDArray[np.intp], *, rng: np.random.Generator, light: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """The image, uint8 (size, size, 3): the ground of each pixel's class in the light of the place, with grain."""
    picture: Field = np.zeros((*cover.shape, 3), dtype=np.float32)
    names = list(COLOURS.values())
    for number in np.unique(cover):
        here = cover == number
        picture[here] = ground(names[number], rng=rng, size_px=len(cover))[here]
    grain = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0.003, 0.006))
    lit = np.clip(picture * np.asarray(light, dtype=np.float32) + grain, 0, 1)
    image: NDArray[np.uint8] = np.rint(lit * 255).astype(np.uint8)
    return image
