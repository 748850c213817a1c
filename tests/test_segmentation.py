"""A segmenter learns what masks say, and its agreement with other masks is counted, resampled and compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from rsprune_dagster.downstream import segmentation
from rsprune_dagster.downstream.restoration import Mean
from rsprune_dagster.downstream.segmentation import (
    BATCH_SIZE,
    MEASURES,
    UNLABELED,
    Segmenter,
    class_weights,
    confusions,
    gains,
    intervals,
    measures,
    train_segmenter,
)
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import silent

COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
NOISE = np.random.default_rng(5).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
N_SEEN = 20 * BATCH_SIZE


def pairs(n: int, seed: int, edge: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Images of two fields and their masks: the colour of a field is that of its class, with noise."""
    rng = np.random.default_rng(seed)
    masks = np.repeat(rng.integers(0, 3, (n, 1, 2)), edge // 2, axis=2).repeat(edge, axis=1).astype(np.uint8)
    noisy = COLOURS[masks] + rng.normal(0, 10, (n, edge, edge, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), masks


def trained(images: np.ndarray, masks: np.ndarray, seed: int = 0, n_images: int = N_SEEN) -> Segmenter:
    return train_segmenter(images, masks, 3, n_images=n_images, seed=seed, device="cpu")


def miou(segmenter: Segmenter, images: np.ndarray, masks: np.ndarray) -> float:
    return float(measures(confusions(segmenter.predicted(images), masks, 3).sum(axis=0))["miou"])


def random_pairs(n: int, k: int = 4, edge: int = 8, right: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of which a share is right, and masks."""
    rng = np.random.default_rng(seed)
    masks = rng.choice(k, (n, edge, edge), p=np.arange(1, k + 1) / np.arange(1, k + 1).sum()).astype(np.uint8)
    share = np.clip(rng.normal(right, 0.2, (n, 1, 1)), 0, 1)
    guesses = rng.integers(0, k, masks.shape)
    return np.where(rng.random(masks.shape) < share, masks, guesses).astype(np.uint8), masks


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Images of 16 px are enlarged to 32: a quarter of the time or less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "LEAST_PX", 32)
        yield


@pytest.fixture(scope="module")
def segmenter(quick: None) -> Segmenter:
    """Trained on masks of which an eighth is unlabelled."""
    images, masks = pairs(200, seed=0)
    masks[:, :, :2] = UNLABELED
    return trained(images, masks)


class Brightness(torch.nn.Module):
    """Class 1 where an image is bright; records the edges of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.edges: list[int] = []

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.edges.append(images.shape[-1])
        bright = images.mean(dim=1)
        return {"out": torch.stack([-bright, bright], dim=1)}


def test_measures_are_those_of_their_formulas() -> None:
    found = measures(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert found == pytest.approx(
        {"miou": (3 / 6 + 4 / 7) / 2, "accuracy": 7 / 10, "mean_accuracy": (3 / 4 + 4 / 6) / 2}
    )


def test_a_class_that_no_mask_shows_has_no_share_of_the_mean_even_if_it_is_predicted() -> None:
    found = measures(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]))
    assert found == pytest.approx({"miou": (3 / 4 + 1) / 2, "accuracy": 7 / 8, "mean_accuracy": (3 / 4 + 1) / 2})


def test_measures_are_those_of_torchmetrics() -> None:
    predicted, masks = random_pairs(20)
    masks[:, :2] = UNLABELED
    found = measures(confusions(predicted, masks, 4).sum(axis=0))
    ours, truth = torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(masks.astype(np.int64))
    options = {"num_classes": 4, "ignore_index": UNLABELED}
    assert found["miou"] == pytest.approx(float(multiclass_jaccard_index(ours, truth, **options)), rel=1e-5)
    for name, average in (("accuracy", "micro"), ("mean_accuracy", "macro")):
        theirs = multiclass_accuracy(ours, truth, average=average, **options)
        assert found[name] == pytest.approx(float(theirs), rel=1e-5), name


def test_confusions_count_each_image_by_truth_then_prediction_without_unlabelled_pixels() -> None:
    masks = np.array([[[0, 1], [1, UNLABELED]], [[UNLABELED, UNLABELED], [2, 2]]], np.uint8)
    predicted = np.array([[[0, 2], [1, 1]], [[0, 1], [0, 2]]], np.uint8)
    found = confusions(predicted, masks, 3)
    assert found.dtype == np.int64
    assert found.tolist() == [[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [1, 0, 1]]]
    assert confusions(predicted[:0], masks[:0], 3).shape == (0, 3, 3)


def test_without_a_labelled_pixel_nothing_is_measured_or_trained() -> None:
    images, masks = pairs(4, seed=0)
    none = np.full_like(masks, UNLABELED)
    with pytest.raises(UsageError, match="0 of 4 images have a labelled pixel"):
        intervals(confusions(masks, none, 3)[None], seed=0)
    with pytest.raises(UsageError, match="no mask has a labelled pixel: a segmenter"):
        trained(images, none)


def test_what_does_not_fit_is_refused() -> None:
    images, masks = pairs(4, seed=0)
    with pytest.raises(UsageError, match=r"\(4, 16, 16, 3\) do not fit masks of shape \(3, 16, 16\)"):
        trained(images, masks[:3])
    with pytest.raises(UsageError, match="class 7 is in a mask, but there are 3"):
        trained(images, np.full_like(masks, 7))
    with pytest.raises(UsageError, match="class 3 is in a mask, but there are 3"):
        confusions(masks, np.full_like(masks, 3), 3)
    with pytest.raises(UsageError, match="class 3 was predicted, but there are 3"):
        confusions(np.full_like(masks, 3), masks, 3)
    with pytest.raises(UsageError, match="256 classes: there must be 2 to 255"):
        confusions(masks, masks, 256)
    other = (masks + 1) % 3
    with pytest.raises(UsageError, match="of different masks"):
        gains(confusions(masks, masks, 3)[None], confusions(masks, other, 3)[None], seed=0)


def test_an_interval_contains_its_value_and_is_narrower_with_more_images() -> None:
    few, many = (intervals(confusions(*random_pairs(n), 4)[None], seed=0) for n in (20, 320))
    assert tuple(few) == MEASURES
    for name in MEASURES:
        assert all(found[name].low < found[name].value < found[name].high for found in (few, many)), name
        ratio = (few[name].high - few[name].low) / (many[name].high - many[name].low)
        assert 2.5 < ratio < 6, name  # four is the root of 16


def test_an_interval_of_the_accuracy_is_as_wide_as_its_standard_error_says() -> None:
    counts = confusions(*random_pairs(200), 4)
    by_image = np.trace(counts, axis1=1, axis2=2) / counts.sum(axis=(1, 2))
    found = intervals(counts[None], seed=0)["accuracy"]
    assert found.value == pytest.approx(by_image.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * by_image.std() / 200**0.5, rel=0.1)


def test_an_interval_depends_on_the_seed_alone_and_not_on_images_without_labels() -> None:
    predicted, masks = random_pairs(30)
    counts = confusions(predicted, masks, 4)
    first = intervals(counts[None], seed=3)
    assert intervals(counts[None], seed=3) == first != intervals(counts[None], seed=4)
    unlabelled = np.concatenate([np.zeros_like(counts), counts])
    assert intervals(unlabelled[None], seed=3) == first


def test_the_interval_of_a_gain_covers_what_two_segmenters_differ_by() -> None:
    """No true gain, but segmenters differ: of twenty intervals of 95 %, about one misses it."""
    rng = np.random.default_rng(0)

    def of_three(n_right: np.ndarray) -> np.ndarray:
        right = np.clip(rng.normal(n_right, 2, (3, 18)), 0, 100).round().astype(np.int64)
        return np.stack([np.stack([right, 100 - right], -1), np.zeros((3, 18, 2), np.int64)], -2)

    def misses() -> bool:
        found = gains(of_three(rng.normal(60, 3, (3, 1))), of_three(rng.normal(60, 3, (3, 1))), seed=0)["accuracy"]
        return not found.low <= 0 <= found.high

    assert 1 <= sum(misses() for _ in range(100)) <= 9


def test_an_interval_is_over_segmenters_too() -> None:
    predicted, masks = random_pairs(200)
    worse = predicted.copy()
    worse[:, ::2] = (masks[:, ::2] + 1) % 4
    one, other = confusions(predicted, masks, 4), confusions(worse, masks, 4)
    alone, alike, both = (intervals(np.stack(each), seed=0)["accuracy"] for each in ([one], [one, one], [one, other]))
    assert asdict(alike) == pytest.approx(asdict(alone))
    ends = intervals(other[None], seed=0)["accuracy"].value, alone.value
    assert both.value == pytest.approx(sum(ends) / 2)
    assert both.low < ends[0] < ends[1] < both.high, "two say little of a third"
    pair = np.stack([one, other])
    assert gains(pair, pair.copy(), seed=0) == dict.fromkeys(MEASURES, Mean(0, 0, 0))
    swapped = gains(pair, pair[::-1], seed=0)["accuracy"]
    assert swapped.value == pytest.approx(0)
    assert swapped.low < ends[0] - ends[1] < ends[1] - ends[0] < swapped.high, "the first less the other, and back"


def test_a_class_of_one_image_is_left_out_where_no_resampled_image_shows_it() -> None:
    counts = np.zeros((40, 2, 2), np.int64)
    counts[:, 0, 0] = 10
    counts[0] = [[0, 0], [10, 0]]  # the only image of the second class, all wrong
    found = intervals(counts[None], seed=0)["mean_accuracy"]
    assert (found.value, found.low, found.high) == (0.5, 0.5, 1.0)


def test_the_gain_of_the_same_predictions_is_zero_without_a_spread() -> None:
    counts = confusions(*random_pairs(50), 4)
    assert gains(counts[None], counts[None].copy(), seed=0) == dict.fromkeys(MEASURES, Mean(0, 0, 0))


def test_a_gain_is_measured_on_the_same_images() -> None:
    predicted, masks = random_pairs(60, right=0.5)
    better = predicted.copy()
    better[:, :2] = masks[:, :2]
    ours, others = confusions(better, masks, 4)[None], confusions(predicted, masks, 4)[None]
    a, b, found = intervals(ours, seed=1), intervals(others, seed=1), gains(ours, others, seed=1)
    for name in MEASURES:
        assert found[name].value == pytest.approx(a[name].value - b[name].value)
        assert 0 < found[name].low < found[name].value < found[name].high
        assert found[name].high - found[name].low < 0.7 * (b[name].high - b[name].low), name
    swapped = gains(others, ours, seed=1)
    assert asdict(swapped["miou"]) == pytest.approx(
        {"value": -found["miou"].value, "low": -found["miou"].high, "high": -found["miou"].low}
    )


def test_a_rare_class_counts_more_in_the_loss_by_the_root_of_its_rarity() -> None:
    masks = np.array([[[0] * 9 + [1] + [UNLABELED] * 6]], np.uint8)
    assert class_weights(masks, 3).tolist() == pytest.approx([1 / 3, 1, 0])


def test_a_segmenter_learns_what_masks_say_and_nothing_from_masks_of_other_images(segmenter: Segmenter) -> None:
    images, masks = pairs(200, seed=0)
    shuffled = trained(images, masks[np.random.default_rng(0).permutation(200)])
    others = pairs(60, seed=1)
    assert miou(segmenter, *others) > 0.9
    assert miou(shuffled, *others) < 0.5


def test_images_without_a_labelled_pixel_are_not_trained_on() -> None:
    images, masks = pairs(20, seed=0)
    black, none = np.zeros_like(images), np.full_like(masks, UNLABELED)
    alone = trained(images, masks, n_images=2 * BATCH_SIZE)
    among = trained(np.concatenate([black, images]), np.concatenate([none, masks]), n_images=2 * BATCH_SIZE)
    assert (alone.predicted(NOISE) == among.predicted(NOISE)).all()


def test_the_same_seed_gives_the_same_predictions_whatever_was_drawn_before() -> None:
    images, masks = pairs(200, seed=0)
    first = trained(images, masks, 0, 2 * BATCH_SIZE).predicted(NOISE)
    torch.rand(1)
    state = torch.get_rng_state()
    again, other = (trained(images, masks, seed, 2 * BATCH_SIZE).predicted(NOISE) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first == again).all() and (first != other).any()


def test_a_prediction_does_not_depend_on_the_other_images(segmenter: Segmenter) -> None:
    images, _ = pairs(70, seed=2)
    whole = segmenter.predicted(images)
    assert whole.shape == (70, 16, 16) and whole.dtype == np.uint8
    alone = np.concatenate([segmenter.predicted(image[None]) for image in images[60:]])
    assert (whole[60:] == alone).mean() > 0.999  # sums of other batches may differ in their last bits
    assert segmenter.predicted(images[:0]).shape == (0, 16, 16)


def test_the_network_sees_small_images_enlarged_and_predicts_at_their_own_edge() -> None:
    network = Brightness()
    for edge in (16, 48):
        images = np.full((1, edge, edge, 3), 20, np.uint8)
        images[:, : edge // 4] = 230
        found = Segmenter(network, 2, "cpu").predicted(images)
        assert (found == (images[..., 0] > 127)).all()
    assert network.edges == [32, 48]


def test_classes_without_weight_are_not_learned() -> None:
    images, masks = pairs(40, seed=0)
    weights = torch.tensor([0.0, 0.0, 1.0])
    found = train_segmenter(images, masks, 3, n_images=N_SEEN, seed=0, device="cpu", weights=weights).predicted(images)
    assert (found[masks == 2] == 2).mean() > 0.9
    assert (found[masks == 0] == 0).mean() < 0.5


def test_the_length_is_counted_in_images_and_rounded_up_to_batches() -> None:
    said: list[tuple[str, int]] = []

    @contextmanager
    def record(label: str, total: int) -> Iterator:
        said.append((label, total))
        with silent(label, total):
            yield lambda n: said.append(("done", n))

    images, masks = pairs(5, seed=0)
    train_segmenter(
        images, masks, 3, n_images=BATCH_SIZE + 1, seed=0, device="cpu", progress=record, label="of real pairs"
    )
    assert said == [("of real pairs", 2 * BATCH_SIZE), ("done", BATCH_SIZE), ("done", BATCH_SIZE)]
