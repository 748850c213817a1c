"""The labelled sets of shared data in the features of both networks and of the descriptor, computed once and cached."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ENCODERS = {
    "mobilenet_v2": "weights/mobilenet_v2_tfqat_rot180-4ec30254.pth",
    "squeezenet1_0": "weights/squeezenet1_0_deepcompression-a44e326f.pth",
}
DESCRIPTOR = "descriptor"
IMAGE_SIZE_PX = {"eurosat_labelled": 128, "eurosat_reference": 128, "ucmerced": 224}


@dataclass(frozen=True)
class LabelledSet:
    """A labelled set in the features of every network, and of the descriptor."""

    features: dict[str, np.ndarray]  # by name, (n, d)
    labels: np.ndarray  # (n,)

    def rows(self, rows: np.ndarray) -> "LabelledSet":
        """The set of some rows."""
        return LabelledSet({name: values[rows] for name, values in self.features.items()}, self.labels[rows])


Sets = dict[str, LabelledSet]


def load_sets(data: Path, cache: Path) -> Sets:
    """Every set in all features; what `cache` lacks is computed from `data` and put there."""
    cache.mkdir(parents=True, exist_ok=True)
    sets = {}
    for name in IMAGE_SIZE_PX:
        features = {}
        for encoder in (*ENCODERS, DESCRIPTOR):
            file = cache / f"{name}.{encoder}.npz"
            if not file.exists():
                features_found, labels_found = extract(data, name, encoder)
                np.savez(file, features=features_found, labels=labels_found)
            with np.load(file) as saved:
                features[encoder], labels = saved["features"], saved["labels"]
        sets[name] = LabelledSet(features, labels)
    return sets


def extract(data: Path, name: str, encoder: str) -> tuple[np.ndarray, np.ndarray]:
    """Raw pooled features and labels of a set, by the product's encoder."""
    from rsprune_dagster.pruning.encoders.encoder import load_encoder

    size = IMAGE_SIZE_PX[name]
    weights = str(data / ENCODERS[encoder]) if encoder in ENCODERS else ""
    network = load_encoder(encoder, weights=weights, image_size_px=size)
    features, labels, tiles = [], [], []
    for label, tile in [*images(data, name), ("", None)]:
        if tile is not None:
            tiles.append(tile)
            labels.append(label)
        if len(tiles) == 64 or (tile is None and tiles):
            features.append(network._features(*network.prepare(tiles)))
            tiles = []
    return np.concatenate(features), np.array(labels)


def images(data: Path, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Label and RGB pixels of every image of a set, by path."""
    if name == "eurosat_labelled":
        with tarfile.open(data / "eurosat" / "labelled.tar") as tar:
            for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
                opened = tar.extractfile(member)
                assert opened is not None
                yield Path(member.name).parent.name, pixels(opened.read())
        return
    for file in sorted((data / {"eurosat_reference": "eurosat/reference"}.get(name, name)).glob("*/*.jpg")):
        yield file.parent.name, pixels(file.read_bytes())


def pixels(encoded: bytes) -> np.ndarray:
    """RGB, uint8 (h, w, 3)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
