"""How near restored images are to the truth: PSNR, SSIM, ST-LPIPS, Fréchet distance, and consistency with the input.

All of RGB in the range 0 to 1, without leaving out a border. Published figures are often of the luma channel (Y of
YCbCr) and leave out `scale` pixels on each side: they cannot be compared with these.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from rsprune_dagster.diffusion.objective import to_tensor
from rsprune_dagster.downstream.degradation import reduced
from rsprune_dagster.evaluation.evaluate import protocol_of
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.fidelity import frechet_score
from rsprune_dagster.evaluation.image_set import image_set_of
from rsprune_dagster.evaluation.intervals import Resampling
from rsprune_dagster.utils.errors import RunError

Images = NDArray[np.uint8]

MEASURES: Final = ("psnr", "ssim", "st_lpips", "input_error")
"""The measures of single images; the first two are better if larger. `input_error`: the root mean squared difference
between the reduced result and the input, in grey levels of 255."""
MAX_PSNR_DB: Final = 58.92
"""The PSNR of the error of rounding to 8 bits, 10 log10(12 · 255²). An image without any error gets this value too:
its PSNR is infinite, as of plain water, and would make the mean infinite."""
LEVEL: Final = 0.95
LPIPS_PX: Final = 64
"""Images with a shorter edge are enlarged to this one for ST-LPIPS, whose network halves them four times."""
AT_ONCE: Final = 32


@dataclass(frozen=True)
class Mean:
    """A mean over images, or a distance, with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Mean":
        """The mean of (n,), n at least 2, with Student's interval of level LEVEL."""
        value = float(values.mean())
        spread = float(values.std(ddof=1)) / len(values) ** 0.5 * float(student.ppf((1 + LEVEL) / 2, len(values) - 1))
        return cls(value, value - spread, value + spread)


def sheet_cells(mean: Mean, gain: Mean | None) -> list[str]:
    """A score as the last six cells of a sheet's row: value, low and high, then those of the gain, or empty cells."""
    cells = [f"{number:.6g}" for one in (mean, gain) if one for number in (one.value, one.low, one.high)]
    return cells + [""] * (6 - len(cells))


@dataclass(frozen=True)
class RestorationScore:
    """A measure of one output, such as the bicubic enlargement."""

    output: str
    measure: str
    mean: Mean
    gain: Mean | None
    """The mean difference to the baseline, image by image; None: not measured on single images."""


def scores(outputs: Mapping[str, Images], truth: Images, low: Images, scale: int) -> list[RestorationScore]:
    """The measures of each output (n, s, s, 3) against the truth and the input (n, s / scale, s / scale, 3).

    The first output is the baseline of the gains.
    """
    measured = {output: measure(images, truth, low, scale) for output, images in outputs.items()}
    baseline = next(iter(measured.values()))
    return [
        RestorationScore(output, name, Mean.of(values[name]), Mean.of(values[name] - baseline[name]))
        for output, values in measured.items()
        for name in MEASURES
    ]


def distances(
    outputs: Mapping[str, Images], truth: Images, networks: Sequence[FeatureNetwork]
) -> tuple[list[RestorationScore], str]:
    """The Fréchet distance of each output to the truth in each network, and sentences on why any is missing."""
    real, found, missing = image_set_of([truth], networks), [], dict[str, None]()
    for output, images in outputs.items():
        made = image_set_of([images], networks)
        for network in networks:
            name, features = network.measure("frechet"), network.name
            try:
                score = frechet_score(
                    made.spaces[features],
                    real.spaces[features],
                    name=name,
                    protocol=protocol_of(network, made, real),
                    resampling=Resampling(level=LEVEL),
                )
            except RunError as error:
                missing[f"{error}."] = None
                continue
            found.append(RestorationScore(output, name, Mean(score.value, score.low, score.high), None))
    return found, " ".join(missing)


def measure(images: Images, truth: Images, low: Images, scale: int) -> dict[str, NDArray[np.float64]]:
    """The measures of single images: (n,) each."""
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(images), AT_ONCE)]
    found = [_measure(to_tensor(images[p]), to_tensor(truth[p]), to_tensor(low[p]), scale) for p in parts]
    return {name: np.concatenate([part[name] for part in found]) for name in MEASURES}


def perceptual_distance(images: Images, truth: Images) -> NDArray[np.float64]:
    """ST-LPIPS (n,) between images (n, s, s, 3)."""
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(images), AT_ONCE)]
    with torch.inference_mode():
        found: torch.Tensor = torch.cat([_st_lpips(to_tensor(images[part]), to_tensor(truth[part])) for part in parts])
    return np.asarray(found.double().numpy())


def _measure(
    images: torch.Tensor, truth: torch.Tensor, low: torch.Tensor, scale: int
) -> dict[str, NDArray[np.float64]]:
    ours, real = (images + 1) / 2, (truth + 1) / 2
    with torch.inference_mode():
        found: dict[str, Any] = {
            "psnr": peak_signal_noise_ratio(ours, real, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp(
                max=MAX_PSNR_DB
            ),
            "ssim": structural_similarity_index_measure(ours, real, data_range=1.0, reduction="none"),
            "st_lpips": _st_lpips(images, truth),
            "input_error": (reduced(images, scale) - low).square().mean((1, 2, 3)).sqrt() * 127.5,
        }
    return {name: np.atleast_1d(np.asarray(values.double().numpy())) for name, values in found.items()}


def _st_lpips(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _network()(_at_least(images), _at_least(truth))
    return found.flatten()


def _at_least(images: torch.Tensor) -> torch.Tensor:
    if min(images.shape[-2:]) >= LPIPS_PX:
        return images
    factor = LPIPS_PX / min(images.shape[-2:])
    return torch.nn.functional.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)


@lru_cache(maxsize=1)
def _network() -> Any:
    """Shift-tolerant LPIPS on AlexNet (Ghildyal & Liu 2022), with the weights of the package stlpips-pytorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses arguments of torchvision that are deprecated
        from stlpips_pytorch.stlpips import LPIPS

        return LPIPS(net="alex", variant="shift_tolerant", verbose=False).eval()
