"""Memorization and leakage: planted copies are found, turned as they may be, and clean sets are clean."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.ndimage import gaussian_filter

from rsprune_dagster.evaluation.features import FeatureNetwork, encoder
from rsprune_dagster.evaluation.image_set import N_TURNS, PIXELS, ImageSet, image_set_of, oriented, small
from rsprune_dagster.evaluation.leakage import Leak, leaks, raise_on_leaks, shared_contents
from rsprune_dagster.evaluation.memorization import Memorization, excess, memorization, nearest
from rsprune_dagster.evaluation.protocol import Protocol
from rsprune_dagster.utils.errors import RunError

SIDE = 32
PROTOCOL = Protocol("any", "", "none", "cd", 1, 1)


def tiles(n: int, *, seed: int, side: int = SIDE) -> np.ndarray:
    """Smooth random fields, each another."""
    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.normal(size=(n, side, side, 3)), sigma=(0, 2.5, 2.5, 0), mode="wrap")
    return np.clip(127 + 400 * fields, 0, 255).astype(np.uint8)


def noisy(images: np.ndarray, seed: int, levels: float = 4.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, levels, images.shape)
    return np.clip(images + drawn, 0, 255).astype(np.uint8)


def turned_somehow(images: np.ndarray) -> np.ndarray:
    return np.stack([oriented(image[None], row % N_TURNS)[0] for row, image in enumerate(images)])


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    """Not blind to turns: area averages of the picture as it stands."""
    return FeatureNetwork("averages", "", "none", SIDE, 8 * 8 * 3, lambda images: small(images, 8))


def as_samples(images: np.ndarray, network: FeatureNetwork) -> ImageSet:
    return image_set_of([images], [network], pixel_edge_px=16, turned_in=network)


def measured(samples: ImageSet, held_out: ImageSet, training: ImageSet, space: str) -> Memorization:
    return memorization(
        samples, held_out, training, space=space, protocol=PROTOCOL, quantile=0.01, n_neighbours=10, level=0.95
    )


@pytest.fixture(scope="module")
def training(network: FeatureNetwork) -> ImageSet:
    return image_set_of([tiles(300, seed=1)], [network], pixel_edge_px=16)


@pytest.fixture(scope="module")
def held_out(network: FeatureNetwork) -> ImageSet:
    return as_samples(tiles(400, seed=2), network)


def test_the_eight_turns_are_different_and_closed() -> None:
    image = tiles(1, seed=0)
    turns = {oriented(image, turn).tobytes() for turn in range(N_TURNS)}
    assert len(turns) == N_TURNS
    for turn in range(N_TURNS):
        again = {oriented(np.ascontiguousarray(oriented(image, turn)), other).tobytes() for other in range(N_TURNS)}
        assert again == turns


def test_nearest_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    images, training = rng.normal(size=(8, 1100, 5)), rng.normal(size=(5000, 5))
    found = nearest(images, training, n_neighbours=4)
    for row in range(0, 1100, 20):
        distances = np.linalg.norm(images[:, row, None] - training[None], axis=2)
        turn, index = np.unravel_index(distances.argmin(), distances.shape)
        assert (found.turn[row], found.index[row]) == (turn, index)
        assert found.distance[row] == pytest.approx(distances.min())
        further = np.sort(distances.min(axis=0))[1:5].mean()
        assert found.relative[row] == pytest.approx(distances.min() / further)


def test_among_equally_near_the_first_tile_and_turn_are_taken() -> None:
    found = nearest(np.zeros((8, 2, 3)), np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]), n_neighbours=2)
    assert found.index.tolist() == [1, 1] and found.turn.tolist() == [0, 0]


@pytest.mark.parametrize("space", ["averages", PIXELS])
@pytest.mark.parametrize("levels", [0.0, 4.0])
def test_planted_copies_are_found_however_turned(
    network: FeatureNetwork, training: ImageSet, held_out: ImageSet, space: str, levels: float
) -> None:
    trained_on = tiles(300, seed=1)
    copies = noisy(turned_somehow(trained_on[40:80]), 3, levels)
    samples = as_samples(np.concatenate([tiles(160, seed=4), copies]), network)
    found = measured(samples, held_out, training, space)
    for found_excess in (found.closer, found.singled_out):
        assert found_excess.score.value == pytest.approx(0.2, abs=0.03)
        assert found_excess.score.low > 0.1
        assert found_excess.chance < 1e-4
    planted = sorted(found.pairs[:40], key=lambda pair: pair.sample)
    assert [pair.sample for pair in planted] == list(range(160, 200))
    assert [pair.training for pair in planted] == list(range(40, 80))
    for pair in planted:  # turned as the pair says, the sample is the training tile
        sample = copies[pair.sample - 160][None]
        apart = oriented(sample, pair.turn)[0].astype(int) - trained_on[pair.training]
        assert np.abs(apart).mean() <= levels
        assert pair.distance == 0 if levels == 0 else pair.distance > 0


@pytest.mark.parametrize("space", ["averages", PIXELS])
def test_samples_like_held_out_tiles_are_not_copies(
    network: FeatureNetwork, training: ImageSet, held_out: ImageSet, space: str
) -> None:
    found = measured(as_samples(tiles(400, seed=5), network), held_out, training, space)
    for found_excess in (found.closer, found.singled_out):
        assert found_excess.score.value < 0.03
        assert found_excess.chance > 0.02


def test_the_share_of_clean_samples_is_the_quantile_and_chance_is_uniform() -> None:
    rng = np.random.default_rng(0)
    found = [
        excess("x", rng.exponential(size=200), rng.exponential(size=199), protocol=PROTOCOL, quantile=0.05, level=0.9)
        for _ in range(600)
    ]
    assert np.mean([one.score.value for one in found]) == pytest.approx(0.05, abs=0.004)
    for chance in (0.05, 0.2, 0.5):
        assert np.mean([one.chance <= chance for one in found]) <= chance + 0.03
    assert np.mean([one.chance <= 0.5 for one in found]) > 0.3


@pytest.mark.parametrize(
    ("values", "share", "chance"),
    [([4.5], 1.0, 0.05), ([5.0], 0.0, 1.0), ([1.0, 2.0], 1.0, 5 * 6 / (100 * 101)), ([1.0, 9.0], 0.5, None)],
)
def test_the_threshold_is_an_order_statistic(values: list[float], share: float, chance: float | None) -> None:
    """The fifth smallest of 99 is the threshold at 5 %; of n more, all lie below it by chance in so many cases."""
    normal = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    found = excess("x", np.array(values), normal, protocol=PROTOCOL, quantile=0.05, level=0.9)
    assert found.threshold == 5 and found.score.value == share and not found.score.larger_is_better
    assert chance is None or found.chance == pytest.approx(chance)
    for m, j in ((10, 1), (50, 2)):  # a whole rank, rounded down, 1 at least
        few = excess("x", np.array(values), normal[:m], protocol=PROTOCOL, quantile=0.05, level=0.9)
        assert few.threshold == np.sort(normal[:m])[j - 1]


def test_smooth_samples_are_near_everything_and_not_singled_out(
    network: FeatureNetwork, training: ImageSet, held_out: ImageSet
) -> None:
    smooth = gaussian_filter(tiles(200, seed=6).astype(float), sigma=(0, 6, 6, 0)).astype(np.uint8)
    found = measured(as_samples(smooth, network), held_out, training, PIXELS)
    assert found.closer.score.value > 0.9
    assert found.singled_out.score.value < 0.05


def test_too_few_tiles_are_refused_with_the_number_needed(
    network: FeatureNetwork, training: ImageSet, held_out: ImageSet
) -> None:
    few = as_samples(tiles(98, seed=7), network)
    with pytest.raises(RunError, match="needs 99 held-out tiles or more, but 98 came"):
        measured(few, few, training, PIXELS)
    with pytest.raises(RunError, match="needs 11 training tiles or more, but 10 came"):
        measured(few, held_out, image_set_of([tiles(10, seed=1)], [network], pixel_edge_px=16), PIXELS)


def test_order_and_batches_do_not_matter(network: FeatureNetwork, training: ImageSet, held_out: ImageSet) -> None:
    images = np.concatenate([tiles(60, seed=4), tiles(300, seed=1)[:20]])
    shuffle = np.random.default_rng(0).permutation(len(images))
    whole = as_samples(images, network)
    parts = image_set_of(
        iter([images[shuffle][:7], images[shuffle][7:]]), [network], pixel_edge_px=16, turned_in=network
    )
    assert whole.content == parts.content
    assert np.array_equal(whole.turned["averages"], parts.turned["averages"])
    one, two = (measured(samples, held_out, training, PIXELS) for samples in (whole, parts))
    assert one.singled_out == two.singled_out
    assert {replace(pair, sample=int(shuffle[pair.sample])) for pair in two.pairs} == set(one.pairs)


def test_the_descriptor_does_not_see_turns() -> None:
    made = encoder("descriptor", "", 64, device="cpu")
    seen = as_samples(tiles(6, seed=0, side=64), made)
    assert np.allclose(seen.turned["descriptor"], seen.turned["descriptor"][:1], atol=1e-3)


def identities(images: np.ndarray, prefix: str) -> ImageSet:
    return image_set_of([images], [], pixel_edge_px=4, names=[f"{prefix}-{row}" for row in range(len(images))])


def found_leaks(evaluation: np.ndarray, training: np.ndarray) -> tuple[ImageSet, ImageSet, tuple[Leak, ...]]:
    one, two = identities(evaluation, "test"), identities(training, "train")
    return one, two, leaks(one.identities, two.identities, correlation=0.94)


def test_clean_sets_do_not_leak() -> None:
    assert found_leaks(tiles(200, seed=1), tiles(300, seed=2))[2] == ()
    assert found_leaks(np.full((3, 32, 32, 3), 9, np.uint8), np.full((3, 32, 32, 3), 10, np.uint8))[2] == ()


def test_shared_contents_are_named_in_order() -> None:
    evaluation = pa.table({"tile_id": ["c", "b", "a"], "content_md5": ["2", "9", "1"]})
    training = pa.table({"tile_id": ["x", "y", "z"], "content_md5": ["1", "2", "1"]})
    assert shared_contents(evaluation, training) == ["a", "c"]
    assert shared_contents(evaluation, training.slice(0, 0)) == []


@pytest.mark.parametrize("n_twins", [0, 60])
def test_planted_leaks_are_found_turned_and_noisy_too(n_twins: int) -> None:
    """Also where tiles of the evaluation set are copies of each other, more than the index gives neighbours."""
    training = tiles(300, seed=2)
    near = noisy(turned_somehow(training[10:26]), 1, 2.0)
    twins = np.stack([noisy(training[30:31], seed, 2.0)[0] for seed in range(n_twins)]) if n_twins else near[:0]
    evaluation = np.concatenate([tiles(100, seed=1), training[:10], near, twins])
    one, two, found = found_leaks(evaluation, training)
    pairs = {(int(one.rows[leak.evaluation]), int(two.rows[leak.training]), leak.exact) for leak in found}
    exact = {(100 + row, row, True) for row in range(10)}
    nearly = {(110 + row, 10 + row, False) for row in range(16)} | {(126 + row, 30, False) for row in range(n_twins)}
    assert pairs == exact | nearly


def test_copies_within_the_training_set_do_not_hide_a_leak() -> None:
    training = tiles(200, seed=2)
    training = np.concatenate([training, turned_somehow(training[:40]), noisy(training[:40], 3, 2.0)])
    evaluation = noisy(training[:40], 4, 2.0)
    assert len(found_leaks(evaluation, training)[2]) == 40


def test_a_leak_is_refused_with_counts_and_examples() -> None:
    training = tiles(50, seed=2)
    one, two, found = found_leaks(
        np.concatenate([tiles(20, seed=1), training[:4], noisy(training[4:5], 1, 2.0)]), training
    )
    with pytest.raises(
        RunError, match=r"5 of 25 reference tiles .*\(4 the same pixels, 1 nearly\): test-\d+ is train-\d+"
    ):
        raise_on_leaks(found, one.identities, two.identities, what="reference")
    raise_on_leaks((), one.identities, two.identities, what="reference")


def test_seen_refuses_what_is_not_one_for_each_image() -> None:
    with pytest.raises(RunError, match="2 scenes came for 3 images"):
        image_set_of([tiles(3, seed=0)], [], pixel_edge_px=4, scenes=["a", "b"])
    with pytest.raises(RunError, match="no images came"):
        image_set_of([], [], pixel_edge_px=4)
    with pytest.raises(RunError, match="expected uint8"):
        image_set_of([np.zeros((2, 8, 8, 4), np.uint8)], [], pixel_edge_px=4)
