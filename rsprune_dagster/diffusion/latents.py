"""The space of a denoiser: pixels, or the latents of an autoencoder in a local folder."""

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsprune_dagster.config.params import TrainingParams
from rsprune_dagster.utils.errors import UsageError

Module = Any
"""A diffusers autoencoder."""

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PASS_THROUGH_SCALE = 1024
N_KNOTS = 64


@dataclass(frozen=True)
class Space:
    """The space in which the diffusion runs: (channels, edge, edge) numbers per image."""

    channels: int
    edge: int
    autoencoder: Module | None = None
    """None: pixels."""
    digest: str = ""
    """sha256 of the autoencoder's files; empty for pixels."""

    @property
    def clipped(self) -> bool:
        """Whether values are limited to [-1, 1]: true for pixels."""
        return not self.digest

    def encode(self, images: torch.Tensor, *, at_once: int) -> torch.Tensor:
        """Encode images (n, 3, s, s) float32 in [-1, 1] to (n, channels, edge, edge) float32 on the CPU.

        Uses the mean of the autoencoder's distribution, not a sample, so that a tile has one code.
        """
        if self.autoencoder is None:
            return images
        with torch.no_grad():
            return torch.cat([_encoded(self.autoencoder, part).cpu() for part in torch.split(images, at_once)])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Decode to images, not clipped."""
        if self.autoencoder is None:
            return codes
        images: torch.Tensor = self.autoencoder.decode(codes / self.autoencoder.config.scaling_factor).sample
        return images

    @property
    def image_size_px(self) -> int:
        """The edge of the decoded images."""
        if self.autoencoder is None:
            return self.edge
        with torch.no_grad():
            code = torch.zeros(1, self.channels, self.edge, self.edge, device=self.autoencoder.device)
            return int(self.decode(code).shape[-1])

    def on(self, device: str | torch.device) -> "Space":
        """The space with its autoencoder on a device."""
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        return self


def pixels(image_size_px: int) -> Space:
    """RGB in [-1, 1]."""
    return Space(3, image_size_px)


def identity_space(image_size_px: int) -> Space:
    """Pixels behind an identity autoencoder, for a pipeline that requires one."""
    return Space(3, image_size_px, identity_autoencoder())


def latents(autoencoder: Module, digest: str, image_size_px: int) -> Space:
    """The latent space of an autoencoder for images of the given size.

    Raises:
        UsageError: its code is not square, or diffusers' DiTPipeline could not decode it.
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
    """Load an autoencoder written by diffusers' `save_pretrained` in safetensors, with the digest of its two files.

    Raises:
        UsageError: it is missing, of an unsupported class, or its files do not match.
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
        taken = inspect.signature(kind).parameters  # AutoencoderTiny saves a key that its constructor rejects
        module = kind(**{name: value for name, value in config.items() if name in taken})
        module.load_state_dict(load_file(folder / WEIGHTS))
    except KeyError as error:
        raise UsageError(f"training.autoencoder {folder} is of kind {error}, expected {' or '.join(kinds)}") from error
    except Exception as error:  # safetensors and torch raise many exception types
        raise UsageError(
            f"training.autoencoder {folder} cannot be read ({' '.join(str(error).split())[:200]}): copy it anew"
        ) from error
    return module.eval().requires_grad_(False), digest_of(folder)


def digest_of(folder: Path) -> str:
    """sha256 over configuration and weights, independent of the path."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def identity_autoencoder() -> Module:
    """An identity autoencoder, which lets a latent-diffusion pipeline work on pixels.

    Two 1 x 1 convolutions, between which the image and its negative pass the ReLU without loss. The code before scaling
    is the image divided by 1024, where the tanh of AutoencoderTiny is linear to the last bits of float32.
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
        # the encoder gets (x + 1) / 2 and has no ReLU; the decoder ends with 2 y - 1
        first.weight[:, :, 1, 1] = split
        last.weight[:, :, 1, 1] = split.T / PASS_THROUGH_SCALE
        last.bias.fill_(-1 / PASS_THROUGH_SCALE)
        opened.weight[:, :, 1, 1] = split
        closed.weight[:, :, 1, 1] = split.T * (PASS_THROUGH_SCALE / 2)
        closed.bias.fill_(0.5)
    return module.eval().requires_grad_(False)


def unscaled_identity_autoencoder() -> Module:
    """An AutoencoderTiny that decodes a code in [-1, 1] to itself, for pipelines that decode without scaling.

    AutoencoderTiny first maps the code x to y = 3 tanh(x / 3). The inverse is interpolated linearly between N_KNOTS
    values; each is a channel of the hidden layer. The error is below a hundredth of a grey level of 255.
    """
    from diffusers import AutoencoderTiny

    module = AutoencoderTiny(
        encoder_block_out_channels=(6,),
        decoder_block_out_channels=(3 * N_KNOTS,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=3,
    )
    wanted = torch.linspace(-1, 1, N_KNOTS + 1, dtype=torch.float64)
    squashed = 3 * torch.tanh(wanted / 3)
    slopes = wanted.diff() / squashed.diff()
    turns = torch.cat([slopes[:1], slopes.diff()]).float()  # of the slope, at each knot
    opened, closed = module.decoder.layers[0], module.decoder.layers[-1]
    with torch.no_grad():
        for weights in module.parameters():
            weights.zero_()
        for colour in range(3):
            hidden = slice(colour * N_KNOTS, (colour + 1) * N_KNOTS)
            opened.weight[hidden, colour, 1, 1] = 1
            opened.bias[hidden] = -squashed[:-1].float()
            closed.weight[colour, hidden, 1, 1] = turns / 2  # the decoder ends with 2 y - 1
    return module.eval().requires_grad_(False)


def _encoded(module: Module, images: torch.Tensor) -> torch.Tensor:
    said = module.encode(images.to(next(module.parameters()).device))
    codes = said.latent_dist.mode() if hasattr(said, "latent_dist") else said.latents
    scaled: torch.Tensor = codes * module.config.scaling_factor
    return scaled


def space_of(params: TrainingParams) -> Space | None:
    """The latents of the autoencoder that params.yaml names; None: pixels.

    Raises:
        UsageError: it cannot be read or does not support this image size.
    """
    if not params.autoencoder:
        return None
    return latents(*read_autoencoder(Path(params.autoencoder)), params.image_size_px)
