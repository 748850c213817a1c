"""How good the kept 15 % is: the method and every baseline, in features that pruning did not see.

    python -m benchmarks.selection_quality [--data ../shared/data] [--cache DIR] [--seeds 5] [--first-seed 300]

`rsprune` is `pruning/method.select` with the numbers of params.yaml. Its choices were made looking at these pools under
seeds 0 to 19 and 100 to 114; seeds from 300 were not looked at before the table was made, but the images are the same.
Rows of a pool come in a random order, as content hashes order them, never class by class.

Pools are cut from labelled sets; the method never sees their labels. Prune on one network's vectors with the
descriptor's beside them, as the product does, score on the other network's features alone, and swap. Settings:

* same kind: pool eurosat/labelled.tar (7,700 tiles, 200 to 1,700 a class), reference 100 tiles a class of
  eurosat/reference, test the other 100 (1,000 tiles); another split for each seed.
* foreign, UC Merced on EuroSAT: the same pool and test, all of UC Merced as the reference.
* foreign, EuroSAT on UC Merced: for each seed a pool of UC Merced with class sizes falling geometrically from 70 to 6,
  test 30 tiles a class apart from it, all of eurosat/reference as the reference.
* no reference: the first pool and test.

Fréchet distance: means and covariances of raw pooled features, of the kept and of the balanced test tiles. Probe:
logistic regression (C = 0.01) on standardised features of the kept tiles, macro accuracy on the test. Near-duplicates:
kept tiles with an earlier kept one at a cosine above 0.95 in centred scoring features. `random` and `label_balanced`
are means of 3 draws a seed. "Of the way": by how much a method is nearer than `random`, over the mean gap from
`random` to `label_balanced`, in Fréchet distance. Intervals: 95 %, Student's t over seeds; in the aims over
differences by seed. Seeds redraw the reference, the test and each method's chance (on UC Merced the pool too), not the
EuroSAT pool. Per pool, baselines are run once: they do not see the reference. Peers that cluster have 300 clusters;
k-means also 10, 30 and 100. No number was chosen on other seeds: the best row is its best case.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.labelled_sets import DESCRIPTOR, ENCODERS, LabelledSet, Sets, load_sets
from benchmarks.machine import heading
from rsprune_dagster.config.params import load
from rsprune_dagster.pruning.baselines import BASELINES, Candidates, highest_earlier_cosine
from rsprune_dagster.pruning.encoders.encoder import unit
from rsprune_dagster.pruning.encoders.tile_encoder import beside
from rsprune_dagster.pruning.numerics import one_thread
from rsprune_dagster.pruning.pipeline import select

KEEP_FRACTION = 0.15
NEAR_DUPLICATE_COSINE = 0.95
PROBE_C = 0.01
PARAMS = Path(__file__).parents[1] / "params.yaml"
RESULTS = Path(__file__).parent / "results" / "selection_quality.md"
N_DRAWS = 3
OTHER_K = (10, 30, 100)
"""Numbers of clusters that k-means with equal quotas is tried with beside its own, 300: it leans on them."""
PEERS: dict[str, tuple[str, int]] = {
    **{name: (name, Candidates.n_clusters) for name in BASELINES},
    **{f"kmeans_uniform, k = {k}": ("kmeans_uniform", k) for k in OTHER_K},
}
"""Baselines by the name of their row, with their number of clusters."""
COLUMNS = ("Scene entropy", "Rarest scene", "Probe", "Fréchet", "Of the way", "Near-duplicates")


@dataclass(frozen=True)
class Case:
    """A pool to prune, the reference the method may see, and a balanced test set."""

    pool: LabelledSet
    reference: LabelledSet | None
    test: LabelledSet
    seed: int

    @property
    def n_kept(self) -> int:
        """Tiles to keep."""
        return round(KEEP_FRACTION * len(self.pool.labels))


def split_eurosat(sets: Sets, seed: int) -> tuple[LabelledSet, LabelledSet]:
    """100 reference and 100 test tiles of each class."""
    whole = sets["eurosat_reference"]
    rng = np.random.default_rng([seed, 1])
    shuffled = [rng.permutation(np.flatnonzero(whole.labels == label)) for label in np.unique(whole.labels)]
    return (
        whole.rows(np.sort(np.concatenate([rows[:100] for rows in shuffled]))),
        whole.rows(np.sort(np.concatenate([rows[100:] for rows in shuffled]))),
    )


def same_kind(sets: Sets, seed: int) -> Case:
    """EuroSAT reference on a EuroSAT pool."""
    reference, test = split_eurosat(sets, seed)
    return Case(sets["eurosat_labelled"], reference, test, seed)


def merced_on_eurosat(sets: Sets, seed: int) -> Case:
    """UC Merced reference on a EuroSAT pool."""
    return Case(sets["eurosat_labelled"], sets["ucmerced"], split_eurosat(sets, seed)[1], seed)


def eurosat_on_merced(sets: Sets, seed: int) -> Case:
    """EuroSAT reference on an imbalanced UC Merced pool."""
    whole, rng = sets["ucmerced"], np.random.default_rng([seed, 2])
    classes = np.unique(whole.labels)
    sizes = rng.permutation(np.round(np.geomspace(70, 6, len(classes))).astype(int))
    shuffled = [rng.permutation(np.flatnonzero(whole.labels == label)) for label in classes]
    test = np.sort(np.concatenate([rows[:30] for rows in shuffled]))
    pool = np.sort(np.concatenate([rows[30 : 30 + size] for rows, size in zip(shuffled, sizes, strict=True)]))
    return Case(whole.rows(pool), sets["eurosat_reference"], whole.rows(test), seed)


def no_reference(sets: Sets, seed: int) -> Case:
    """A EuroSAT pool alone."""
    return Case(sets["eurosat_labelled"], None, split_eurosat(sets, seed)[1], seed)


SAME_KIND = "rsprune, EuroSAT reference"
POOLS: dict[str, dict[str, Callable[[Sets, int], Case]]] = {
    "EuroSAT pool": {
        SAME_KIND: same_kind,
        "rsprune, UC Merced reference (foreign)": merced_on_eurosat,
        "rsprune, no reference": no_reference,
    },
    "UC Merced pool": {"rsprune, EuroSAT reference (foreign)": eurosat_on_merced},
}
"""For each pool, the references that the method is given; a seed's pool and test are the same for all of them."""


def in_content_order(case: Case) -> Case:
    """The pool shuffled as content hashes would: sets come class by class, and no method may profit from that."""
    return Case(
        case.pool.rows(np.random.default_rng([case.seed, 3]).permutation(len(case.pool.labels))),
        case.reference,
        case.test,
        case.seed,
    )


def rsprune(case: Case, encoder: str) -> np.ndarray:
    """The product's own path, with the numbers of params.yaml."""
    params = load(PARAMS)
    weight = params.embedding.descriptor_weight
    selection = select(
        vectors(case.pool, encoder, weight),
        vectors(case.reference, encoder, weight) if case.reference else None,
        case.reference.labels if case.reference else None,
        params.clustering,
        params.selection,
        seed=case.seed,
    )
    return selection.order[: case.n_kept]


def baseline(name: str, case: Case, encoder: str) -> np.ndarray:
    """A peer, on the same vectors."""
    strategy, n_clusters = PEERS[name]
    seen = vectors(case.pool, encoder, load(PARAMS).embedding.descriptor_weight)
    candidates = Candidates(
        read=lambda rows: seen[rows],
        n_tiles=len(seen),
        n_kept=case.n_kept,
        seed=case.seed,
        labels=case.pool.labels,
        n_clusters=n_clusters,
    )
    return np.asarray(BASELINES[strategy](candidates))[: case.n_kept]


def vectors(tiles: LabelledSet, encoder: str, descriptor_weight: float) -> np.ndarray:
    """The product's unit vectors, float32: the network's with the descriptor's beside it."""
    return beside(unit(tiles.features[encoder]), unit(tiles.features[DESCRIPTOR]), descriptor_weight)


def scores(case: Case, kept: np.ndarray, encoder: str) -> dict[str, float]:
    """All measures of the rows `kept`, in the features of `encoder`."""
    labels, features = case.pool.labels, case.pool.features[encoder].astype(np.float64)
    test = case.test.features[encoder].astype(np.float64)
    return {
        "Scene entropy": scene_entropy(labels[kept], len(np.unique(labels))),
        "Rarest scene": float(np.sum(labels[kept] == rarest(labels))),
        "Probe": probe(features[kept], labels[kept], test, case.test.labels),
        "Fréchet": frechet(features[kept], test),
        "Near-duplicates": near_duplicates(features[kept] - features.mean(axis=0)),
    }


def scene_entropy(labels: np.ndarray, n_scenes: int) -> float:
    """Entropy of the scene shares over its greatest value: 1 is balanced."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum() / np.log(n_scenes))


def rarest(labels: np.ndarray) -> str:
    """The label with the fewest tiles."""
    names, counts = np.unique(labels, return_counts=True)
    return str(names[counts.argmin()])


def frechet(ours: np.ndarray, theirs: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2); the last trace is the nuclear norm of R1 R2^T, with S = R^T R."""
    (mean_a, root_a), (mean_b, root_b) = root_moments(ours), root_moments(theirs)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return float(np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross)


def root_moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (d,), and an R (min(n, d), d) for which R^T R is the covariance."""
    mean = features.mean(axis=0)
    return mean, np.asarray(np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r"))


def probe(features: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Macro accuracy of a linear classifier trained on the kept tiles."""
    from sklearn.linear_model import LogisticRegression

    centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    classifier = LogisticRegression(C=PROBE_C, max_iter=200).fit((features - centre) / spread, labels)
    right = classifier.predict((test - centre) / spread) == test_labels
    return float(np.mean([right[test_labels == label].mean() for label in np.unique(test_labels)]))


def near_duplicates(features: np.ndarray) -> float:
    """Share of tiles with an earlier one above the cosine."""
    highest = highest_earlier_cosine(features, np.arange(len(features)))
    return float(np.mean(highest > NEAR_DUPLICATE_COSINE))


Found = dict[str, list[dict[str, float]]]
"""Method to its scores, a dict for each seed."""


def measure(sets: Sets, pool: str, pruned_on: str, seeds: range) -> Found:
    """Scores of every method for every seed."""
    scored_on = next(name for name in ENCODERS if name != pruned_on)
    found: Found = {name: [] for name in (*POOLS[pool], *PEERS)}
    for seed in seeds:
        cases = {name: in_content_order(make(sets, seed)) for name, make in POOLS[pool].items()}
        for name, case in cases.items():
            found[name].append(scores(case, rsprune(case, pruned_on), scored_on))
        for name in PEERS:
            found[name].append(mean_scores(name, next(iter(cases.values())), pruned_on, scored_on))
    return with_of_the_way(found)


def mean_scores(name: str, case: Case, pruned_on: str, scored_on: str) -> dict[str, float]:
    """Of a baseline; of N_DRAWS draws where it is a mere draw."""
    n_draws = N_DRAWS if name in ("random", "label_balanced") else 1
    draws = [replace(case, seed=case.seed + 1000 * number) for number in range(n_draws)]
    each = [scores(draw, baseline(name, draw, pruned_on), scored_on) for draw in draws]
    return {column: float(np.mean([values[column] for values in each])) for column in each[0]}


def with_of_the_way(found: Found) -> Found:
    """The scores, and how far each method gets from `random` to `label_balanced`."""
    start = [values["Fréchet"] for values in found["random"]]
    gap = np.mean(start) - np.mean([values["Fréchet"] for values in found["label_balanced"]])
    for results in found.values():
        for values, worst in zip(results, start, strict=True):
            values["Of the way"] = float((worst - values["Fréchet"]) / gap)
    return found


def table(found: Found) -> Iterator[str]:
    """Markdown rows: a method each, mean ± half the interval."""
    yield "| | " + " | ".join(COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name, results in found.items():
        yield f"| {name} | " + " | ".join(interval([row[column] for row in results]) for column in COLUMNS) + " |"


def aims(found: Found) -> Iterator[str]:
    """A line for each aim: the difference by seed, and whether it is met in the mean and beyond the interval."""
    for name in found:
        if name in PEERS:
            continue
        if name == SAME_KIND:
            yield aim(f"{name}: Fréchet below label_balanced", less(found, "label_balanced", name, "Fréchet"))
            yield aim(f"{name}: probe above label_balanced", less(found, name, "label_balanced", "Probe"))
        elif "foreign" in name:
            yield aim(f"{name}: half of the way or more (less 0.5)", [v["Of the way"] - 0.5 for v in found[name]])
        yield aim(f"{name}: Fréchet below random", less(found, "random", name, "Fréchet"))
        yield aim(f"{name}: probe above random", less(found, name, "random", "Probe"))
        yield aim(f"{name}: scene entropy above random", less(found, name, "random", "Scene entropy"))


def less(found: Found, high: str, low: str, column: str) -> list[float]:
    """By seed, how much the method that should be higher is."""
    return [one[column] - other[column] for one, other in zip(found[high], found[low], strict=True)]


def aim(what: str, margins: list[float]) -> str:
    """The sentence; margins above 0 are wanted."""
    mean, half = np.mean(margins), half_interval(margins)
    verdict = "met" if mean > half else "met in the mean only" if mean > 0 else "not met"
    if mean < -half:
        verdict = "not met, beyond the interval"
    return f"- {what}: **{verdict}** (margin {interval(margins)})"


def interval(values: list[float]) -> str:
    """Mean ± half of the 95 % interval, to three digits or so."""
    digits = 3 if abs(np.mean(values)) < 3 else 1
    if len(values) < 2:
        return f"{np.mean(values):.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {half_interval(values):.{digits}f}"


def half_interval(values: list[float]) -> float:
    """Half of the 95 % interval of the mean; endless for one value."""
    if len(values) < 2:
        return float("inf")
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def section(sets: Sets, seeds: range, job: tuple[str, str]) -> list[str]:
    """The lines on one pool and one encoder."""
    pool, encoder = job
    with one_thread():
        found = measure(sets, pool, encoder, seeds)
    return [f"## {pool}; pruned on {encoder}", "", *table(found), "", *aims(found), ""]


def protocol() -> str:
    """What the module's docstring says below its command."""
    return (__doc__ or "").split("\n\n", 2)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path(".state/selection_quality"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    sets = load_sets(options.data, options.cache)
    lines = ["# Quality of the selection", "", heading("benchmarks.selection_quality"), "", protocol()]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [(pool, encoder) for pool in reversed(POOLS) for encoder in ENCODERS]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for part in pool.map(partial(section, sets, seeds), jobs):
            print("\n".join(part), flush=True)
            lines += part
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
