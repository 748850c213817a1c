"""Laws of the order: a keep fraction is a prefix, quotas are fair, herding keeps both moments, nothing else shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsprune_dagster.pruning import selection
from rsprune_dagster.pruning.baselines import places
from rsprune_dagster.pruning.selection import herding_order, nested_order, rank_tiles

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=8)
EXPONENTS = st.sampled_from([0.0, 0.3, 0.5, 1.0])


def grouped(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Group and place of each item, shuffled."""
    group = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return group, places(group, np.random.default_rng(seed + 1).random(len(group)))


@given(SIZES, EXPONENTS, st.integers(0, 5))
def test_every_tile_has_one_rank_and_groups_keep_their_own_order(sizes: list[int], exponent: float, seed: int) -> None:
    group, place = grouped(sizes, seed)
    rank = nested_order(group, place, exponent=exponent)
    assert sorted(rank) == list(range(len(group)))
    for index in range(len(sizes)):
        own = group == index
        assert np.all(np.diff(place[own][np.argsort(rank[own])]) > 0)


@given(SIZES, st.integers(0, 5))
def test_proportional_quotas_stay_near_their_share(sizes: list[int], seed: int) -> None:
    group, place = grouped(sizes, seed)
    rank = nested_order(group, place, exponent=1.0)
    shares = np.array(sizes)
    for n in range(1, len(group) + 1):
        quota = np.bincount(group[rank < n], minlength=len(sizes))
        assert quota.sum() == n
        per_tile = np.add.outer(quota / shares, np.zeros(len(sizes)))
        # Sainte-Lague: moving a seat from b to a would not help, (q_a + 1/2) / n_a >= (q_b - 1/2) / n_b
        assert np.all(per_tile + 0.5 / shares[:, None] >= per_tile.T - 0.5 / shares[None, :] - 1e-12)


@given(SIZES, st.integers(0, 5))
def test_uniform_quotas_differ_by_one_until_a_group_is_used_up(sizes: list[int], seed: int) -> None:
    group, place = grouped(sizes, seed)
    rank = nested_order(group, place, exponent=0.0)
    for n in range(1, len(group) + 1):
        quota = np.bincount(group[rank < n], minlength=len(sizes))
        unfinished = quota < np.array(sizes)
        assert not unfinished.any() or quota.max() - quota[unfinished].min() <= 1


def test_two_equal_groups_at_half_their_share_are_proportional_within_one() -> None:
    group, place = grouped([60, 30, 10])
    rank = nested_order(group, place, exponent=1.0)
    for n in (10, 25, 50, 99):
        assert np.all(np.abs(np.bincount(group[rank < n], minlength=3) - n * np.array([0.6, 0.3, 0.1])) <= 1)


def test_ties_go_to_the_earlier_row() -> None:
    group = np.array([2, 0, 1])
    assert nested_order(group, np.zeros(3, int), exponent=0.0).tolist() == [0, 1, 2]


def test_inside_ranks_apart() -> None:
    inside = np.array([0, 1, 0, 1, 1])
    rank = nested_order(np.arange(5), np.zeros(5, int), exponent=0.0, inside=inside)
    assert rank.tolist() == [0, 0, 1, 1, 2]


def points(n: int, d: int = 12, seed: int = 0) -> np.ndarray:
    """Skewed vectors, so that mean and covariance are worth keeping."""
    return (np.random.default_rng(seed).exponential(size=(n, d)) * np.linspace(0.5, 2, d)).astype(np.float32)


def moments_gap(chosen: np.ndarray, target: np.ndarray) -> float:
    return float(np.linalg.norm(chosen.mean(0) - target.mean(0)) + np.linalg.norm(np.cov(chosen.T) - np.cov(target.T)))


def test_herding_keeps_mean_and_covariance_better_than_any_of_many_draws() -> None:
    vectors = points(400)
    order = herding_order(vectors, vectors)
    for n in (30, 60, 120):
        draws = [np.random.default_rng(seed).permutation(400)[:n] for seed in range(50)]
        best = min(moments_gap(vectors[draw], vectors) for draw in draws)
        assert moments_gap(vectors[order[:n]], vectors) < best


def discrepancy(gram: np.ndarray, n: int, chosen: list[int]) -> float:
    """The squared maximum mean discrepancy of `chosen` tiles to the target; the first `n` rows of `gram` are tiles."""
    cross = gram[chosen, n:].mean()
    return float(gram[np.ix_(chosen, chosen)].mean() - 2 * cross + gram[n:, n:].mean())


@pytest.mark.parametrize(("n_blocks", "own"), [(1, False), (1, True), (3, False), (3, True)])
def test_each_tile_is_the_one_of_its_block_that_lowers_the_discrepancy_most(
    n_blocks: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quadratic kernel by its definition, about the target's mean and in units of its mean squared distance."""
    monkeypatch.setattr(selection, "BLOCK_TILES", 16)
    monkeypatch.setattr(selection, "VISITS", (2, 8, 16))
    vectors = points(16 * n_blocks, d=3)
    target = vectors if own else points(25, d=3, seed=5) + 0.5
    gaps = np.concatenate([vectors, target]).astype(np.float64) - target.mean(axis=0, dtype=np.float64)
    spread = np.mean(np.sum(gaps[len(vectors) :] ** 2, axis=1))
    gram = (1 + gaps @ gaps.T / spread) ** 2
    order = selection.cluster_order(lambda rows: vectors[rows], np.arange(len(vectors)), None if own else target)
    for step, row in enumerate(order.tolist()):
        before = order[:step].tolist()
        rivals = [other for other in range(len(vectors)) if other // 16 == row // 16 and other not in before]
        found = {other: discrepancy(gram, len(vectors), [*before, other]) for other in rivals}
        assert found[row] <= min(found.values()) + 5e-5


def test_a_large_cluster_gives_an_eighth_of_a_thousand_tiles_of_each_block_and_then_doubles_them() -> None:
    vectors = points(5000, d=2)  # three blocks
    order = selection.cluster_order(lambda rows: vectors[rows], np.arange(5000), None)
    block = np.searchsorted([1667, 3334], order, side="right")
    for n in (128, 256, 512, 1024):
        assert np.bincount(block[: 3 * n]).tolist() == [n] * 3
        assert block[3 * n - 1] == 2 and block[3 * n] == 0


def test_the_centre_of_a_cluster_without_a_target_is_the_mean_of_even_samples() -> None:
    vectors = np.arange(5000, dtype=np.float32)[:, None] ** 2
    aims = selection._own_aims(lambda rows: vectors[rows], np.arange(5000), [np.arange(5000)])
    assert aims.centre == pytest.approx(vectors.mean(axis=0, dtype=np.float64), rel=2e-3)
    assert aims.n == 5000


def test_herding_goes_toward_the_target_not_toward_the_pool() -> None:
    near, far = points(100, seed=1), points(100, seed=2) + 9
    order = herding_order(np.concatenate([near, far]), points(50, seed=3) + 9)
    assert np.all(order[:50] >= 100)


def test_herding_does_not_depend_on_the_place_or_the_unit_of_the_vectors() -> None:
    vectors = points(200)
    target = points(80, seed=4)
    assert np.array_equal(herding_order(vectors * 4, target * 4), herding_order(vectors, target))
    moved = herding_order(vectors + 2, target + 2)
    assert np.mean(moved[:50] == herding_order(vectors, target)[:50]) > 0.9


@pytest.mark.parametrize("vectors", [np.zeros((5, 3), np.float32), np.ones((1, 3), np.float32)])
def test_herding_of_equal_or_single_tiles_is_content_order(vectors: np.ndarray) -> None:
    assert herding_order(vectors, vectors).tolist() == list(range(len(vectors)))


def ranked(vectors: np.ndarray, scene: np.ndarray, cluster: np.ndarray, **changed: object) -> np.ndarray:
    options: dict[str, object] = {"scene_exponent": 0.0, "cluster_exponent": 0.5} | changed
    return rank_tiles(lambda rows: vectors[rows], scene, cluster, **options)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(0, 3), EXPONENTS)
def test_rank_is_a_permutation_and_workers_do_not_show(n: int, seed: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    vectors, scene, cluster = points(n, seed=seed), rng.integers(0, 3, n) - 1, rng.integers(0, 4, n) * 7
    order = ranked(vectors, scene, cluster, scene_exponent=exponent)
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, ranked(vectors, scene, cluster, scene_exponent=exponent, workers=3))


def test_scenes_are_even_and_clusters_nest_inside_them() -> None:
    scene = np.repeat([0, 1], [900, 100])
    cluster = np.concatenate([np.repeat([0, 1, 2], 300), np.repeat([0, 5], 50)])
    order = ranked(points(1000), scene, cluster, cluster_exponent=0.0)
    for n in (60, 120):
        assert np.bincount(scene[order[:n]]).tolist() == [n // 2, n // 2]
        assert np.bincount(cluster[order[:n]][scene[order[:n]] == 0]).tolist() == [n // 6] * 3


def test_blocks_take_turns_and_see_what_the_others_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BLOCK_TILES", 64)
    monkeypatch.setattr(selection, "CENTRE_TILES", 64)
    monkeypatch.setattr(selection, "HELD_TILES", 64)
    monkeypatch.setattr(selection, "VISITS", (2, 4, 8, 16, 32, 64))
    n_read: list[int] = []
    vectors, one = points(512), np.zeros(512, int)  # eight blocks of 64

    def read(rows: np.ndarray) -> np.ndarray:
        n_read.append(len(rows))
        assert np.all(np.diff(rows) > 0)
        return vectors[rows]

    order = rank_tiles(read, one, one, scene_exponent=1.0, cluster_exponent=1.0)
    assert sorted(order) == list(range(512)) and max(n_read) <= 64
    for n in (16, 32, 64, 128):
        assert np.bincount(order[:n] // 64, minlength=8).tolist() == [n // 8] * 8
    for n in (40, 80, 120):
        draws = [np.random.default_rng(seed).permutation(512)[:n] for seed in range(30)]
        assert moments_gap(vectors[order[:n]], vectors) < min(moments_gap(vectors[draw], vectors) for draw in draws)


def test_the_reference_of_a_scene_is_what_its_tiles_come_to_resemble() -> None:
    vectors = np.concatenate([points(100, seed=1), points(100, seed=2) + 9])
    asked: list[tuple[int, int]] = []

    def target(scene: int, cluster: int) -> np.ndarray:
        asked.append((scene, cluster))
        return points(50, seed=3) + 9

    order = ranked(vectors, np.full(200, 4), np.full(200, 2), target=target)
    assert asked == [(4, 2)] and np.all(order[:50] >= 100)


def test_no_tiles_give_no_order() -> None:
    assert len(ranked(points(0), np.zeros(0, int), np.zeros(0, int))) == 0


def test_products_among_a_block_are_symmetric_and_right() -> None:
    block = points(2 * selection.PANEL_TILES + 7)
    products = selection._products(block)
    np.testing.assert_array_equal(products, products.T)
    np.testing.assert_allclose(products, block.astype(np.float64) @ block.T.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_holding_a_cluster_in_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, one = points(5000), np.zeros(5000, int)
    held = ranked(vectors, one, one)
    monkeypatch.setattr(selection, "HELD_TILES", 0)
    assert np.array_equal(held, ranked(vectors, one, one))


def test_a_small_group_claims_less_and_half_as_much_at_the_half_size() -> None:
    group = np.repeat([0, 1], [30, 30_000])
    place = np.concatenate([np.arange(30), np.arange(30_000)])
    rank = nested_order(group, place, exponent=0.0, half_size=30)
    first = group[np.argsort(rank)][:30]
    assert np.count_nonzero(first == 0) == 10  # claims of 1/2 and 0.999: one in three
    halves = np.repeat([0, 1], [30, 90])
    rank = nested_order(halves, np.concatenate([np.arange(30), np.arange(90)]), exponent=0.0, half_size=30)
    assert np.count_nonzero(halves[np.argsort(rank)][:50] == 0) == 20  # claims of 1/2 and 3/4: two in five
    even = nested_order(group, place, exponent=0.0)
    assert np.count_nonzero(group[np.argsort(even)][:30] == 0) == 15
