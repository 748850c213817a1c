"""Network weights from a file or torchvision's servers: the hash is checked and no code is executed."""

import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rsprune_dagster.pruning.encoders.backbones import BACKBONES, Backbone
from rsprune_dagster.utils.errors import UsageError

NAME_HASH = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|safetensors)$")
"""torchvision's convention: the file name ends with the start of its sha256."""

UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, SafetensorError)

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """A state dict and the sha256 of the file it came from."""

    state: State
    sha256: str


def load_weights(backbone: Backbone, file: str, sha256: str) -> Weights:
    """Weights of `backbone` from `file`, or the published ones if it is empty. UsageError: they are unusable."""
    path = existing(file) if file else published(backbone)
    actual = hash_of(path)
    check_hash(path, actual, sha256)
    state = flat(read_state(path), path)
    check_state(backbone, state, path)
    return Weights({key: value for key, value in state.items() if backbone.needs(key)}, actual)


def existing(file: str) -> Path:
    """Check that a weights file exists and has a known suffix; returns its path."""
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"weights {file}: no such file")
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise UsageError(f"weights {file}: expected a .safetensors file or a torchvision .pth file")
    return path


def published(backbone: Backbone) -> Path:
    """torchvision's published weights, downloaded once into torch's cache."""
    from torchvision.models._api import get_model_weights

    url: str = get_model_weights(backbone.name)["DEFAULT"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"the published weights of {backbone.name} could not be downloaded ({error}): "
            "give a file with --weights FILE, or use --backbone descriptor, which needs none"
        ) from error
    return path


def hash_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, actual: str, expected: str) -> None:
    """Compare with the given hash and with the one in the file name. Raises UsageError if they differ."""
    if expected and not re.fullmatch(r"[0-9a-fA-F]{8,64}", expected):
        raise UsageError(f"weights_sha256 is {expected!r}, expected 8 to 64 hexadecimal digits")
    in_name = NAME_HASH.search(path.name)
    claims = {"weights_sha256": expected.lower(), "its name": in_name.group(1) if in_name else ""}
    for origin, claim in claims.items():
        if not actual.startswith(claim):
            raise UsageError(
                f"weights {path} have sha256 {actual}, but {origin} says {claim}: "
                "the file is damaged or another one; get it again, or correct the hash"
            )


def read_state(path: Path) -> object:
    """The file's content; torch rejects pickled code without running it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        with path.open("rb") as file:
            pointer = file.read(40).startswith(b"version https://git-lfs")
        why = (
            "it is a Git LFS pointer, run `git lfs pull`"
            if pointer
            else f"truncated, damaged or not plain tensors ({brief(error)})"
        )
        raise UsageError(f"weights {path} cannot be read: {why}") from error


def brief(error: Exception) -> str:
    """The first line of an error, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120]


def flat(content: object, path: Path) -> State:
    """The state dict of a checkpoint, at top level or under `state_dict` or `model`, without data-parallel prefixes."""
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UsageError(f"weights {path}: expected a state dict, that is, named tensors")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def check_state(backbone: Backbone, state: State, path: Path) -> None:
    """Check that every weight of the trunk exists in its shape; the number of classes may differ."""
    expected = backbone.shapes()
    given = shapes_of(backbone, state)
    if given == expected:
        return
    missing = [key for key in expected if key not in given]
    extra = [key for key in given if key not in expected]
    differing = [
        f"{key} {given[key]} for {expected[key]}" for key in expected if given.get(key, expected[key]) != expected[key]
    ]
    found = "; ".join(
        f"{len(keys)} {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for word, keys in (("missing", missing), ("unexpected", extra), ("of another shape", differing))
        if keys
    )
    raise UsageError(f"weights {path} are not of {backbone.name}: {found}; {suggestion(state)}")


def shapes_of(backbone: Backbone, state: State) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the given weights, without the classifier's."""
    return {key: tuple(value.shape) for key, value in state.items() if backbone.needs(key)}


def suggestion(state: State) -> str:
    """A suggestion for weights of another network."""
    fitting = [name for name, backbone in BACKBONES.items() if backbone.shapes() == shapes_of(backbone, state)]
    if fitting:
        return f"they fit --backbone {fitting[0]}"
    return "they fit none of " + ", ".join(BACKBONES)


def load_trunk(backbone: Backbone, weights: Weights) -> nn.Module:
    """The trunk with its weights, frozen, for inference."""
    model = backbone.build()
    model.load_state_dict(weights.state, strict=False)
    return backbone.trunk(model.eval().requires_grad_(False))
