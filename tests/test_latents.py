"""Spaces: a code is the scaled mean of the autoencoder's distribution, and decoding undoes it."""

from pathlib import Path

import pytest
import torch
from diffusion_runs import tiny_autoencoder

from rsprune_dagster.config.params import TrainingParams, load
from rsprune_dagster.diffusion.latents import Space, identity_space, latents, pixels, read_autoencoder, space_of

SCALE = 0.5
"""The tiny autoencoder's scaling factor."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_autoencoder(tmp_path_factory.mktemp("latents") / "vae")


@pytest.fixture(scope="module")
def space(folder: Path) -> Space:
    return latents(*read_autoencoder(folder), 16)


def test_a_code_is_the_scaled_mean_and_is_decoded_unscaled(space: Space) -> None:
    images = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    autoencoder = space.autoencoder
    mean = autoencoder.encode(images).latent_dist.mean
    codes = space.encode(images, at_once=2)
    assert (space.channels, space.edge, space.image_size_px) == (4, 8, 16) == (*codes.shape[1:3], 16)
    assert torch.allclose(codes, SCALE * mean, atol=1e-6)
    assert torch.allclose(space.decode(codes), autoencoder.decode(mean).sample, atol=1e-5)
    assert not codes.requires_grad


def test_the_autoencoder_is_frozen(space: Space) -> None:
    assert not space.autoencoder.training
    assert not any(parameter.requires_grad for parameter in space.autoencoder.parameters())


def test_pixels_are_their_own_code() -> None:
    images = torch.rand((2, 3, 8, 8))
    space = pixels(8)
    assert space.encode(images, at_once=1) is images and space.decode(images) is images
    assert (space.channels, space.edge, space.image_size_px, space.clipped) == (3, 8, 8, True)
    assert (identity_space(8).channels, identity_space(8).image_size_px, identity_space(8).clipped) == (3, 8, True)


def test_parameters_name_the_autoencoder_or_pixels(folder: Path, space: Space) -> None:
    params: TrainingParams = load(Path(__file__).parents[1] / "params.yaml").training
    assert space_of(params) is None
    found = space_of(params.model_copy(update={"autoencoder": str(folder), "image_size_px": 32}))
    assert found is not None and (found.digest, found.edge, found.clipped) == (space.digest, 16, False)
