"""A cache of arrays, in files named by the hash of everything that they depend on.

A damaged file, or one with another shape or dtype than expected, is recomputed.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from rsprune_dagster.evaluation.features import FeatureNetwork, Images
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.sealed_files import KEY, UNSEALED, read_intact, sealed

NAME = "array"
FEATURES_VERSION = "1"
"""Increment when a network gives other features with the same weights; the descriptor has no weights to hash."""


def key_of(*depends_on: object) -> str:
    """A file name: the hash of JSON-serializable values and of the library versions."""
    versions = {name: version(name) for name in ("torch", "torchvision", "diffusers", "numpy")}
    return hashlib.sha256(json.dumps([versions, *depends_on], sort_keys=True).encode()).hexdigest()


def cached_array(
    file: Path, shape: tuple[int, ...], dtype: type[np.generic], make: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """The array in `file`; if there is none of that shape and dtype, the result of `make`, which is then stored."""
    data = read_intact(file)
    kept = None if data is None else load(data)[NAME]
    if kept is not None and kept.shape == shape and kept.dtype == dtype:
        return kept
    made = make()
    with atomic_write(file) as draft:
        # save_file does not report a full disk
        draft.write_bytes(sealed(save({NAME: np.ascontiguousarray(made)}, {KEY: UNSEALED})))
    return made


def with_feature_cache(network: FeatureNetwork, folder: Path) -> FeatureNetwork:
    """The network with its features cached in `folder` by image content."""
    return replace(network, forward=partial(_features, network, folder))


def _features(network: FeatureNetwork, folder: Path, images: Images) -> NDArray[np.float32]:
    key = key_of(FEATURES_VERSION, network.name, network.sha256, network.resize, images.shape, _sha256(images))
    shape = len(images), network.dimension
    return cached_array(folder / f"{key}.safetensors", shape, np.float32, partial(network.forward, images))


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
