"""The denoisers: presets of diffusers' UNet and DiT, from minutes on two cores to days on many GPUs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsprune_dagster.config.params import suggest
from rsprune_dagster.utils.errors import UsageError

Denoiser = Any
"""A diffusers model (`torch.nn.Module` and `ModelMixin`); Any, since mypy cannot follow diffusers' types."""


@dataclass(frozen=True)
class UNetPreset:
    """Channels and blocks per resolution, and the edges at which self-attention is used."""

    channels: tuple[int, ...]
    layers: int
    attention_edges: tuple[int, ...]
    head_dim: int


@dataclass(frozen=True)
class DiTPreset:
    """Number of transformer blocks and heads, and the patch size."""

    layers: int
    heads: int
    head_dim: int
    patch_px: int
    patch_of_latents: int


PRESETS: dict[str, UNetPreset] = {
    "tiny": UNetPreset((32, 64, 64), layers=1, attention_edges=(8,), head_dim=16),
    "small": UNetPreset((64, 128, 128, 256), layers=2, attention_edges=(16, 8), head_dim=32),
    "base": UNetPreset((128, 256, 256, 256), layers=3, attention_edges=(32, 16, 8), head_dim=64),
    "xl": UNetPreset((192, 384, 576, 768), layers=3, attention_edges=(32, 16, 8), head_dim=64),
}
"""At 64 px tiny has 1.1 M weights, small 19 M, base 51 M, xl 261 M."""

DIT_PRESETS: dict[str, DiTPreset] = {
    "tiny": DiTPreset(layers=6, heads=4, head_dim=32, patch_px=4, patch_of_latents=2),
    "small": DiTPreset(layers=12, heads=6, head_dim=64, patch_px=4, patch_of_latents=2),
    "base": DiTPreset(layers=12, heads=12, head_dim=64, patch_px=4, patch_of_latents=2),
    "xl": DiTPreset(layers=28, heads=16, head_dim=72, patch_px=4, patch_of_latents=2),
}
"""The published S, B and XL (Peebles & Xie 2023), and a tiny one."""

KINDS = ("unet", "dit")

N_LABELS = 1000
"""Number of classes of diffusers' DiTPipeline, which uses the class of this index as the null class."""


def build_denoiser(
    preset: str,
    *,
    image_size_px: int,
    n_scenes: int,
    seed: int,
    kind: str = "unet",
    channels: int = 3,
    for_latents: bool = False,
) -> Denoiser:
    """A denoiser with random weights from `seed`, for (channels, size, size) images or latents.

    The last class is the null class of classifier-free guidance (Ho & Salimans 2022; `null_class`). A UNet in pixel
    space has one class more than there are scenes, and no classes if there is only one scene. All other denoisers go
    into a DiTPipeline and have its 1,001 classes.

    Raises:
        UsageError: unknown preset, a size that its resolutions do not divide, or more scenes than a DiTPipeline takes.
    """
    import torch

    if kind not in KINDS:
        raise UsageError(f"no denoiser is called {kind}{suggest(kind, KINDS)}; there are {', '.join(KINDS)}")
    in_dit_pipeline = kind == "dit" or for_latents
    if in_dit_pipeline and n_scenes > N_LABELS:
        raise UsageError(
            f"{n_scenes:,} scenes are more than the {N_LABELS:,} that diffusers' DiTPipeline takes: "
            "use training.denoiser unet without an autoencoder"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "dit":
            return _dit(preset, image_size_px, channels, for_latents=for_latents)
        n_classes = N_LABELS + 1 if in_dit_pipeline else n_scenes + 1 if n_scenes > 1 else None
        return _unet(preset, image_size_px, channels, n_classes)


def kind_of(denoiser: Denoiser) -> str:
    """unet or dit, as in `KINDS`."""
    return "dit" if "num_embeds_ada_norm" in denoiser.config else "unet"


def null_class(denoiser: Denoiser) -> int | None:
    """The null class of classifier-free guidance; None for a denoiser without classes."""
    config = denoiser.config
    if kind_of(denoiser) == "dit":
        return int(config.num_embeds_ada_norm)
    return None if config.num_class_embeds is None else int(config.num_class_embeds) - 1


def with_condition(denoiser: Denoiser, n_channels: int) -> Denoiser:
    """A denoiser that takes `n_channels` more input channels, and predicts what the given one does whatever they hold.

    The weights of the new channels are zero. A UNet loses its classes: the null class becomes part of the embedding of
    the timestep, so that it is unconditional.
    """
    import torch

    config = _architecture(denoiser)
    weights = {name: value.clone() for name, value in denoiser.state_dict().items()}
    first = "pos_embed.proj.weight" if "pos_embed.proj.weight" in weights else "conv_in.weight"
    old = weights[first]
    weights[first] = torch.cat([old, old.new_zeros(old.shape[0], n_channels, *old.shape[2:])], dim=1)
    if (classes := weights.pop("class_embedding.weight", None)) is not None:
        weights["time_embedding.linear_2.bias"] += classes[null_class(denoiser)]
        config["num_class_embeds"] = None
    widened = type(denoiser)(**{**config, "in_channels": old.shape[1] + n_channels})
    widened.load_state_dict(weights)
    return _without_class_dropout(widened)


def with_new_weights(denoiser: Denoiser, seed: int) -> Denoiser:
    """A denoiser of the same architecture with random weights from `seed`."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(denoiser)(**_architecture(denoiser))
        return _without_class_dropout(_adaln_zero(made)) if kind_of(made) == "dit" else made


def read_denoiser(folder: Path) -> Denoiser:
    """Load a denoiser written by `save_pretrained`. (`from_pretrained` would add the folder's path to its config.)

    Raises:
        Exception: of many types, if files are missing or truncated, or weights and configuration do not match.
    """
    from diffusers import DiTTransformer2DModel, UNet2DModel
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    kinds = {kind.__name__: kind for kind in (UNet2DModel, DiTTransformer2DModel)}
    kind = kinds[config["_class_name"]]
    denoiser = _without_class_dropout(
        kind(**{name: value for name, value in config.items() if not name.startswith("_")})
    )
    index = folder / f"{_WEIGHTS}.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [_WEIGHTS]
    weights: dict[str, Any] = {}
    for name in names:
        weights |= load_file(folder / name)
    denoiser.load_state_dict(weights)
    return denoiser


def _architecture(denoiser: Denoiser) -> dict[str, Any]:
    return {name: value for name, value in denoiser.config.items() if not name.startswith("_")}


_WEIGHTS = "diffusion_pytorch_model.safetensors"


def _unet(name: str, edge: int, channels: int, n_classes: int | None) -> Denoiser:
    from diffusers import UNet2DModel

    _known(name, tuple(PRESETS))
    sizes = PRESETS[name]
    _divided(name, edge, 2 ** (len(sizes.channels) - 1))
    attends = [edge >> level in sizes.attention_edges for level in range(len(sizes.channels))]
    return UNet2DModel(
        sample_size=edge,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=sizes.layers,
        block_out_channels=sizes.channels,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        attention_head_dim=sizes.head_dim,
        norm_num_groups=min(32, sizes.channels[0] // 2),
        num_class_embeds=n_classes,
    )


def _dit(name: str, edge: int, channels: int, *, for_latents: bool) -> Denoiser:
    from diffusers import DiTTransformer2DModel

    _known(name, tuple(DIT_PRESETS))
    sizes = DIT_PRESETS[name]
    patch = sizes.patch_of_latents if for_latents else sizes.patch_px
    _divided(name, edge, patch)
    denoiser = DiTTransformer2DModel(
        num_attention_heads=sizes.heads,
        attention_head_dim=sizes.head_dim,
        in_channels=channels,
        out_channels=channels,  # the pipeline reads it
        num_layers=sizes.layers,
        sample_size=edge,
        patch_size=patch,
        num_embeds_ada_norm=N_LABELS,
    )
    return _without_class_dropout(_adaln_zero(denoiser))


def _adaln_zero(denoiser: Denoiser) -> Denoiser:
    """adaLN-Zero initialization (Peebles & Xie 2023), which diffusers omits."""
    import torch

    nn = torch.nn
    for layer in denoiser.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    patches = denoiser.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.data.view(patches.weight.shape[0], -1))
    nn.init.zeros_(patches.bias)
    for block in denoiser.transformer_blocks:
        conditioning = block.norm1.emb
        nn.init.normal_(conditioning.class_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(conditioning.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(conditioning.timestep_embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(denoiser.proj_out_1.weight)
    nn.init.zeros_(denoiser.proj_out_2.weight)
    return denoiser


def _without_class_dropout(denoiser: Denoiser) -> Denoiser:
    """Disable diffusers' class dropout, which is drawn per block from the global generator: the training draws it once
    per image number."""
    for block in getattr(denoiser, "transformer_blocks", ()):
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return denoiser


def _known(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UsageError(f"no denoiser is called {name}{suggest(name, known)}; there are {', '.join(known)}")


def _divided(preset: str, edge: int, divisor: int) -> None:
    if edge % divisor:
        raise UsageError(f"the {preset} denoiser needs an image size that {divisor} divides, not {edge} px")
