"""The step of semantic_synthesis_checkpoint from the foundation to its scores, and its checks."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pair_folders import CLASSES, write_place
from PIL import Image
from prune_runs import Outcome, settings
from test_restoration import foundation

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.downstream import synthesis_measures
from rsprune_dagster.downstream.checks import draws_no_copies, follows_masks
from rsprune_dagster.downstream.pairs import Crops
from rsprune_dagster.downstream.restoration import Mean, RestorationScore
from rsprune_dagster.downstream.segmentation import Segmenter, train_segmenter
from rsprune_dagster.downstream.synthesis import load_synthesis
from rsprune_dagster.downstream.synthesis_measures import confusions_of_pairs, scores
from rsprune_dagster.evaluation.networks import named_networks
from rsprune_dagster.stages.semantic_synthesis_checkpoint import PairSources, SynthesisReport, train_synthesis
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.utils.csv_files import read_sheet
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.viz import synthesis as shown

__all__ = ["foundation"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    write_place(folder / "here", 10, 0)
    write_place(folder / "there", 4, 100)
    return folder


def run(pruned: Outcome, parent: Path, folder: Path, sources: PairSources, **changes: object) -> SynthesisReport:
    params = settings(
        [],
        None,
        training={"batch_size": 16, "micro_batch_size": 16, "sample_steps": 2},
        semantic_synthesis={
            "classes": CLASSES,
            "crop_px": 16,
            "n_images": 32,
            "save_every_images": 16,
            "n_test_images": 12,
            "n_drawn_images": 16,
            "n_segmenter_images": 32,
            "n_segmenters": 2,
            **changes,
        },
    )
    folder.mkdir()
    drafts = {"semantic_synthesis_checkpoint": folder, "diffusion_checkpoint": parent}
    networks, _ = named_networks(("descriptor",), image_size_px=32, device="cpu")
    layout = Layout(pruned.assets, folder.parent, drafts)
    return train_synthesis(layout, params.semantic_synthesis, params.training, sources, networks, seed=0, device="cpu")


def test_the_step_fine_tunes_on_pairs_and_measures_on_other_places(
    pruned: Outcome, foundation: Path, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = PairSources((str(places / "here"),), (str(places / "there"),))
    seeds = []

    def counted(*args: Any, seed: int, **kwargs: Any) -> Segmenter:
        seeds.append(seed)
        return train_segmenter(*args, seed=seed, **kwargs)

    monkeypatch.setattr(synthesis_measures, "train_segmenter", counted)
    report = run(pruned, foundation, tmp_path / "first", sources)
    first, other, *helped = seeds
    assert helped == [first, other] and first != other, "two of each kind, which start alike"
    assert (report.n_images, report.n_pairs, report.n_test_images) == (32, 8, 12)
    assert report.classes == ("water", "field", "city") and "needs 280 images" in report.not_measured
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert metrics == report.metrics
    for end in ("", "_same_places"):
        assert metrics[f"miou_ratio{end}"] == pytest.approx(metrics[f"miou_drawn{end}"] / metrics[f"miou_real{end}"])
    lines = read_sheet(tmp_path / "first" / "segmentation.csv")
    sets = {(line["learned_from"], line["measured_on"]) for line in lines}
    assert sets == {
        ("real", "other places"),
        ("real", "same places"),
        ("real", "drawn, other places"),
        ("real", "drawn, same places"),
        ("real and drawn", "other places"),
        ("real and drawn", "same places"),
    }
    cells = {(line["learned_from"], line["measured_on"]): line for line in lines if line["measure"] == "miou"}
    alone, helped = (float(cells[name, "other places"]["value"]) for name in ("real", "real and drawn"))
    assert float(cells["real and drawn", "other places"]["gain"]) == pytest.approx(helped - alone, abs=1e-5)
    assert metrics["miou_helped"] == pytest.approx(helped, abs=1e-5)
    assert metrics["accuracy_helped"] != metrics["accuracy_real"]  # it learned from other images
    assert metrics["miou_drawn_same_places"] == pytest.approx(
        float(cells["real", "drawn, same places"]["value"]), abs=1e-5
    )
    examples = sorted((tmp_path / "first" / "examples").iterdir())
    assert len(examples) == 8
    parts = np.split(np.asarray(Image.open(examples[0])), 5, axis=1)
    assert {tuple(pixel) for pixel in parts[0].reshape(-1, 3)} <= {(0, 0, 255), (0, 255, 0), (255, 0, 0)}
    assert not np.array_equal(parts[1], parts[2])
    assert load_synthesis(tmp_path / "first").task.crop_px == 16
    for part in (shown.blocks(tmp_path / "first"), shown.headline(tmp_path / "first").splitlines()):
        assert len(part) >= 4
    for check in (follows_masks, draws_no_copies):
        assert check(tmp_path / "first").figures
    run(pruned, foundation, tmp_path / "again", sources)  # from the last state
    assert tree_of(tmp_path / "again").digest == tree_of(tmp_path / "first").digest
    (tmp_path / "cache").rename(tmp_path / "aside")
    run(pruned, foundation, tmp_path / "anew", sources)
    assert tree_of(tmp_path / "anew").digest == tree_of(tmp_path / "first").digest


def test_drawn_images_are_compared_with_the_real_ones_of_their_places(
    pruned: Outcome, foundation: Path, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def distances(outputs: dict[str, Any], truth: Any, networks: object) -> tuple[list[RestorationScore], str]:
        seen.append((len(outputs["drawn"]), len(truth)))
        mean = Mean(float(truth.mean()), 0, 1)
        return [RestorationScore("drawn", "frechet_x", mean, None)], "Of one network." if len(truth) < 12 else ""

    monkeypatch.setattr(synthesis_measures, "distances", distances)
    for path in (places / "there" / "images").iterdir():
        (tmp_path / "there" / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (200, 200, 200)).save(tmp_path / "there" / "images" / path.name)
    shutil.copytree(places / "there" / "masks", tmp_path / "there" / "masks")
    sources = PairSources((str(places / "here"),), (str(tmp_path / "there"),))
    report = run(pruned, foundation, tmp_path / "draft", sources)
    assert seen == [(12, 12), (8, 8)]
    assert report.metrics["frechet_x_drawn"] == 200
    assert report.metrics["frechet_x_drawn_same_places"] < 150
    assert report.not_measured == "Same places: Of one network."


def test_pairs_that_are_held_back_are_not_learned_from(
    pruned: Outcome, foundation: Path, places: Path, tmp_path: Path
) -> None:
    """A change to one changes no weight; a change to another one does."""
    sources = PairSources((str(tmp_path / "here"),), ())

    def weights(name: str) -> bytes:
        run(pruned, foundation, tmp_path / name, sources)
        shutil.rmtree(tmp_path / "cache")
        return next((tmp_path / name / "unet").glob("*.safetensors")).read_bytes()

    shutil.copytree(places / "here", tmp_path / "here")
    before = weights("before")
    shutil.copy(places / "there" / "images" / "0.png", tmp_path / "here" / "images" / "4.png")
    assert weights("held back") == before
    shutil.copy(places / "there" / "images" / "0.png", tmp_path / "here" / "images" / "3.png")
    assert weights("learned") != before


def test_without_test_pairs_it_trains_and_says_what_is_missing(
    pruned: Outcome, foundation: Path, places: Path, tmp_path: Path
) -> None:
    report = run(pruned, foundation, tmp_path / "made", PairSources((str(places / "here"),), ()), start="random")
    assert report.metrics == {} and report.n_test_images == 0
    for check in (follows_masks, draws_no_copies):
        found = check(tmp_path / "made")
        assert found.passed and "not measured. There are no test pairs" in found.sentence
    assert "nothing was measured: There are no test pairs" in shown.headline(tmp_path / "made")
    assert "random weights" in (tmp_path / "made" / "README.md").read_text()


def test_test_images_that_were_trained_on_are_refused(
    pruned: Outcome, foundation: Path, places: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="4 test images are also training images, such as there/0"):
        run(
            pruned,
            foundation,
            tmp_path / "made",
            PairSources((str(places),), (str(places / "there"),)),
        )


def test_pairs_smaller_than_a_crop_are_refused(pruned: Outcome, foundation: Path, places: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images are smaller than a crop of 41 px"):
        run(pruned, foundation, tmp_path / "made", PairSources((str(places / "here"),), ()), crop_px=41)


@pytest.mark.parametrize("part", ["here", "there"])
def test_pairs_without_labels_are_refused_before_the_training(
    pruned: Outcome, foundation: Path, places: Path, tmp_path: Path, part: str
) -> None:
    shutil.copytree(places, tmp_path / "places")
    for path in (tmp_path / "places" / part / "masks").iterdir():
        Image.new("RGB", (40, 40), (9, 9, 9)).save(path)
    sources = PairSources((str(tmp_path / "places" / "here"),), (str(tmp_path / "places" / "there"),))
    named = {"here": r"0 of 10 pairs of semantic_synthesis\.sources", "there": r"0 of 4 pairs of .*\.test_sources"}
    with pytest.raises(UsageError, match=f"{named[part]} have crops that are half labelled"):
        run(pruned, foundation, tmp_path / "made", sources, classes=[*CLASSES, "#090909 unlabeled"])
    assert not (tmp_path / "cache").exists()


def test_few_pairs_are_learned_from_and_none_is_held_back(
    pruned: Outcome, foundation: Path, places: Path, tmp_path: Path
) -> None:
    for name in ("images", "masks"):
        (tmp_path / "few" / name).mkdir(parents=True)
        shutil.copy(places / "here" / name / "0.png", tmp_path / "few" / name)
    sources = PairSources((str(tmp_path / "few"),), (str(places / "there"),))
    report = run(pruned, foundation, tmp_path / "made", sources)
    assert report.n_pairs == 1 and "miou_ratio" in report.metrics and "miou_ratio_same_places" not in report.metrics
    assert report.metrics["st_lpips_control"] > 0 and np.isfinite(list(report.metrics.values())).all()
    for check in (follows_masks, draws_no_copies):
        assert check(tmp_path / "made").figures


@dataclass
class OneClass:
    """A segmenter that finds the same class everywhere."""

    number: int
    n_classes: int = 2

    def predicted(self, images: np.ndarray) -> np.ndarray:
        return np.full(images.shape[:3], self.number, np.uint8)


def test_crops_of_one_pair_are_one_observation() -> None:
    images, shares = np.zeros((6, 4, 4, 3), np.uint8), np.zeros((6, 2, 4, 4), np.float32)
    crops = Crops(images, images[..., 0], shares, np.array([0, 0, 3, 3, 3, 5]))
    wrong, right = (cast("Segmenter", OneClass(number)) for number in (1, 0))
    found = confusions_of_pairs([wrong, right], crops)
    assert found.shape == (2, 3, 2, 2) and found[:, :, 0, 1].tolist() == [[2 * 16, 3 * 16, 16], [0, 0, 0]]
    [score, *_] = scores([wrong, right], (), {"set": crops}, seed=0)
    assert (score.measure, score.mean.value) == ("miou", 0.5), "the mean of both"
    [_, _, _, helped, *_] = scores([wrong, right], [right, right], {"set": crops}, seed=0)
    assert helped.gain is not None and helped.gain.value == 0.5 and helped.gain.low < 0 < helped.gain.high


def folder_with(folder: Path, **metrics: float) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_drawn_images_must_show_their_masks_nearly_as_well_as_real_ones(tmp_path: Path) -> None:
    def metrics(drawn: float, end: str = "") -> dict[str, float]:
        return {f"miou_real{end}": 0.5, f"miou_drawn{end}": drawn, f"miou_ratio{end}": drawn / 0.5}

    good = follows_masks(folder_with(tmp_path / "good", **metrics(0.3)))
    bad = follows_masks(folder_with(tmp_path / "bad", **metrics(0.29)))
    assert good.passed and "0.300 on drawn images, 0.500 on real ones: 60%" in good.sentence
    assert not bad.passed and "58%, expected 60% or more" in bad.sentence
    both = follows_masks(folder_with(tmp_path / "both", **metrics(0.29), **metrics(0.4, "_same_places")))
    assert both.passed and both.figures["miou_drawn"] == 0.4


def test_a_model_that_copies_is_nearer_to_what_it_learned_from(tmp_path: Path) -> None:
    def metrics(learned: float) -> dict[str, float]:
        found = {"st_lpips_learned": learned, "st_lpips_learned_high": learned + 0.02}
        return {**found, "st_lpips_control": 0.4, "st_lpips_control_low": 0.38}

    assert draws_no_copies(folder_with(tmp_path / "good", **metrics(0.27))).passed
    copies = draws_no_copies(folder_with(tmp_path / "bad", **metrics(0.25)))
    assert not copies.passed and "train on more pairs" in copies.sentence
