"""Low-resolution images from high-resolution ones: the input of super-resolution, with a known truth.

`bicubic` is the field's standard: an antialiased bicubic reduction. `realistic` is a chain of blur, reduction, noise
and JPEG compression with random strengths, in the order of sensor and archive (Zhang et al. 2021, BSRGAN; one pass).
"""

import io
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

BLUR_PX: Final = (0.2, 0.6)
"""Standard deviation of the blur along each axis, in pixels of the low-resolution image. 0.2 is hardly a blur, 0.6 a
point spread function whose width at half height is 1.4 pixels."""
NOISE_LEVELS: Final = (0.0, 6.0)
"""Standard deviation of the noise, in grey levels of 255."""
JPEG_QUALITY: Final = (60, 95)

N_BACK_PROJECTIONS: Final = {"bicubic": 6, "realistic": 1}
"""By degradation. The first leaves about a third of the difference to the input, six leave two per cent. The realistic
input has noise, so its difference is not removed whole; without, colours were off by 9 grey levels (docs/log.md)."""

Degradation = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""(high (h, w, 3) uint8, scale, random numbers) to low (h / scale, w / scale, 3) uint8."""


def bicubic(high: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """Antialiased bicubic reduction by Pillow; draws no random numbers."""
    return _resized(high, high.shape[0] // scale, high.shape[1] // scale)


def realistic(high: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """Anisotropic Gaussian blur, bicubic reduction, Gaussian noise, JPEG."""
    sigma = rng.uniform(*BLUR_PX, size=2) * scale
    blurred = gaussian_filter(high.astype(np.float32), sigma=(*sigma, 0), mode="nearest")
    low = bicubic(np.rint(blurred).astype(np.uint8), scale, rng)
    noise = rng.normal(0, rng.uniform(*NOISE_LEVELS), low.shape)
    noisy = np.clip(np.rint(low + noise), 0, 255).astype(np.uint8)
    compressed = io.BytesIO()
    Image.fromarray(noisy).save(compressed, "JPEG", quality=int(rng.integers(*JPEG_QUALITY, endpoint=True)))
    return np.array(Image.open(compressed))


DEGRADATIONS: Final[dict[str, Degradation]] = {"bicubic": bicubic, "realistic": realistic}


def enlarged(low: torch.Tensor, scale: int) -> torch.Tensor:
    """Bicubic enlargement of (n, c, h, w) to (n, c, h scale, w scale), as Pillow's: what super-resolution must beat."""
    height, width = low.shape[-2:]
    return torch.nn.functional.interpolate(low, (height * scale, width * scale), mode="bicubic", antialias=True)


def reduced(high: torch.Tensor, scale: int) -> torch.Tensor:
    """`bicubic` of (n, c, h, w) without its rounding."""
    height, width = high.shape[-2:]
    return torch.nn.functional.interpolate(high, (height // scale, width // scale), mode="bicubic", antialias=True)


def consistent(high: torch.Tensor, low: torch.Tensor, scale: int, n_times: int) -> torch.Tensor:
    """`high`, changed so that its reduction is nearer to `low`: what the reduction lacks is enlarged and added.

    Back-projection (Irani & Peleg 1991).
    """
    for _ in range(n_times):
        high = high + enlarged(low - reduced(high, scale), scale)
    return high


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
