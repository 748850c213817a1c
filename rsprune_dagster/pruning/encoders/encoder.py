"""Frozen encoders from tiles to unit vectors: torchvision networks, or the fixed-filter descriptor.

A vector depends on its tile only. Every forward pass has FORWARD_TILES tiles, padded with blank ones, because kernels
are chosen by batch shape and round differently (measured: float32 MobileNetV2, batch of 1 against 64). Between
machines or precisions vectors differ in rounding; `Encoder.identity` distinguishes them.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from rsprune_dagster.pruning.encoders import descriptor
from rsprune_dagster.pruning.encoders.backbones import BACKBONES, Backbone
from rsprune_dagster.pruning.encoders.weights import load_trunk, load_weights
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import RunError, UsageError

FORWARD_TILES = 64
"""Tiles per forward pass: enough for full throughput, with little memory."""

CACHED_TILES = 4
"""Tiles normalised at a time."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Forward = Callable[[torch.Tensor], torch.Tensor]
"""`normalise`: uint8 tiles (n, 3, h, w) on the device to the model's input. `model`: input to features (n, d)."""


Prepared = tuple[torch.Tensor, ...]
"""A batch of tiles as input of each part of an encoder: uint8 (n, 3, side, side) each."""


class TileEncoder(Protocol):
    """Tiles to unit vectors of `dimension` components; a vector depends on its tile only."""

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def identity(self) -> dict[str, str | int | float]:
        """All that decides the vectors, for the cache and the record."""

    def prepare(self, tiles: Sequence[np.ndarray]) -> Prepared:
        """Resize RGB tiles, uint8 (h, w, 3) of any sizes; may run in another thread."""

    def embed_prepared(self, batch: Prepared) -> np.ndarray:
        """Unit vectors, float32 (n, d). Raises RunError on a NaN."""

    def embed(self, tiles: Sequence[np.ndarray]) -> np.ndarray:
        """`prepare` and `embed_prepared`."""


@dataclass(frozen=True)
class Encoder:
    """Tiles to unit vectors of `dimension` components; `weights_sha256` is empty without weights."""

    name: str
    dimension: int
    image_size_px: int
    precision: str
    weights_sha256: str
    device: torch.device
    normalise: Forward
    model: Forward

    @property
    def identity(self) -> dict[str, str | int | float]:
        """All that decides the vectors, for the cache and the record."""
        return {
            "backbone": self.name,
            "dimension": self.dimension,
            "image_size_px": self.image_size_px,
            "precision": self.precision,
            "weights_sha256": self.weights_sha256,
        }

    def embed(self, tiles: Sequence[np.ndarray]) -> np.ndarray:
        """RGB tiles, uint8 (h, w, 3), of any sizes, to unit vectors, float32 (n, d)."""
        return self.embed_prepared(self.prepare(tiles))

    def prepare(self, tiles: Sequence[np.ndarray]) -> Prepared:
        """The tiles at the encoder's size, uint8 (n, 3, image_size_px, image_size_px)."""
        return (resized(tiles, self.image_size_px),)

    @torch.inference_mode()
    def embed_prepared(self, batch: Prepared) -> np.ndarray:
        """Unit vectors, float32 (n, d), of a prepared batch. Raises RunError on a NaN."""
        (seen,) = batch
        passes = [self._features(chunk) for chunk in torch.split(seen, FORWARD_TILES)] if len(seen) else []
        features = np.concatenate([np.empty((0, self.dimension), np.float32), *passes])
        if not np.isfinite(features).all():
            raise RunError(f"{self.name} gave values that are not finite: its weights are damaged, or try float32")
        return unit(features)

    def _features(self, chunk: torch.Tensor) -> np.ndarray:
        filled = padded_batch(chunk, FORWARD_TILES)
        if self.device.type == "cuda":
            filled = filled.pin_memory().to(self.device, non_blocking=True)
        features: np.ndarray = self.model(self.normalise(filled))[: len(chunk)].float().cpu().numpy()
        return features


def load_encoder(
    backbone: str,
    *,
    weights: str = "",
    weights_sha256: str = "",
    image_size_px: int,
    precision: str = "auto",
    device: str = "auto",
) -> Encoder:
    """Load the encoder `backbone`. Raises UsageError for an unknown name, unsuitable weights or a missing device.

    `weights` is a file, or empty for torchvision's published ones. The descriptor has no weights and a fixed size.
    """
    place = resolve_device(device)
    if backbone == descriptor.NAME:
        return descriptor_encoder(weights, place)
    check_backbone(backbone)
    return network_encoder(
        BACKBONES[backbone],
        weights=weights,
        weights_sha256=weights_sha256,
        image_size_px=image_size_px,
        precision=precision,
        device=place,
    )


def check_backbone(name: str) -> None:
    """Raise UsageError for an unknown network."""
    if name not in BACKBONES:
        raise UsageError(unknown_backbone(name))


def descriptor_encoder(weights: str, device: torch.device) -> Encoder:
    """The fixed-filter descriptor, in float32 and at its fixed size."""
    if weights:
        raise UsageError(f"the descriptor takes no weights: name the --backbone that {weights} belongs to")
    side = descriptor.WORKING_SIZE_PX
    model = descriptor.Descriptor().to(device)
    return Encoder(descriptor.NAME, descriptor.DIMENSION, side, "float32", "", device, descriptor.opponent, model)


def network_encoder(
    backbone: Backbone, *, weights: str, weights_sha256: str, image_size_px: int, precision: str, device: torch.device
) -> Encoder:
    """A torchvision network with its weights on the device."""
    if backbone.fixed_size_px not in (None, image_size_px):
        raise UsageError(
            f"{backbone.name} takes tiles of {backbone.fixed_size_px} px only: image_size_px is {image_size_px}"
        )
    if image_size_px < 32:
        raise UsageError(f"image_size_px is {image_size_px}, but networks need 32 at least")
    chosen = resolved_precision(precision, device)
    loaded = load_weights(backbone, weights, weights_sha256)
    trunk = load_trunk(backbone, loaded).to(device).to(memory_format=torch.channels_last)
    return Encoder(
        name=backbone.name,
        dimension=backbone.dimension,
        image_size_px=image_size_px,
        precision=chosen,
        weights_sha256=loaded.sha256,
        device=device,
        normalise=partial(network_normalised, dtype=getattr(torch, chosen)),
        model=network_model(trunk, chosen, device),
    )


def network_model(trunk: nn.Module, precision: str, device: torch.device) -> Forward:
    """The trunk in the given precision with average pooling: normalised tiles to features (n, d), float32."""

    def model(normalised: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            features: torch.Tensor = trunk(normalised)
        return features.float().mean((2, 3)) if features.ndim == 4 else features.float()

    return model


def network_normalised(batch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 (n, 3, h, w) to `dtype`, channels last, normalised with ImageNet's mean and standard deviation.

    Computed in float32 on whole rows of pixels (a broadcast over three channels, innermost in memory, is four times
    slower), a few tiles at a time, which the processor's cache holds.
    """
    n, _, h, w = batch.shape
    scale = torch.tensor([1 / (255 * std) for std in IMAGENET_STD], device=batch.device).repeat(w)
    shift = torch.tensor(
        [-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], device=batch.device
    ).repeat(w)
    rows = batch.permute(0, 2, 3, 1).reshape(n, h, 3 * w)
    normalised = torch.empty(rows.shape, dtype=dtype, device=batch.device)
    for part, target in zip(torch.split(rows, CACHED_TILES), torch.split(normalised, CACHED_TILES), strict=True):
        target.copy_(torch.addcmul(shift, part.float(), scale))
    return normalised.view(n, h, w, 3).permute(0, 3, 1, 2)


def resized(tiles: Sequence[np.ndarray], image_size_px: int) -> torch.Tensor:
    """RGB tiles, uint8 (h, w, 3), to uint8 (n, 3, image_size_px, image_size_px), channels last in memory.

    Tiles of one size are resized together (bilinear, antialiased); a tile of the target size is unchanged.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for row, tile in enumerate(tiles):
        by_size.setdefault(tile.shape, []).append(row)
    groups = [resized_group([tiles[row] for row in rows], image_size_px) for rows in by_size.values()]
    if len(groups) == 1:
        return groups[0]
    batch = torch.empty((len(tiles), image_size_px, image_size_px, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for rows, group in zip(by_size.values(), groups, strict=True):
        batch[rows] = group
    return batch


def resized_group(tiles: Sequence[np.ndarray], image_size_px: int) -> torch.Tensor:
    """Tiles of one size, resized together: the bytes of torchvision's `resize`, whose import takes seconds."""
    stacked = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)
    size = (image_size_px, image_size_px)
    if stacked.shape[2:] == size:
        return stacked
    return interpolate(stacked, size, mode="bilinear", align_corners=False, antialias=True)


def padded_batch(chunk: torch.Tensor, n_tiles: int) -> torch.Tensor:
    """The tiles padded with blank ones to `n_tiles`."""
    if len(chunk) == n_tiles:
        return chunk
    whole = torch.zeros((n_tiles, *chunk.shape[1:]), dtype=chunk.dtype).to(memory_format=torch.channels_last)
    whole[: len(chunk)] = chunk
    return whole


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of (n, d) scaled to length 1, float32; zero rows become the normalised all-ones vector."""
    values = features.astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    values = np.where(norms > 1e-12, values, 1.0)
    units: np.ndarray = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return units


def resolved_precision(precision: str, device: torch.device) -> str:
    """Resolve the precision; `auto` is bfloat16 if the device supports it, else float32."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"precision is {precision!r}, expected auto, float32 or bfloat16")
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has native bfloat16 arithmetic; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def unknown_backbone(name: str) -> str:
    """The error message for an unknown name, with a suggestion."""
    names = [descriptor.NAME, *BACKBONES]
    close = difflib.get_close_matches(name, names, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"unknown backbone {name!r}, expected one of {', '.join(names)}{meant}"
