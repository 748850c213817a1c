"""Feature networks for fidelity: clean-fid's Inception, or a named encoder.

Only Inception's distances are called FID and KID (`FeatureNetwork.measure`); distances on another network carry its
name.
"""

import hashlib
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import torch
from numpy.typing import NDArray

from rsprune_dagster.pruning.encoders import descriptor
from rsprune_dagster.pruning.encoders.encoder import FORWARD_TILES, Encoder, load_encoder, padded_batch, resized
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import RunError

Images = NDArray[np.uint8]
"""(N, H, W, 3)."""

INCEPTION: Final = "inception"
INCEPTION_SHA256: Final = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""sha256 of inception-2015-12-05.pt. The file is TorchScript, that is, code: only this file is executed."""
INCEPTION_DIMENSION: Final = 2048
INCEPTION_PX: Final = 299
N_CHANNELS: Final = 3
TIMEOUT_S: Final = 30.0
MEASURES: Final = {"frechet": "fid", "kernel": "kid"}
"""Names of the two distances on Inception."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network. `forward`: images uint8 (n, H, W, 3) to features float32 (n, dimension)."""

    name: str
    sha256: str  # of its weights; empty without weights
    resize: str  # the resize protocol in words
    image_size_px: int
    dimension: int
    forward: Callable[[Images], NDArray[np.float32]]

    def measure(self, distance: str) -> str:
        """The name of `distance`, frechet or kernel, on this network: `fid`, or `frechet_mobilenet_v2`."""
        return MEASURES[distance] if self.name == INCEPTION else f"{distance}_{self.name}"

    def extract(self, batches: Iterable[Images]) -> NDArray[np.float32]:
        """Features (N, dimension) of all images in `batches`, each uint8 (B, H, W, 3), in order.

        Raises RunError for a wrong shape or dtype, and for features that are not finite.
        """
        passes = [self._checked(batch) for batch in batches]
        return np.concatenate([np.empty((0, self.dimension), np.float32), *passes])

    def _checked(self, batch: Images) -> NDArray[np.float32]:
        check_images(batch)
        features = self.forward(batch)
        if not np.isfinite(features).all():
            raise RunError(f"{self.name} gave features that are not finite: its weights are damaged, get them again")
        return features


def check_images(batch: Images) -> None:
    """Raise RunError unless `batch` is uint8 (B, H, W, 3)."""
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != N_CHANNELS:
        raise RunError(
            f"got images of dtype {batch.dtype} and shape {batch.shape}, expected uint8 (B, H, W, 3): scale them to "
            "0 to 255 and round before they are measured"
        )


def encoder(backbone: str, weights: str, image_size_px: int, *, device: str) -> FeatureNetwork:
    """An encoder of `pruning.encoders` in float32. `weights`: a file, or empty for the published ones.

    Features are the pooled maps, not scaled to length 1 as for pruning, since their magnitude carries information.
    Raises UsageError as `load_encoder`.
    """
    made = load_encoder(backbone, weights=weights, image_size_px=image_size_px, precision="float32", device=device)
    return FeatureNetwork(
        name=made.name,
        sha256=made.weights_sha256,
        resize=f"bilinear with antialiasing to {made.image_size_px} px, rounded to 8 bits (torchvision)",
        image_size_px=made.image_size_px,
        dimension=made.dimension,
        forward=partial(_encoder_features, made),
    )


def _encoder_features(made: Encoder, images: Images) -> NDArray[np.float32]:
    chunks = torch.split(resized(list(images), made.image_size_px), FORWARD_TILES) if len(images) else []
    return _in_passes(chunks, lambda chunk: made.model(made.normalise(chunk.to(made.device))), made.dimension)


def inception(weights: Path | None, *, device: str) -> FeatureNetwork:
    """Inception V3 (2015) as in clean-fid: images resized by Pillow without rounding.

    `weights`: clean-fid's file inception-2015-12-05.pt; None: the cached copy of clean-fid or torch, else a download.
    Raises RunError if the file is missing or has another hash.
    """
    path = _existing(weights) if weights is not None else _kept_or_downloaded()
    place = resolve_device(device)
    network = _loaded(path).to(place)
    return FeatureNetwork(
        name=INCEPTION,
        sha256=INCEPTION_SHA256,
        resize=f"bicubic with antialiasing to {INCEPTION_PX} px in float32, clipped to 0..255 (clean-fid: Pillow)",
        image_size_px=INCEPTION_PX,
        dimension=INCEPTION_DIMENSION,
        forward=partial(_inception_features, network, place),
    )


def _inception_features(network: Any, device: torch.device, images: Images) -> NDArray[np.float32]:
    def model(chunk: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network.layers.forward((chunk.to(device) - 128) / 128)
        return features.flatten(1)

    starts = range(0, len(images), FORWARD_TILES)
    return _in_passes((_clean(images[start : start + FORWARD_TILES]) for start in starts), model, INCEPTION_DIMENSION)


def _clean(images: Images) -> torch.Tensor:
    """clean-fid's own resize: float32 (n, 3, 299, 299), 0 to 255."""
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")
    return torch.from_numpy(np.stack([resize(image) for image in images])).permute(0, 3, 1, 2)


@torch.inference_mode()
def _in_passes(
    chunks: Iterable[torch.Tensor], model: Callable[[torch.Tensor], torch.Tensor], dimension: int
) -> NDArray[np.float32]:
    """Features (n, dimension), in passes of equal size and without TF32, so that they depend on the image only."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        passes = [model(padded_batch(chunk, FORWARD_TILES))[: len(chunk)].float().cpu().numpy() for chunk in chunks]
    return np.concatenate([np.empty((0, dimension), np.float32), *passes])


def _loaded(path: Path) -> Any:
    """Load the network after checking its hash; the hashed bytes are those executed."""
    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != INCEPTION_SHA256:
        raise RunError(
            f"{path} has sha256 {actual}, but clean-fid's inception-2015-12-05.pt has {INCEPTION_SHA256}: it is "
            "damaged or another network, and other networks give no FID; get the file again"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, but the published file uses it
        network: Any = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
        return network.eval()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise RunError(f"the Inception weights {path} do not exist: give clean-fid's inception-2015-12-05.pt, or none")
    return path


def _kept_or_downloaded() -> Path:
    """clean-fid's copy in /tmp, else the one in torch's cache, downloaded on first use."""
    from cleanfid.downloads_helper import inception_url

    name = str(inception_url).rsplit("/", 1)[1]
    cache = Path(torch.hub.get_dir(), "checkpoints", name)
    for path in (cache, Path(tempfile.gettempdir()) / name):
        if path.is_file():
            return path
    try:
        _download(inception_url, cache)
    except (URLError, OSError) as error:
        raise RunError(
            f"the Inception weights could not be downloaded from {inception_url} ({error}): fetch that file where "
            f"there is internet and give its path, or put it at {cache}; without it there is no FID, and the "
            f"Fréchet distance on an encoder stands under that encoder's name (`{descriptor.NAME}` needs no weights)"
        ) from error
    return cache


def _download(url: str, target: Path) -> None:
    """Download atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder, target.name)
        with urlopen(url, timeout=TIMEOUT_S) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
        part.replace(target)
