"""How good the kept 15 % is: the method and every baseline, in features that pruning did not see.

    python -m benchmarks.selection_quality [--data ../shared/data] [--cache DIR] [--seeds 5]

Pools are cut from labelled sets; the method never sees their labels. Prune on one encoder's unit vectors, score on the
other's features, and swap. Settings:

* same kind: pool eurosat/labelled.tar (7,700 tiles, 200 to 1,700 a class), reference 100 tiles a class of
  eurosat/reference, test the other 100 (1,000 tiles); another split for each seed.
* foreign, UC Merced on EuroSAT: the same pool and test, all of UC Merced as the reference.
* foreign, EuroSAT on UC Merced: for each seed a pool of UC Merced with class sizes falling geometrically from 70 to 6,
  test 30 tiles a class apart from it, all of eurosat/reference as the reference.
* no reference: the first pool and test.

Fréchet distance: means and covariances of raw pooled features, of the kept and of the balanced test tiles. Probe:
logistic regression (C = 0.01) on standardised features of the kept tiles, macro accuracy on the test. Near-duplicates:
kept tiles with an earlier kept one at a cosine above 0.95 in centred scoring features. Intervals: 95 %, Student's t.
"""

import argparse
import io
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.machine import heading
from rsprune_dagster.params import load
from rsprune_dagster.pruning.baselines import BASELINES, Candidates, highest_earlier_cosine
from rsprune_dagster.pruning.method import select
from rsprune_dagster.pruning.numerics import one_thread

KEEP_FRACTION = 0.15
NEAR_DUPLICATE_COSINE = 0.95
PROBE_C = 0.01
ENCODERS = {
    "mobilenet_v2": "weights/mobilenet_v2_tfqat_rot180-4ec30254.pth",
    "squeezenet1_0": "weights/squeezenet1_0_deepcompression-a44e326f.pth",
}
IMAGE_SIZE_PX = {"eurosat_labelled": 128, "eurosat_reference": 128, "ucmerced": 224}
PARAMS = Path(__file__).parents[1] / "params.yaml"
RESULTS = Path(__file__).parent / "results" / "selection_quality.md"
COLUMNS = ("Scene entropy", "Rarest scene", "Probe", "Fréchet", "Of the way", "Near-duplicates")


@dataclass(frozen=True)
class LabelledSet:
    """A labelled set in every encoder's features."""

    features: dict[str, np.ndarray]  # encoder to (n, d)
    labels: np.ndarray  # (n,)

    def rows(self, rows: np.ndarray) -> "LabelledSet":
        """The set of some rows."""
        return LabelledSet({name: values[rows] for name, values in self.features.items()}, self.labels[rows])


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


Sets = dict[str, LabelledSet]


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


SETTINGS: dict[str, Callable[[Sets, int], Case]] = {
    "Same kind: EuroSAT reference, EuroSAT pool": same_kind,
    "Foreign: UC Merced reference, EuroSAT pool": merced_on_eurosat,
    "Foreign: EuroSAT reference, UC Merced pool": eurosat_on_merced,
    "No reference: EuroSAT pool": no_reference,
}


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
    selection = select(
        unit(case.pool.features[encoder]),
        unit(case.reference.features[encoder]) if case.reference else None,
        case.reference.labels if case.reference else None,
        n_clusters=params.clustering.n_clusters,
        candidates=params.clustering.candidates,
        sample_per_scene=params.clustering.sample_per_scene,
        n_iterations=params.clustering.n_iterations,
        scene_exponent=params.selection.scene_exponent,
        cluster_exponent=params.selection.cluster_exponent,
        seed=case.seed,
    )
    return selection.order[: case.n_kept]


def baseline(name: str, case: Case, encoder: str) -> np.ndarray:
    """A peer, on the same vectors."""
    vectors = unit(case.pool.features[encoder])
    candidates = Candidates(
        read=lambda rows: vectors[rows],
        n_tiles=len(vectors),
        n_kept=case.n_kept,
        seed=case.seed,
        labels=case.pool.labels,
    )
    return np.asarray(BASELINES[name](candidates))[: case.n_kept]


METHODS: dict[str, Callable[[Case, str], np.ndarray]] = {
    "rsprune": rsprune,
    **{name: partial(baseline, name) for name in BASELINES},
}


def unit(features: np.ndarray) -> np.ndarray:
    """Unit vectors, float32."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), np.float32)


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


def measure(sets: Sets, setting: str, pruned_on: str, n_seeds: int) -> dict[str, list[dict[str, float]]]:
    """Scores of every method for every seed; "Of the way": from the random to the label-balanced draw, in Fréchet."""
    scored_on = next(name for name in ENCODERS if name != pruned_on)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(n_seeds):
        case = in_content_order(SETTINGS[setting](sets, seed))
        for name, method in METHODS.items():
            found[name].append(scores(case, method(case, pruned_on), scored_on))
        worst, best = found["random"][-1]["Fréchet"], found["label_balanced"][-1]["Fréchet"]
        for results in found.values():
            results[-1]["Of the way"] = (worst - results[-1]["Fréchet"]) / (worst - best)
    return found


def table(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Markdown rows: a method each, mean ± half the interval."""
    yield "| | " + " | ".join(COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for name, results in found.items():
        yield f"| {name} | " + " | ".join(interval([row[column] for row in results]) for column in COLUMNS) + " |"


def interval(values: list[float]) -> str:
    """Mean ± half of the 95 % interval, to three digits or so."""
    digits = 3 if abs(np.mean(values)) < 3 else 1
    if len(values) < 2:
        return f"{np.mean(values):.{digits}f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def section(sets: Sets, n_seeds: int, job: tuple[str, str]) -> list[str]:
    """The lines on one setting and one encoder."""
    setting, encoder = job
    with one_thread():
        return [f"## {setting}; pruned on {encoder}", "", *table(measure(sets, setting, encoder, n_seeds)), ""]


def load_sets(data: Path, cache: Path) -> Sets:
    """Every set in every encoder's features; what `cache` lacks is computed from `data` and put there."""
    cache.mkdir(parents=True, exist_ok=True)
    sets = {}
    for name in IMAGE_SIZE_PX:
        features = {}
        for encoder in ENCODERS:
            file = cache / f"{name}.{encoder}.npz"
            if not file.exists():
                features_found, labels_found = extract(data, name, encoder)
                np.savez(file, features=features_found, labels=labels_found)
            with np.load(file) as saved:
                features[encoder], labels = saved["features"], saved["labels"]
        sets[name] = LabelledSet(features, labels)
    return sets


def extract(data: Path, name: str, encoder: str) -> tuple[np.ndarray, np.ndarray]:
    """Raw pooled features and labels of a set, by the product's encoder."""
    from rsprune_dagster.pruning.encoders import load_encoder, resized

    size = IMAGE_SIZE_PX[name]
    network = load_encoder(encoder, weights=str(data / ENCODERS[encoder]), image_size_px=size)
    features, labels, tiles = [], [], []
    for label, tile in [*images(data, name), ("", None)]:
        if tile is not None:
            tiles.append(tile)
            labels.append(label)
        if len(tiles) == 64 or (tile is None and tiles):
            features.append(network._features(resized(tiles, size)))
            tiles = []
    return np.concatenate(features), np.array(labels)


def images(data: Path, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Label and RGB pixels of every image of a set, by path."""
    if name == "eurosat_labelled":
        with tarfile.open(data / "eurosat" / "labelled.tar") as tar:
            for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
                opened = tar.extractfile(member)
                assert opened is not None
                yield Path(member.name).parent.name, pixels(opened.read())
        return
    for file in sorted((data / {"eurosat_reference": "eurosat/reference"}.get(name, name)).glob("*/*.jpg")):
        yield file.parent.name, pixels(file.read_bytes())


def pixels(encoded: bytes) -> np.ndarray:
    """RGB, uint8 (h, w, 3)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/selection_quality"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    sets = load_sets(options.data, options.cache)
    lines = ["# Quality of the selection", "", heading("benchmarks.selection_quality"), "", __doc__ or ""]
    jobs = [(setting, encoder) for setting in SETTINGS for encoder in ENCODERS]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for part in pool.map(partial(section, sets, options.seeds), jobs):
            print("\n".join(part), flush=True)
            lines += part
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
