"""Encoders: vectors depend on the tile alone; weights are checked before they are believed."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rsprune_dagster.pruning.encoders import encoder as encoders
from rsprune_dagster.pruning.encoders.backbones import BACKBONES
from rsprune_dagster.pruning.encoders.encoder import load_encoder
from rsprune_dagster.utils.errors import RunError, UsageError

MOBILENET = "mobilenet_v2_tfqat_rot180-4ec30254.pth"


def noise(n_tiles: int, side: int = 64, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (n_tiles, side, side, 3), dtype=np.uint8))


def random_state(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return BACKBONES[name].build().state_dict()


@pytest.fixture(scope="module")
def squeezenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file(random_state("squeezenet1_1"), path)
    return path


def load(name: str, file: Path, sha256: str = "", precision: str = "float32") -> encoders.Encoder:
    return load_encoder(
        name, weights=str(file), weights_sha256=sha256, image_size_px=64, precision=precision, device="cpu"
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_mobilenet_vectors_depend_on_the_tile_alone(shared_data: Path, precision: str) -> None:
    encoder = load("mobilenet_v2", shared_data / "weights" / MOBILENET, precision=precision)
    check_batches_order_and_threads(encoder)


def test_descriptor_vectors_depend_on_the_tile_alone() -> None:
    check_batches_order_and_threads(load_encoder("descriptor", image_size_px=64))


def check_batches_order_and_threads(encoder: encoders.Encoder) -> None:
    tiles = noise(80)
    expected = encoder.embed(tiles)
    order = np.random.default_rng(1).permutation(80)
    assert np.array_equal(encoder.embed([tiles[i] for i in order]), expected[order])
    for size in (1, 37, 64):
        assert np.array_equal(encoder.embed(tiles[3 : 3 + size]), expected[3 : 3 + size])
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            assert np.array_equal(encoder.embed(tiles), expected)
    finally:
        torch.set_num_threads(before)


def test_vectors_are_the_mean_of_the_features(shared_data: Path) -> None:
    file = shared_data / "weights" / MOBILENET
    tiles = noise(3)
    model = BACKBONES["mobilenet_v2"].build().eval()
    model.load_state_dict(torch.load(file, weights_only=True))
    batch = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoders.IMAGENET_MEAN, encoders.IMAGENET_STD))
    with torch.inference_mode():
        features = model.get_submodule("features")((batch - mean) / std).mean((2, 3)).numpy()
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert np.abs(load("mobilenet_v2", file).embed(tiles) - expected).max() < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_state_dicts_of_either_format_give_the_same_vectors(tmp_path: Path, name: str) -> None:
    state = random_state(name)
    save_file(state, tmp_path / "w.safetensors")
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(wrapped, tmp_path / "w.pth")
    first, second = load(name, tmp_path / "w.safetensors"), load(name, tmp_path / "w.pth")
    vectors = first.embed(noise(2))
    assert vectors.shape == (2, BACKBONES[name].dimension)
    assert np.array_equal(vectors, second.embed(noise(2)))


@pytest.mark.parametrize("name", BACKBONES)
def test_each_backbone_gives_its_dimension(name: str) -> None:
    backbone = BACKBONES[name]
    side = backbone.fixed_size_px or 64
    with torch.device("meta"), torch.inference_mode():
        trunk = backbone.trunk(backbone.build().eval())
        assert trunk(torch.empty(1, 3, side, side)).shape[1] == backbone.dimension


def test_a_classifier_of_another_number_of_classes_is_fine(tmp_path: Path) -> None:
    state = {key: value for key, value in random_state("squeezenet1_1").items() if not key.startswith("classifier.")}
    save_file(state | {"classifier.1.weight": torch.zeros(45, 512, 1, 1)}, tmp_path / "w.safetensors")
    assert load("squeezenet1_1", tmp_path / "w.safetensors").embed(noise(1)).shape == (1, 512)


def test_the_hash_is_reported_and_checked(squeezenet_file: Path) -> None:
    actual = hashlib.sha256(squeezenet_file.read_bytes()).hexdigest()
    assert load("squeezenet1_1", squeezenet_file).weights_sha256 == actual
    assert load("squeezenet1_1", squeezenet_file, sha256=actual[:8].upper()).weights_sha256 == actual
    with pytest.raises(UsageError, match=rf"{actual}.*weights_sha256 says {'0' * 64}"):
        load("squeezenet1_1", squeezenet_file, sha256="0" * 64)
    with pytest.raises(UsageError, match="8 to 64 hexadecimal"):
        load("squeezenet1_1", squeezenet_file, sha256="abc")


def test_the_hash_in_the_name_is_checked(squeezenet_file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "squeezenet-deadbeef.safetensors"
    shutil.copy(squeezenet_file, wrong)
    with pytest.raises(UsageError, match="its name says deadbeef"):
        load("squeezenet1_1", wrong)


def test_weights_of_another_network_name_the_right_one(squeezenet_file: Path) -> None:
    with pytest.raises(UsageError, match=r"not of resnet18: .*conv1.weight.*they fit --backbone squeezenet1_1"):
        load("resnet18", squeezenet_file)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pointer"])
def test_unreadable_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    state = {"a": torch.zeros(1000)}
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    content = {
        "truncated": path.read_bytes()[:1500],
        "empty": b"",
        "text": b"<html>not found</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    }
    path.write_bytes(content[damage])
    expected = "git lfs pull" if damage == "pointer" else "cannot be read"
    with pytest.raises(UsageError, match=expected):
        load("resnet18", path)


class Bomb:
    """Pickles as a call, which must not happen."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("code from a weights file was run",))


def test_code_in_a_weights_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="cannot be read"):
        load("resnet18", tmp_path / "w.pth")


def test_missing_files_and_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load("resnet18", tmp_path / "nothing.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"expected a \.safetensors"):
        load("resnet18", tmp_path / "w.onnx")


def test_without_network_the_ways_out_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UsageError, match=r"--weights FILE, or use --backbone descriptor"):
        load_encoder("resnet18", image_size_px=64)


def test_unknown_names_are_refused_with_the_close_one() -> None:
    with pytest.raises(UsageError, match="did you mean mobilenet_v2"):
        load_encoder("mobilnet_v2", image_size_px=64)
    with pytest.raises(UsageError, match="expected one of descriptor"):
        load_encoder("clip", image_size_px=64)
    with pytest.raises(UsageError, match="float16"):
        load_encoder("resnet18", image_size_px=64, precision="float16")
    with pytest.raises(UsageError, match="no weights"):
        load_encoder("descriptor", weights="w.pth", image_size_px=64)
    with pytest.raises(UsageError, match="224"):
        load_encoder("vit_b_16", image_size_px=64)
    with pytest.raises(UsageError, match="32"):
        load_encoder("resnet18", image_size_px=16)


def test_resizing_keeps_the_order_of_mixed_sizes() -> None:
    tiles = [np.full((side, side + 3, 3), side, np.uint8) for side in (10, 64, 10, 100, 64)]
    batch = encoders.resized(tiles, 64)
    assert batch.shape == (5, 3, 64, 64)
    assert [int(tile.unique().item()) for tile in batch] == [10, 64, 10, 100, 64]


def test_zero_features_become_a_unit_vector() -> None:
    vectors = encoders.unit(np.zeros((1, 4), np.float32))
    assert np.array_equal(vectors, np.full((1, 4), 0.5, np.float32))


def test_values_that_are_not_finite_stop_the_run(squeezenet_file: Path, tmp_path: Path) -> None:
    state = load_file(squeezenet_file)
    state["features.0.weight"] = state["features.0.weight"] * float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match="not finite"):
        load("squeezenet1_1", tmp_path / "w.safetensors").embed(noise(1))
