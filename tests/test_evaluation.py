"""The whole evaluation: what it measures, what it leaves out and why, and real imagery."""

import io
import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsprune_dagster.evaluation.evaluate import Evaluation, Settings, evaluate
from rsprune_dagster.evaluation.features import FeatureNetwork, encoder
from rsprune_dagster.evaluation.fidelity import kernel_distance, kernel_scale
from rsprune_dagster.evaluation.image_set import PIXELS, ImageSet, image_set_of, oriented, small
from rsprune_dagster.evaluation.intervals import Resampling
from rsprune_dagster.evaluation.protocol import better
from rsprune_dagster.evaluation.scene_scores import MEAN
from rsprune_dagster.utils.errors import RunError

SETTINGS = Settings(
    resampling=Resampling(level=0.95, n_resamples=20, seed=0),
    n_neighbours=5,
    min_per_scene=20,
    held_out_quantile=0.01,
    copy_neighbours=20,
    near_duplicate_correlation=0.94,
    on_leak="refuse",
)
NETWORK = FeatureNetwork("averages", "ab" * 32, "none", 16, 48, lambda images: small(images, 4))
SCENES = ("field", "town")
SQUEEZENET = "squeezenet1_0_deepcompression-a44e326f.pth"


def tiles(n: int, *, seed: int) -> tuple[np.ndarray, list[str]]:
    """Blocks of colour: dull ones for fields, bright ones for towns."""
    rng = np.random.default_rng(seed)
    labels = [SCENES[row % 2] for row in range(n)]
    levels = rng.integers(0, 120, (n, 8, 8, 3)) + np.where(np.array(labels) == "town", 120, 0)[:, None, None, None]
    return np.kron(levels, np.ones((1, 4, 4, 1))).astype(np.uint8), labels


def samples(n: int, *, seed: int, images: np.ndarray | None = None) -> ImageSet:
    made, labels = tiles(n, seed=seed)
    images = made if images is None else images
    return image_set_of([images], [NETWORK], pixel_edge_px=8, turned_in=NETWORK, scenes=labels)


@pytest.fixture(scope="module")
def reference() -> ImageSet:
    images, labels = tiles(200, seed=1)
    return image_set_of([images], [NETWORK], pixel_edge_px=8, scenes=labels)


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    return image_set_of([tiles(150, seed=2)[0]], [], pixel_edge_px=8, turned_in=NETWORK)


@pytest.fixture(scope="module")
def training() -> ImageSet:
    return image_set_of([tiles(120, seed=3)[0]], [NETWORK], pixel_edge_px=8)


@pytest.fixture(scope="module")
def complete(reference: ImageSet, training: ImageSet, held_out: ImageSet) -> Evaluation:
    return evaluate(samples(160, seed=4), reference, training, held_out, [NETWORK], settings=SETTINGS)


def test_everything_is_measured_and_flat_and_json(complete: Evaluation) -> None:
    assert not complete.left_out and not complete.leak_sentences
    metrics = complete.metrics()
    names = {score.name for score in complete.scores}
    assert names >= {
        "frechet_averages",
        "kernel_averages",
        f"kernel_averages/{MEAN}",
        "kernel_averages/town",
        "precision_averages",
        "coverage_averages",
        "recognised_averages",
        "recognised_averages/field",
        "closer_pixels",
        "singled_out_averages",
    }
    assert not any(name.startswith(("fid", "kid")) for name in names)
    assert len(names) == len(complete.scores)
    for name in names:
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert metrics["n_leaked_reference"] == metrics["n_leaked_held_out"] == 0
    assert 0 <= metrics["closer_pixels_chance"] <= 1
    assert all(math.isfinite(value) for value in metrics.values())
    told = json.loads(json.dumps(complete.as_json(), allow_nan=False))
    assert told["metrics"] == metrics
    assert told["protocols"]["frechet_averages"]["protocol"]["n_generated"] == 160
    assert told["protocols"]["frechet_averages"]["protocol"]["sha256"] == "ab" * 32
    assert "fewer than 2,048" in told["protocols"]["frechet_averages"]["caution"]


def test_metrics_are_scores_with_their_ends(complete: Evaluation) -> None:
    metrics = complete.metrics()
    for score in complete.scores:
        ends = metrics[f"{score.name}_low"], metrics[score.name], metrics[f"{score.name}_high"]
        assert ends == (score.low, score.value, score.high)
    for space, seen in complete.memorizations.items():
        assert metrics[f"closer_{space}_chance"] == seen.closer.chance
        assert metrics[f"singled_out_{space}_chance"] == seen.singled_out.chance
    assert set(complete.memorizations) == {PIXELS, "averages"}
    accuracy = complete.recognitions["averages"].held_out_accuracy
    assert metrics["recognised_averages_of_real"] == accuracy > 0.9
    copying = complete.score("closer_averages").protocol
    assert (copying.network, copying.sha256, copying.resize) == (NETWORK.name, NETWORK.sha256, NETWORK.resize)
    assert (copying.n_reference, copying.n_generated) == (120, 160)
    used = dict(copying.parameters)
    assert (used["n_held_out"], used["quantile"], used["n_neighbours"]) == (150, 0.01, 20)
    assert complete.score("closer_pixels").protocol.resize == "area averages to 8 px"


def test_inception_s_kernel_takes_features_as_they_are_and_others_scaled() -> None:
    x, y = small(tiles(60, seed=4)[0], 4), small(tiles(70, seed=5)[0], 4)
    for name, score, scale in (("inception", "kid", 1.0), ("averages", "kernel_averages", kernel_scale(y))):
        network = replace(NETWORK, name=name)
        made, real = (image_set_of([tiles(n, seed=s)[0]], [network], pixel_edge_px=8) for n, s in ((60, 4), (70, 5)))
        found = evaluate(made, real, None, None, [network], settings=SETTINGS).score(score)
        assert found.value == pytest.approx(kernel_distance(x / scale, y / scale), rel=1e-6)
        assert bool(found.protocol.parameters) == (name != "inception")


def test_one_set_may_be_reference_and_held_out(training: ImageSet) -> None:
    both = samples(110, seed=2)
    found = evaluate(samples(60, seed=4), both, training, both, [NETWORK], settings=SETTINGS)
    assert set(found.leaked) == {"held_out"} and "closer_pixels" in {score.name for score in found.scores}


def test_small_images_are_area_averages_and_turns_begin_with_the_image() -> None:
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
    averages = image.reshape(1, 2, 2, 2, 2, 3).mean(axis=(2, 4))
    assert np.array_equal(small(image, 2), averages.reshape(1, 12))
    assert np.array_equal(oriented(image, 0), image)
    assert np.array_equal(oriented(image, 1)[0], np.rot90(image[0]))
    assert np.array_equal(oriented(image, 4)[0], image[0].swapaxes(0, 1))
    seen = image_set_of([image], [NETWORK], pixel_edge_px=2, turned_in=NETWORK)
    assert all(np.array_equal(seen.turned[name][0], seen.spaces[name]) for name in (PIXELS, "averages"))


def test_the_order_of_the_images_does_not_show(
    complete: Evaluation, reference: ImageSet, training: ImageSet, held_out: ImageSet
) -> None:
    images, labels = tiles(160, seed=4)
    shuffle = np.random.default_rng(0).permutation(160)
    shuffled = image_set_of(
        [images[shuffle][:50], images[shuffle][50:]],
        [NETWORK],
        pixel_edge_px=8,
        turned_in=NETWORK,
        scenes=[labels[row] for row in shuffle],
    )
    assert evaluate(shuffled, reference, training, held_out, [NETWORK], settings=SETTINGS).as_json() == (
        complete.as_json()
    )


def test_what_cannot_be_measured_is_left_out_with_the_reason(
    reference: ImageSet, held_out: ImageSet, training: ImageSet
) -> None:
    few = image_set_of([tiles(30, seed=4)[0]], [NETWORK], pixel_edge_px=8)
    found = evaluate(few, reference, None, None, [NETWORK], settings=SETTINGS)
    assert "needs 49 images or more" in found.left_out["frechet_averages"]
    assert found.left_out["recognised_averages"] == "the samples have no scenes"
    assert found.left_out["memorization"] == "there is no training set"
    assert {score.name for score in found.scores} == {
        "kernel_averages",
        *(f"{n}_averages" for n in ("precision", "recall", "density", "coverage")),
    }
    with pytest.raises(RunError, match=r"there is no score frechet_averages: .*needs 49 images"):
        found.score("frechet_averages")
    with pytest.raises(RunError, match="there are kernel_averages, precision"):
        found.score("fid")
    without = evaluate(samples(30, seed=4), reference, training, None, [NETWORK], settings=SETTINGS)
    assert without.left_out["memorization"] == "there is no held-out set"
    unturned = evaluate(few, reference, training, held_out, [NETWORK], settings=SETTINGS)
    assert unturned.left_out["memorization"] == "there is no turn of the samples"
    of_clusters = [f"cluster {row % 3}" for row in range(60)]
    clustered = image_set_of([tiles(60, seed=4)[0]], [NETWORK], pixel_edge_px=8, turned_in=NETWORK, scenes=of_clusters)
    apart = evaluate(clustered, reference, training, held_out, [NETWORK], settings=SETTINGS).left_out
    assert not any(name.startswith("kernel_averages/") and not name.endswith(MEAN) for name in apart)
    assert apart[f"kernel_averages/{MEAN}"] == apart["recognised_averages"]
    assert "the samples have 3 scenes (cluster 0 and so on) and the reference images 2" in apart["recognised_averages"]
    barely = evaluate(samples(60, seed=4), reference, training, samples(50, seed=2), [NETWORK], settings=SETTINGS)
    assert "needs 99 held-out tiles" in barely.left_out["closer_pixels"]


def test_leaks_stop_the_evaluation_or_are_reported(reference: ImageSet, held_out: ImageSet) -> None:
    leaking = image_set_of([tiles(120, seed=3)[0], tiles(200, seed=1)[0][:7]], [NETWORK], pixel_edge_px=8)
    made = samples(60, seed=4)
    with pytest.raises(RunError, match="7 of 200 reference tiles are in the training set"):
        evaluate(made, reference, leaking, held_out, [NETWORK], settings=SETTINGS)
    with pytest.raises(RunError, match="150 of 150 held_out tiles"):
        evaluate(made, reference, held_out_as_training(), held_out, [NETWORK], settings=SETTINGS)
    told = evaluate(made, reference, leaking, held_out, [NETWORK], settings=replace(SETTINGS, on_leak="report"))
    assert told.metrics()["n_leaked_reference"] == 7 and len(told.leak_sentences) == 1


def held_out_as_training() -> ImageSet:
    return image_set_of([tiles(150, seed=2)[0]], [NETWORK], pixel_edge_px=8)


def test_a_model_that_copies_scores_well_and_is_caught(
    reference: ImageSet, training: ImageSet, held_out: ImageSet
) -> None:
    copies = samples(120, seed=3)
    found = evaluate(copies, reference, training, held_out, [NETWORK], settings=SETTINGS)
    assert found.score("precision_averages").value > 0.8
    assert found.score("closer_pixels").value == found.score("singled_out_pixels").value == 1
    assert found.metrics()["singled_out_averages_chance"] < 1e-6
    assert {(pair.sample, pair.training) for pair in found.memorizations[PIXELS].pairs} == {(i, i) for i in range(120)}


# Real imagery


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def by_scene(root: Path, part: slice) -> tuple[list[np.ndarray], list[str]]:
    images, labels = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        for path in sorted(folder.glob("*.jpg"))[part]:
            images.append(read(path))
            labels.append(folder.name)
    return images, labels


def of_tar(path: Path, least: int, most: int, *, in_folder: str = "") -> Iterator[np.ndarray]:
    """Batches of tiles `least` to `most`, by name, of a tar or of a folder in it."""
    with tarfile.open(path) as tar:
        named = {member.name: member for member in tar if member.isfile() and in_folder in member.name}
        members = [named[name] for name in sorted(named)[least:most]]
        for start in range(0, len(members), 64):
            files = (tar.extractfile(member) for member in members[start : start + 64])
            yield np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files if file is not None])


@pytest.fixture(scope="module")
def squeezenet(shared_data: Path) -> FeatureNetwork:
    return encoder("squeezenet1_0", str(shared_data / "weights" / SQUEEZENET), 64, device="cpu")


@pytest.mark.slow
def test_eurosat_is_nearer_to_itself_than_to_uc_merced(shared_data: Path, squeezenet: FeatureNetwork) -> None:
    """Half of the reference as samples of a perfect model; UC Merced as those of a bad one."""
    eurosat = shared_data / "eurosat"
    odd, even = (by_scene(eurosat / "reference", slice(start, None, 2)) for start in (0, 1))
    reference = image_set_of([np.stack(odd[0])], [squeezenet], pixel_edge_px=16, scenes=odd[1])
    perfect = image_set_of([np.stack(even[0])], [squeezenet], pixel_edge_px=16, scenes=even[1], turned_in=squeezenet)
    foreign, _ = by_scene(shared_data / "ucmerced", slice(0, 48))
    foreign = [image[:240, :240] for image in foreign if min(image.shape[:2]) >= 240][:1000]
    other = image_set_of([np.stack(foreign[i : i + 100]) for i in range(0, 1000, 100)], [squeezenet], pixel_edge_px=16)
    training = image_set_of(of_tar(eurosat / "pool.tar", 0, 1500), [squeezenet], pixel_edge_px=16)
    others = (of_tar(eurosat / "labelled.tar", 0, 40, in_folder=f"/{scene}/") for scene in sorted(set(odd[1])))
    held_out = image_set_of(chain.from_iterable(others), [], pixel_edge_px=16, turned_in=squeezenet)
    settings = replace(SETTINGS, on_leak="report")
    good = evaluate(perfect, reference, training, held_out, [squeezenet], settings=settings)
    bad = evaluate(other, reference, None, None, [squeezenet], settings=settings)
    for name in ("frechet", "kernel", "precision", "recall", "density", "coverage"):
        a, b = good.score(f"{name}_squeezenet1_0"), bad.score(f"{name}_squeezenet1_0")
        assert better(a, b, 0.0) and not better(b, a, 0.0)
    assert abs(good.score("kernel_squeezenet1_0").value) < 0.02 * bad.score("kernel_squeezenet1_0").value
    accuracy = good.metrics()["recognised_squeezenet1_0_of_real"]
    assert good.score("recognised_squeezenet1_0").value == pytest.approx(accuracy, abs=0.05)
    assert good.score("precision_squeezenet1_0").value > 0.7
    for space in (PIXELS, "squeezenet1_0"):
        assert good.metrics()[f"singled_out_{space}_chance"] > 0.001


def encoded(images: np.ndarray) -> np.ndarray:
    """The images as they come back from JPEG."""
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file, "JPEG", quality=90)
    return np.stack([np.asarray(Image.open(file)) for file in files])


@pytest.mark.slow
def test_copies_of_real_tiles_are_found_turned_and_encoded_anew(shared_data: Path, squeezenet: FeatureNetwork) -> None:
    pool = shared_data / "eurosat" / "pool.tar"
    images = np.concatenate(list(of_tar(pool, 0, 1024)))
    training = image_set_of([images], [squeezenet], pixel_edge_px=16)
    held_out = image_set_of(of_tar(pool, 4096, 4736), [], pixel_edge_px=16, turned_in=squeezenet)
    fresh = np.concatenate(list(of_tar(pool, 8192, 8292)))
    reference = image_set_of([fresh], [squeezenet], pixel_edge_px=16)
    turned = np.ascontiguousarray(np.rot90(images[:100], 1, axes=(1, 2)))
    settings, found = replace(SETTINGS, on_leak="report"), {}
    for name, made in {"clean": fresh, "turned": turned, "encoded": encoded(turned)}.items():
        generated = image_set_of([made], [squeezenet], pixel_edge_px=16, turned_in=squeezenet)
        found[name] = evaluate(generated, reference, training, held_out, [squeezenet], settings=settings).metrics()
    for space in (PIXELS, "squeezenet1_0"):
        assert found["clean"][f"singled_out_{space}_chance"] > 0.001
        assert found["turned"][f"singled_out_{space}"] == 1
        assert found["encoded"][f"singled_out_{space}_chance"] < 1e-6
    assert found["encoded"][f"singled_out_{PIXELS}"] > 0.7
