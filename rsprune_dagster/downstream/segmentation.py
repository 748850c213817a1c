"""How well images show what their masks say.

A segmenter is trained on real pairs of image and mask. How often it agrees with the masks of other images measures
these images: of synthetic ones, how well they follow the masks they were made from.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, interpolate

from rsprune_dagster.diffusion.objective import to_tensor
from rsprune_dagster.diffusion.tile_set import N_TURNS, turned
from rsprune_dagster.downstream.masks import UNLABELED
from rsprune_dagster.downstream.restoration import LEVEL, Mean
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import Progress, silent

Images = NDArray[np.uint8]
Masks = NDArray[np.uint8]
Confusions = NDArray[np.int64]

MEASURES: Final = ("miou", "accuracy", "mean_accuracy")
"""Shares, 0 to 1, larger is better. `miou`: intersection over union, the mean of the classes that occur in the masks;
`accuracy`: the share of pixels that are right; `mean_accuracy`: the same by class, the mean of these classes."""

LEAST_PX: Final = 64
"""Images with a shorter edge are enlarged to this one for the network, whose finest features are of 4 px, the deepest
of 16 px."""
BATCH_SIZE: Final = 16
LEARNING_RATE: Final = 3e-3
"""The largest: it rises over the first 30 % of the batches and falls to zero (one cycle; Smith & Topin 2018)."""
WEIGHT_DECAY: Final = 0.01
AT_ONCE: Final = 64
"""Images per forward pass of `Segmenter.predicted`."""
N_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Segmenter:
    """A trained network, in its evaluation mode."""

    network: torch.nn.Module
    n_classes: int
    device: str

    def predicted(self, images: Images) -> Masks:
        """The most likely class of each pixel, (n, s, s), of images (n, s, s, 3)."""
        found = np.empty(images.shape[:3], np.uint8)
        with torch.inference_mode():
            for start in range(0, len(images), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                found[part] = _logits(self.network, to_tensor(images[part]).to(self.device)).argmax(1).cpu().numpy()
        return found


def train_segmenter(
    images: Images,
    masks: Masks,
    n_classes: int,
    *,
    n_images: int,
    seed: int,
    device: str,
    progress: Progress = silent,
    label: str = "segmenter",
    weights: torch.Tensor | None = None,
) -> Segmenter:
    """Train a segmenter from random weights on images (n, s, s, 3) and their masks (n, s, s).

    Images without a labelled pixel are not used. Each image is seen in a random one of its eight turns.

    Args:
        n_images: training length, rounded up to whole batches; an image that is seen twice counts twice.
        weights: of each class in the loss, (k,); without them, the `class_weights` of the masks.

    Raises:
        UsageError: shapes or classes that do not fit, or no labelled pixel.
    """
    _check(images, masks, n_classes)
    used = np.flatnonzero((masks != UNLABELED).any(axis=(1, 2)))
    if len(used) == 0:
        raise UsageError("no mask has a labelled pixel: a segmenter needs some to train on")
    network = _new_network(n_classes, seed).to(device).train()
    n_batches = -(-n_images // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=n_batches + 1)
    weights = (class_weights(masks, n_classes) if weights is None else weights).to(device)
    with progress(label, n_batches * BATCH_SIZE) as advance:
        for inputs, target in _batches(images[used], masks[used], n_batches, np.random.default_rng(seed)):
            logits = _logits(network, inputs.to(device))
            loss = cross_entropy(logits, target.to(device), weight=weights, ignore_index=UNLABELED)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            advance(BATCH_SIZE)
    return Segmenter(network.eval(), n_classes, device)


def class_weights(masks: Masks, n_classes: int) -> torch.Tensor:
    """The weight of each class in the loss, (k,) float32: one over the root of its number of pixels; 0 if it has none.

    Rare classes count more than by their pixels, and less than if all classes counted the same.
    """
    n_pixels = np.bincount(masks[masks != UNLABELED], minlength=n_classes)
    weights = np.where(n_pixels > 0, 1 / np.sqrt(np.maximum(n_pixels, 1)), 0)
    return torch.from_numpy(weights / weights.max()).float()


def confusions(predicted: Masks, masks: Masks, n_classes: int) -> Confusions:
    """The numbers of pixels (n, k, k) of each image, by their class in the mask, then by the predicted one.

    Unlabelled pixels are left out.

    Raises:
        UsageError: shapes or classes that do not fit.
    """
    _check(predicted, masks, n_classes)
    if predicted.size and predicted.max() >= n_classes:
        raise UsageError(f"class {predicted.max()} was predicted, but there are {n_classes}")
    cells = masks.astype(np.int64) * n_classes + predicted
    counts = [np.bincount(c[m != UNLABELED], minlength=n_classes**2) for c, m in zip(cells, masks, strict=True)]
    return np.array(counts, np.int64).reshape(-1, n_classes, n_classes)


def measures(confusion: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The MEASURES (...) of numbers of labelled pixels (..., k, k), by true, then by predicted class; none is all 0."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    occurs = true > 0
    return {
        "miou": np.mean(right / np.where(occurs, true + predicted - right, 1), axis=-1, where=occurs),
        "accuracy": right.sum(-1) / true.sum(-1),
        "mean_accuracy": np.mean(right / np.where(occurs, true, 1), axis=-1, where=occurs),
    }


def intervals(confusions: Confusions, *, seed: int) -> dict[str, Mean]:
    """The means over segmenters of their measures of the whole set, with intervals of level LEVEL.

    Over images: percentiles of N_RESAMPLES resampled sets. Over segmenters: Student's interval. The half-widths of both
    are added as the sides of a right angle. Images without a labelled pixel are left out. A class that no image of a
    resampled set shows is left out of its means.

    Args:
        confusions: numbers of pixels (m, n, k, k) of m segmenters on n images. Of one segmenter the interval is over
            images alone.

    Raises:
        UsageError: fewer than two images have a labelled pixel.
    """
    values, resampled = _resampled(confusions, seed)
    return {name: _mean(values[name], resampled[name]) for name in MEASURES}


def gains(ours: Confusions, others: Confusions, *, seed: int) -> dict[str, Mean]:
    """The measures of `ours` less those of `others`, both (m, n, k, k) of the same masks, with paired intervals.

    The first segmenter is compared with the first and so on, on the same resampled sets of images; else as `intervals`.

    Raises:
        UsageError: the masks are not the same, or fewer than two images have a labelled pixel.
    """
    if ours.shape != others.shape or (ours.sum(3) != others.sum(3)).any():
        raise UsageError("the two confusions are of different masks, so their images cannot be paired")
    (a, resampled_a), (b, resampled_b) = _resampled(ours, seed), _resampled(others, seed)
    return {name: _mean(a[name] - b[name], resampled_a[name] - resampled_b[name]) for name in MEASURES}


def _check(images: Images, masks: Masks, n_classes: int) -> None:
    if images.shape[:3] != masks.shape:
        raise UsageError(f"images of shape {images.shape} do not fit masks of shape {masks.shape}")
    if not 2 <= n_classes <= UNLABELED:
        raise UsageError(f"{n_classes} classes: there must be 2 to {UNLABELED}")
    if (wrong := masks[(masks >= n_classes) & (masks != UNLABELED)]).size:
        raise UsageError(
            f"class {wrong[0]} is in a mask, but there are {n_classes}; pixels of no class have the value {UNLABELED}"
        )


def _new_network(n_classes: int, seed: int) -> Any:
    """LR-ASPP (Howard et al. 2019) on the first three stages of a ResNet-18, with random weights from `seed`."""
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.models.segmentation import LRASPP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = create_feature_extractor(resnet18(weights=None), {"layer1": "low", "layer3": "high"})
        return LRASPP(stages, low_channels=64, high_channels=256, num_classes=n_classes)


def _logits(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits (n, k, s, s) of images (n, 3, s, s) in [-1, 1]."""
    edge = images.shape[-1]
    inputs = _resized(images, max(edge, LEAST_PX))
    return _resized(network(inputs)["out"], edge)


def _resized(images: torch.Tensor, edge: int) -> torch.Tensor:
    return interpolate(images, (edge, edge), mode="bilinear", align_corners=False)


def _batches(
    images: Images, masks: Masks, n_batches: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Full batches (b, 3, s, s) in [-1, 1] and (b, s, s) int64; no image is seen again before all others are."""
    n = n_batches * BATCH_SIZE
    order = np.concatenate([rng.permutation(len(images)) for _ in range(-(-n // len(images)))])[:n]
    turns = rng.integers(N_TURNS, size=n)
    for start in range(0, n, BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        inputs, target = (turned(each[order[rows]], turns[rows]) for each in (images, masks))
        yield to_tensor(inputs), torch.from_numpy(target).long()


def _resampled(
    confusions: Confusions, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """The measures (m,) of the whole set, and (m, N_RESAMPLES) of resampled ones, the same sets for the same seed."""
    labelled = confusions[:, confusions.any(axis=(0, 2, 3))].astype(np.float64)
    n_segmenters, n_images, n_classes, _ = labelled.shape
    if n_images < 2:
        raise UsageError(
            f"{n_images} of {confusions.shape[1]} images have a labelled pixel: an interval needs 2 or more"
        )
    shares = np.full(n_images, 1 / n_images)
    n_times = np.random.default_rng(seed).multinomial(n_images, shares, size=N_RESAMPLES).astype(np.float64)
    sums = n_times @ labelled.reshape(n_segmenters, n_images, -1)
    return measures(labelled.sum(1)), measures(sums.reshape(n_segmenters, N_RESAMPLES, n_classes, n_classes))


def _mean(values: NDArray[np.float64], resampled: NDArray[np.float64]) -> Mean:
    """The mean over segmenters of (m,), with its interval over them and over the images of (m, N_RESAMPLES)."""
    value = float(values.mean())
    low, high = (float(end) for end in np.quantile(resampled.mean(axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if len(values) == 1:
        return Mean(value, low, high)
    spread = Mean.of(values).high - value
    return Mean(value, value - math.hypot(value - low, spread), value + math.hypot(high - value, spread))
