"""What took long is made once, and again where its file is damaged."""

from pathlib import Path

import numpy as np
import pytest

from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.sample_cache import cached_array, key_of, with_feature_cache


@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "flipped"])
def test_an_array_is_made_once_and_again_where_its_file_is_damaged(tmp_path: Path, damage: str) -> None:
    file, made = tmp_path / "folder" / "one.safetensors", []

    def make() -> np.ndarray:
        made.append(1)
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    for _ in range(2):
        assert np.array_equal(cached_array(file, (2, 3), np.float32, make), make())
    assert len(made) == 3  # the comparisons make one each
    whole = file.read_bytes()
    damaged = {"empty": b"", "noise": b"\xff" * 100, "cut": whole[:-4], "flipped": whole[:-1] + b"\x7f"}
    file.write_bytes(damaged[damage])
    for _ in range(2):
        assert np.array_equal(cached_array(file, (2, 3), np.float32, make), np.arange(6).reshape(2, 3))
    assert len(made) == 4


def test_an_array_of_another_shape_or_kind_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    cached_array(file, (3,), np.float32, lambda: np.zeros(3, np.float32))
    assert cached_array(file, (4,), np.float32, lambda: np.ones(4, np.float32)).tolist() == [1] * 4
    assert cached_array(file, (4,), np.uint8, lambda: np.full(4, 2, np.uint8)).dtype == np.uint8


def test_features_are_those_of_their_network_and_images(tmp_path: Path) -> None:
    passes: list[int] = []

    def network(name: str, sha256: str, factor: int) -> FeatureNetwork:
        def forward(images: np.ndarray) -> np.ndarray:
            passes.append(len(images))
            return factor * images.reshape(len(images), -1)[:, :2].astype(np.float32)

        return with_feature_cache(FeatureNetwork(name, sha256, "none", 4, 2, forward), tmp_path)

    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    networks = [network("one", "a", 1), network("two", "a", 2), network("one", "b", 3)]
    for _ in range(2):
        for factor, each in enumerate(networks, start=1):
            found = each.extract([images, images[:2], images[::-1]])
            pixels = np.concatenate([images, images[:2], images[::-1]]).reshape(12, -1).astype(np.float32)
            expected = factor * pixels[:, :2]
            assert np.array_equal(found, expected)
    assert passes == [5, 2, 5] * 3


def test_a_key_changes_with_everything_it_is_of() -> None:
    keys = {key_of("1", {"steps": 2}, [0]), key_of("1", {"steps": 3}, [0]), key_of("1", {"steps": 2}, [0, 0])}
    assert len(keys) == 3
