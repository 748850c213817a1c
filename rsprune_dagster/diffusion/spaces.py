"""What a denoiser works in: pixels, or the latents of an autoencoder that lies in a local folder."""

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsprune_dagster.errors import UsageError

Module = Any
"""A diffusers autoencoder."""

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PASS_THROUGH_SCALE = 1024


@dataclass(frozen=True)
class Space:
    """Where noise is added and taken away: (channels, edge, edge) numbers for each image."""

    channels: int
    edge: int
    autoencoder: Module | None = None
    """None: pixels as they are."""
    digest: str = ""
    """Of the autoencoder's files; empty for pixels."""

    @property
    def clipped(self) -> bool:
        """Whether all numbers lie in [-1, 1]: those of pixels do."""
        return not self.digest

    def encode(self, images: torch.Tensor, *, at_once: int) -> torch.Tensor:
        """Images (n, 3, s, s) float32 in [-1, 1], as (n, channels, edge, edge) float32 on the CPU.

        The mean of an autoencoder's distribution, not a draw from it: so a tile has one code.
        """
        if self.autoencoder is None:
            return images
        with torch.no_grad():
            return torch.cat([_encoded(self.autoencoder, part).cpu() for part in torch.split(images, at_once)])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The inverse: images, not clipped."""
        if self.autoencoder is None:
            return codes
        images: torch.Tensor = self.autoencoder.decode(codes / self.autoencoder.config.scaling_factor).sample
        return images

    @property
    def image_size_px(self) -> int:
        """The edge of the images that codes stand for."""
        if self.autoencoder is None:
            return self.edge
        with torch.no_grad():
            code = torch.zeros(1, self.channels, self.edge, self.edge, device=self.autoencoder.device)
            return int(self.decode(code).shape[-1])

    def on(self, device: str | torch.device) -> "Space":
        """With the autoencoder on a device."""
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        return self


def pixels(image_size_px: int) -> Space:
    """RGB in [-1, 1]."""
    return Space(3, image_size_px)


def passed_through(image_size_px: int) -> Space:
    """Pixels as they are, for a pipeline that wants an autoencoder."""
    return Space(3, image_size_px, pass_through_autoencoder())


def latents(autoencoder: Module, digest: str, image_size_px: int) -> Space:
    """The space of an autoencoder for images of a size.

    Raises:
        UsageError: it has no square code for such images, or one that diffusers' DiTPipeline would not decode.
    """
    config = autoencoder.config
    if getattr(config, "shift_factor", None) or getattr(config, "latents_mean", None):
        raise UsageError(
            "training.autoencoder shifts its latents, which diffusers' DiTPipeline does not undo: "
            "give one with a scaling_factor alone"
        )
    try:
        code = _encoded(autoencoder, torch.zeros(1, 3, image_size_px, image_size_px))
        back = autoencoder.decode(code).sample
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"training.autoencoder does not take RGB images of {image_size_px} px ({reason}): "
            "give another training.image_size_px"
        ) from error
    channels, height, width = code.shape[1:]
    if height != width or tuple(back.shape) != (1, 3, image_size_px, image_size_px):
        raise UsageError(
            f"training.autoencoder turns an image of {image_size_px} px into one of {tuple(back.shape[1:])}: "
            "give a training.image_size_px that its halvings divide"
        )
    return Space(int(channels), int(height), autoencoder, digest)


def read_autoencoder(folder: Path) -> tuple[Module, str]:
    """An autoencoder that diffusers' `save_pretrained` wrote, in safetensors, and the digest of its two files.

    Raises:
        UsageError: there is none, it is of another kind, or its files do not fit each other.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny
    from safetensors.torch import load_file

    kinds = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"training.autoencoder {folder} has no {' and no '.join(missing)}: give a folder that save_pretrained wrote"
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
        kind = kinds[config.get("_class_name")]
        taken = inspect.signature(kind).parameters  # AutoencoderTiny writes one more than it takes
        module = kind(**{name: value for name, value in config.items() if name in taken})
        module.load_state_dict(load_file(folder / WEIGHTS))
    except KeyError as error:
        raise UsageError(f"training.autoencoder {folder} is of kind {error}, expected {' or '.join(kinds)}") from error
    except Exception as error:  # safetensors and torch raise many kinds
        raise UsageError(
            f"training.autoencoder {folder} cannot be read ({' '.join(str(error).split())[:200]}): copy it anew"
        ) from error
    return module.eval().requires_grad_(False), digest_of(folder)


def digest_of(folder: Path) -> str:
    """sha256 over configuration and weights, wherever they lie."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def pass_through_autoencoder() -> Module:
    """An autoencoder whose code is the image itself: what a pixel space is to a pipeline that decodes latents.

    Two convolutions that each look at one pixel, between them the image and its negative, so that nothing is lost to
    the ReLU. Its code before scaling is the image divided by 1024: there the tanh with which AutoencoderTiny bends its
    codes is a straight line, to the last bits of float32.
    """
    from diffusers import AutoencoderTiny

    module = AutoencoderTiny(
        encoder_block_out_channels=(6,),
        decoder_block_out_channels=(6,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=3,
        scaling_factor=float(PASS_THROUGH_SCALE),
    )
    split = torch.cat([torch.eye(3), -torch.eye(3)])
    first, last = module.encoder.layers[0], module.encoder.layers[-1]
    opened, closed = module.decoder.layers[0], module.decoder.layers[-1]
    with torch.no_grad():
        for layer in (first, last, opened, closed):
            layer.weight.zero_()
            layer.bias.zero_()
        # the encoder is given (x + 1) / 2 and has no ReLU; the decoder's last line is 2 y - 1
        first.weight[:, :, 1, 1] = split
        last.weight[:, :, 1, 1] = split.T / PASS_THROUGH_SCALE
        last.bias.fill_(-1 / PASS_THROUGH_SCALE)
        opened.weight[:, :, 1, 1] = split
        closed.weight[:, :, 1, 1] = split.T * (PASS_THROUGH_SCALE / 2)
        closed.bias.fill_(0.5)
    return module.eval().requires_grad_(False)


def _encoded(module: Module, images: torch.Tensor) -> torch.Tensor:
    said = module.encode(images.to(next(module.parameters()).device))
    codes = said.latent_dist.mode() if hasattr(said, "latent_dist") else said.latents
    scaled: torch.Tensor = codes * module.config.scaling_factor
    return scaled
