"""The pool of the steps that compute on a GPU."""

from pathlib import Path

GPU_POOL = "gpu"
NVIDIA_DRIVER = Path("/dev/nvidiactl")


def gpu_pool() -> str | None:
    """The pool that lets one step at a time onto the GPU; none where the machine has no NVIDIA driver."""
    return GPU_POOL if NVIDIA_DRIVER.exists() else None
