"""The tile encoder: the descriptor alone, or a network's vector concatenated with the descriptor's.

Networks are trained to be invariant to colour and fine texture, which separate land cover. The descriptor captures
these at low cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rsprune_dagster.config.params import EmbeddingParams
from rsprune_dagster.pruning.encoders import descriptor
from rsprune_dagster.pruning.encoders.encoder import (
    Encoder,
    Prepared,
    TileEncoder,
    descriptor_encoder,
    load_encoder,
    unit,
)


@dataclass(frozen=True)
class CombinedEncoder:
    """A network combined with the descriptor, which has the given `weight`."""

    network: Encoder
    texture: Encoder
    weight: float

    @property
    def name(self) -> str:
        """A name such as `mobilenet_v2 with descriptor`."""
        return f"{self.network.name} with {self.texture.name}"

    @property
    def dimension(self) -> int:
        """The sum of both dimensions."""
        return self.network.dimension + self.texture.dimension

    @property
    def device(self) -> torch.device:
        """The device of both."""
        return self.network.device

    @property
    def identity(self) -> dict[str, str | int | float]:
        """The network's identity with the descriptor's weight and size."""
        ours = {"descriptor_weight": self.weight, "descriptor_size_px": self.texture.image_size_px}
        return self.network.identity | ours | {"dimension": self.dimension}

    def prepare(self, tiles: Sequence[np.ndarray]) -> Prepared:
        """The tiles at the network's size and at the descriptor's."""
        return self.network.prepare(tiles) + self.texture.prepare(tiles)

    def embed_prepared(self, batch: Prepared) -> np.ndarray:
        """Unit vectors, float32 (n, d)."""
        seen, felt = batch
        return beside(self.network.embed_prepared((seen,)), self.texture.embed_prepared((felt,)), self.weight)

    def embed(self, tiles: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors, float32 (n, d)."""
        return self.embed_prepared(self.prepare(tiles))


def load_tile_encoder(params: EmbeddingParams, device: str) -> TileEncoder:
    """The encoder of section `embedding`. UsageError: unknown backbone, unsuitable weights or missing device."""
    encoder = load_encoder(
        params.backbone,
        weights=params.weights,
        weights_sha256=params.weights_sha256,
        image_size_px=params.image_size_px,
        precision=params.precision,
        device=device,
    )
    if encoder.name == descriptor.NAME or params.descriptor_weight == 0:
        return encoder
    return CombinedEncoder(encoder, descriptor_encoder("", encoder.device), params.descriptor_weight)


def beside(network: np.ndarray, texture: np.ndarray, weight: float) -> np.ndarray:
    """(x, w y) / sqrt(1 + w^2): unit vectors (n, d) and (n, e) as unit vectors (n, d + e), float32.

    The cosine of two tiles is the mean of their cosines in both parts, weighted 1 to w^2.
    """
    return unit(np.concatenate([network, weight * texture], axis=1))
