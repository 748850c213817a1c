"""A network with the descriptor beside it: what its vectors are made of, and what they depend on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rsprune_dagster.config.params import EmbeddingParams, load
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.pruning.encoders.backbones import BACKBONES
from rsprune_dagster.pruning.encoders.embedding import embed_stream
from rsprune_dagster.pruning.encoders.encoder import TileEncoder, load_encoder, unit
from rsprune_dagster.pruning.encoders.tile_encoder import CombinedEncoder, beside, load_tile_encoder
from rsprune_dagster.stages.embeddings import Embedder
from rsprune_dagster.utils.errors import RunError, UsageError

BACKBONE = "squeezenet1_1"
PARAMS = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    torch.manual_seed(0)
    save_file(BACKBONES[BACKBONE].build().state_dict(), path)
    return path


def embedding(weights: Path | str, **changes: object) -> EmbeddingParams:
    given = {"backbone": BACKBONE, "weights": str(weights), "image_size_px": 96, "precision": "float32"}
    return load(PARAMS).embedding.model_copy(update=given | changes)


def tiles(n_tiles: int, seed: int = 0) -> list[np.ndarray]:
    """Coloured noise of several sizes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, rng.integers(20, 256), (side, side, 3), dtype=np.uint8) for side in [40, 64, 96] * n_tiles][
        :n_tiles
    ]


def cosines(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors.astype(np.float64) @ vectors.T.astype(np.float64))


@given(st.floats(0.1, 10), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_cosines_are_the_mean_of_the_parts_cosines(weight: float, d: int, e: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    network, texture = unit(rng.normal(size=(5, d))), unit(rng.normal(size=(5, e)))
    both = beside(network, texture, weight)
    expected = (cosines(network) + weight**2 * cosines(texture)) / (1 + weight**2)
    assert both.dtype == np.float32
    assert np.allclose(cosines(both), expected, atol=1e-6)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_parts_are_the_network_and_the_descriptor_on_the_tiles_themselves(weights: Path, weight: float) -> None:
    seen = tiles(5)
    network = load_encoder(BACKBONE, weights=str(weights), image_size_px=96, precision="float32", device="cpu")
    texture = load_encoder("descriptor", image_size_px=96, device="cpu")
    both = load_tile_encoder(embedding(weights, descriptor_weight=weight), "cpu")
    assert np.array_equal(both.embed(seen), beside(network.embed(seen), texture.embed(seen), weight))
    assert both.dimension == both.embed(seen).shape[1] == network.dimension + texture.dimension


def test_a_vector_depends_on_its_tile_alone(weights: Path) -> None:
    encoder, seen = load_tile_encoder(embedding(weights), "cpu"), tiles(70)
    expected = encoder.embed(seen)
    order = np.random.default_rng(1).permutation(70)
    assert np.array_equal(encoder.embed([seen[i] for i in order]), expected[order])
    assert np.array_equal(encoder.embed(seen[3:4]), expected[3:4])
    assert encoder.embed([]).shape == (0, encoder.dimension)
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            assert np.array_equal(load_tile_encoder(embedding(weights), "cpu").embed(seen), expected)
    finally:
        torch.set_num_threads(before)


def test_the_stream_gives_what_the_encoder_gives(weights: Path) -> None:
    encoder, whole = load_tile_encoder(embedding(weights), "cpu"), tiles(20)
    vectors = list(embed_stream(iter([whole[:7], [], whole[7:]]), encoder))
    assert [len(found) for found in vectors] == [7, 0, 13]
    assert np.array_equal(np.concatenate(vectors), encoder.embed(whole))


def test_without_weight_it_is_the_network_alone(weights: Path) -> None:
    network = load_encoder(BACKBONE, weights=str(weights), image_size_px=96, precision="float32", device="cpu")
    found = load_tile_encoder(embedding(weights, descriptor_weight=0.0), "cpu")
    assert found.identity == network.identity
    assert np.array_equal(found.embed(tiles(3)), network.embed(tiles(3)))


def test_the_descriptor_alone_takes_no_weight() -> None:
    found = [load_tile_encoder(embedding("", backbone="descriptor", descriptor_weight=w), "cpu") for w in (0.0, 2.0)]
    assert found[0].identity == found[1].identity
    assert np.array_equal(found[0].embed(tiles(3)), found[1].embed(tiles(3)))


def test_each_weight_has_a_cache_of_its_own(weights: Path, tmp_path: Path) -> None:
    def folder(encoder: TileEncoder) -> Path:
        return Embedder(encoder, ReadOptions(), tmp_path, 64, 64).cache.folder

    encoders = [load_tile_encoder(embedding(weights, descriptor_weight=w), "cpu") for w in (0.0, 0.5, 1.0, 1.0)]
    folders = [folder(encoder) for encoder in encoders]
    assert len(set(folders)) == 3
    assert folders[2] == folders[3]


def test_damaged_weights_are_noticed(weights: Path, tmp_path: Path) -> None:
    state = {key: torch.full_like(value, torch.nan) for key, value in BACKBONES[BACKBONE].build().state_dict().items()}
    save_file(state, tmp_path / "nan.safetensors")
    encoder = load_tile_encoder(embedding(tmp_path / "nan.safetensors"), "cpu")
    assert isinstance(encoder, CombinedEncoder)
    with pytest.raises(RunError, match=f"{BACKBONE} gave values that are not finite"):
        encoder.embed(tiles(1))


def test_usage_errors_are_the_encoders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_tile_encoder(embedding(tmp_path / "absent.pth"), "cpu")
    with pytest.raises(UsageError, match="unknown backbone"):
        load_tile_encoder(embedding("", backbone="mobilnet_v2"), "cpu")
