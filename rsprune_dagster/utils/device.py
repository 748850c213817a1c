"""The device that torch computes on."""

import torch

from rsprune_dagster.utils.errors import UsageError


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UsageError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device is {device}, but torch sees no GPU: use auto or cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device is {device!r}, expected auto, cpu or cuda") from error
