"""How super-resolution is measured and judged, and the asset's step from the foundation to its scores."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from diffusion_runs import small_options, small_tiles
from prune_runs import Outcome, settings

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.diffusion.checkpoint import Origin, write_checkpoint
from rsprune_dagster.diffusion.training import train
from rsprune_dagster.downstream.checks import better_than_bicubic, generalizes
from rsprune_dagster.downstream.degradation import DEGRADATIONS
from rsprune_dagster.downstream.restoration import MAX_PSNR_DB, MEASURES, Mean, distances, measure, scores
from rsprune_dagster.downstream.super_resolution import load_super_resolution
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.networks import named_networks
from rsprune_dagster.stages.raw_corpus import Scanner
from rsprune_dagster.stages.super_resolution_checkpoint import (
    ImageSources,
    SuperResolutionReport,
    train_super_resolution,
)
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.utils.csv_files import read_sheet, write_sheet
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.progress import silent

SHEET = ("output", "measure", "value", "low", "high", "gain", "gain_low", "gain_high")


def photographs(n: int, edge: int = 32, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    return coarse.repeat(edge // 8, axis=1).repeat(edge // 8, axis=2)


def reductions(images: np.ndarray, scale: int) -> np.ndarray:
    return np.stack([DEGRADATIONS["bicubic"](image, scale, np.random.default_rng(0)) for image in images])


def test_an_image_against_itself_is_perfect_and_consistent() -> None:
    truth = photographs(3)
    found = measure(truth, truth, reductions(truth, 4), 4)
    assert found["psnr"] == pytest.approx(np.full(3, MAX_PSNR_DB))  # finite: a mean of it says something
    assert pytest.approx(10 * np.log10(12 * 255**2), abs=0.005) == MAX_PSNR_DB
    assert found["ssim"] == pytest.approx(np.ones(3)) and found["st_lpips"] == pytest.approx(np.zeros(3), abs=1e-6)
    assert found["input_error"].max() < 1  # the rounding of the reduction


def test_psnr_is_that_of_its_formula_and_all_measures_worsen_with_noise() -> None:
    truth = photographs(2)
    low = reductions(truth, 4)
    noisy = [
        np.clip(truth + np.random.default_rng(1).normal(0, size, truth.shape), 0, 255).astype(np.uint8)
        for size in (5, 20)
    ]
    less, more = (measure(images, truth, low, 4) for images in noisy)
    errors = ((noisy[0].astype(float) - truth) ** 2).mean(axis=(1, 2, 3))
    assert less["psnr"] == pytest.approx(10 * np.log10(255**2 / errors), rel=1e-4)
    for name in MEASURES:
        assert ((less[name] > more[name]) == (name in ("psnr", "ssim"))).all(), name


def test_an_offset_of_the_result_is_its_input_error() -> None:
    truth = np.full((2, 32, 32, 3), 100, np.uint8)
    found = measure(truth + np.uint8(7), truth, reductions(truth, 4), 4)
    assert found["input_error"] == pytest.approx([7, 7], abs=1e-3)


def test_measures_do_not_depend_on_the_other_images() -> None:
    truth = photographs(40)
    images = truth ^ np.uint8(8)
    low = reductions(truth, 2)
    whole, last = measure(images, truth, low, 2), measure(images[35:], truth[35:], low[35:], 2)
    for name in MEASURES:
        assert whole[name][35:] == pytest.approx(last[name], rel=1e-4)


def test_a_gain_is_measured_image_by_image() -> None:
    truth = photographs(12)
    low = reductions(truth, 4)
    spread = np.arange(1, 13, dtype=np.uint8)[:, None, None, None]
    found = scores({"bicubic": truth ^ (2 * spread), "sample": truth ^ spread}, truth, low, 4)
    [psnr] = [score for score in found if (score.output, score.measure) == ("sample", "psnr")]
    assert psnr.gain is not None
    assert psnr.gain.low > 4 and psnr.gain.high - psnr.gain.low < (psnr.mean.high - psnr.mean.low) / 2
    baseline = [score.gain for score in found if score.output == "bicubic"]
    assert baseline == [Mean(0, 0, 0)] * len(MEASURES)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [Mean.of(rng.normal(3, 2, 8)) for _ in range(2000)]
    assert np.mean([each.low <= 3 <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)


def test_the_distance_of_the_truth_to_itself_is_least_and_few_images_say_why_there_is_none() -> None:
    networks, _ = named_networks(("descriptor",), image_size_px=32, device="cpu")
    truth = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    found, why = distances({"same": truth, "other": truth // 2}, truth, networks)
    assert [score.output for score in found] == ["same", "other"] and not why
    assert found[0].mean.value == pytest.approx(0, abs=1e-3) and found[1].mean.low > found[0].mean.high
    none, why = distances({"same": truth[:20], "other": truth[:20]}, truth[:20], networks)
    assert none == [] and why.count("needs 280 images or more") == 1
    small = FeatureNetwork("small", "", "none", 16, 3, lambda images: images.mean(axis=(1, 2)).astype(np.float32))
    some, why = distances({"same": truth[:20]}, truth[:20], [*networks, small])
    assert [score.measure for score in some] == ["frechet_small"] and "frechet_descriptor needs 280" in why


def folder_with(folder: Path, psnr: Sequence[float], lpips: Sequence[float], **metrics: float) -> Path:
    rows = [("mean", "psnr", 1, 1, 1, *psnr), ("sample", "st_lpips", 1, 1, 1, *lpips)]
    folder.mkdir()
    write_sheet(folder / "restoration.csv", SHEET, rows if metrics else [])
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "training.json").write_text(json.dumps({"not_measured": "There are no test images."}))
    return folder


GAINS = {
    "psnr_gain": 1.0, "psnr_gain_low": 0.8, "psnr_gain_high": 1.2,
    "psnr_gain_training": 1.1, "psnr_gain_training_low": 0.9, "psnr_gain_training_high": 1.3,
}  # fmt: skip


def test_better_than_bicubic_asks_for_both_outputs_beyond_chance(tmp_path: Path) -> None:
    good = better_than_bicubic(folder_with(tmp_path / "a", (1, 0.5, 1.5), (-0.1, -0.2, -0.05), **GAINS))
    assert good.passed and "+1.00 dB" in good.sentence and "-0.100 of ST-LPIPS" in good.sentence
    psnr = better_than_bicubic(folder_with(tmp_path / "b", (1, -0.1, 2.1), (-0.1, -0.2, -0.05), **GAINS))
    assert not psnr.passed and "the mean has +1.00 dB" in psnr.sentence and "ST-LPIPS" not in psnr.sentence
    lpips = better_than_bicubic(folder_with(tmp_path / "c", (1, 0.5, 1.5), (-0.1, -0.2, 0.0), **GAINS))
    assert not lpips.passed and "the sample has -0.100" in lpips.sentence and "n_images" in lpips.sentence


def test_a_model_that_remembers_gains_more_on_its_training_images(tmp_path: Path) -> None:
    none = (1, 0.5, 1.5), (-0.1, -0.2, -0.05)
    assert generalizes(folder_with(tmp_path / "a", *none, **GAINS)).passed
    much = {**GAINS, "psnr_gain_training": 2.0, "psnr_gain_training_low": 1.75}
    found = generalizes(folder_with(tmp_path / "b", *none, **much))
    assert not found.passed and "+2.00 dB on training images, +1.00 dB on test images" in found.sentence
    chance = {**much, "psnr_gain_training_low": 1.65}
    assert generalizes(folder_with(tmp_path / "c", *none, **chance)).passed


def test_without_test_images_the_checks_say_so(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", (), ())
    for check in (better_than_bicubic, generalizes):
        found = check(folder)
        assert found.passed and found.sentence == "not measured. There are no test images."


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foundation")
    options = small_options(n_images=16)
    tiles = small_tiles(folder / "tiles")
    trained = train(tiles, options, folder / "states", device="cpu").moved("cpu")
    write_checkpoint(folder / "checkpoint", trained, tiles.scene_names, options, Origin(24, "", ""))
    return folder / "checkpoint"


def run(
    pruned: Outcome, foundation: Path, folder: Path, sources: ImageSources, **changes: object
) -> SuperResolutionReport:
    params = settings(
        [],
        None,
        training={"batch_size": 16, "micro_batch_size": 16, "sample_steps": 2},
        super_resolution={"n_images": 32, "save_every_images": 16, "n_test_images": 12, **changes},
    )
    folder.mkdir(exist_ok=True)
    drafts = {"super_resolution_checkpoint": folder, "diffusion_checkpoint": foundation}
    layout = Layout(pruned.assets, folder.parent, drafts)
    networks, _ = named_networks(("descriptor",), image_size_px=32, device="cpu")
    return train_super_resolution(
        layout,
        params.super_resolution,
        params.training,
        sources,
        Scanner.of(params.corpus, layout.cache, 1, silent),
        networks,
        seed=0,
        device="cpu",
    )


def test_the_step_fine_tunes_on_kept_tiles_and_measures_on_held_out_ones(
    pruned: Outcome, synthetic: Path, foundation: Path, tmp_path: Path
) -> None:
    sources = ImageSources((), (str(synthetic / "held_out"),))
    report = run(pruned, foundation, tmp_path / "first", sources)
    assert (report.scale, report.n_images, report.n_test_images, report.n_too_small) == (4, 32, 12, 0)
    assert "needs 280 images" in report.not_measured
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert metrics == report.metrics and {"psnr_gain", "psnr_gain_training", "st_lpips_sample"} <= metrics.keys()
    lines = read_sheet(tmp_path / "first" / "restoration.csv")
    named = {(line["output"], line["measure"]): float(line["value"]) for line in lines}
    assert {output for output, _ in named} == {"bicubic", "mean", "sample"}
    assert named["mean", "psnr"] - named["bicubic", "psnr"] == pytest.approx(metrics["psnr_gain"], abs=1e-3)
    assert len(list((tmp_path / "first" / "examples").iterdir())) == 8
    assert load_super_resolution(tmp_path / "first").task.scale == 4
    run(pruned, foundation, tmp_path / "again", sources)  # from the last state
    assert tree_of(tmp_path / "again").digest == tree_of(tmp_path / "first").digest
    (tmp_path / "cache").rename(tmp_path / "aside")
    run(pruned, foundation, tmp_path / "anew", sources)
    assert tree_of(tmp_path / "anew").digest == tree_of(tmp_path / "first").digest


def test_without_test_images_it_trains_and_says_what_is_missing(
    pruned: Outcome, synthetic: Path, foundation: Path, tmp_path: Path
) -> None:
    sources = ImageSources((str(synthetic / "reference"),), ())
    report = run(pruned, foundation, tmp_path / "made", sources, start="random", scale=2, degradation="realistic")
    assert report.metrics == {} and report.n_test_images == 0 and "no test images" in report.not_measured
    card = (tmp_path / "made" / "README.md").read_text()
    assert "undo: realistic" in card and "random weights" in card


def test_test_images_that_were_trained_on_are_refused(
    pruned: Outcome, synthetic: Path, foundation: Path, tmp_path: Path
) -> None:
    first = next((synthetic / "reference").glob("*/*"))
    shutil.copytree(synthetic / "held_out", tmp_path / "test")
    shutil.copy(first, tmp_path / "test" / f"copy{first.suffix}")
    with pytest.raises(RunError, match="1 test images were trained on, such as copy"):
        run(
            pruned,
            foundation,
            tmp_path / "made",
            ImageSources((str(synthetic / "reference"),), (str(tmp_path / "test"),)),
        )


def test_one_test_image_has_no_interval(pruned: Outcome, synthetic: Path, foundation: Path, tmp_path: Path) -> None:
    first = next((synthetic / "held_out").glob("*/*"))
    (tmp_path / "test").mkdir()
    shutil.copy(first, tmp_path / "test")
    with pytest.raises(UsageError, match=r"1 of 1 images of super_resolution.test_sources have .* 2 or more"):
        run(pruned, foundation, tmp_path / "made", ImageSources((), (str(tmp_path / "test"),)))
