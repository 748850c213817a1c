"""The step of semantic_synthesis_checkpoint from the foundation to its scores, and its checks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pair_folders import COLOURS, write_place
from PIL import Image
from prune_runs import Outcome, settings
from test_restoration import foundation

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.downstream.synthesis import load_synthesis
from rsprune_dagster.downstream.synthesis_checks import draws_no_copies, follows_masks
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
            "classes": COLOURS,
            "crop_px": 16,
            "n_images": 32,
            "save_every_images": 16,
            "n_test_images": 12,
            "n_drawn_images": 16,
            "n_segmenter_images": 32,
            **changes,
        },
    )
    folder.mkdir()
    drafts = {"semantic_synthesis_checkpoint": folder, "diffusion_checkpoint": parent}
    networks, _ = named_networks(("descriptor",), image_size_px=32, device="cpu")
    layout = Layout(pruned.assets, folder.parent, drafts)
    return train_synthesis(layout, params.semantic_synthesis, params.training, sources, networks, seed=0, device="cpu")


def test_the_step_fine_tunes_on_pairs_and_measures_on_other_places(
    pruned: Outcome, foundation: Path, places: Path, tmp_path: Path
) -> None:
    sources = PairSources((str(places / "here"),), (str(places / "there"),))
    report = run(pruned, foundation, tmp_path / "first", sources)
    assert (report.n_images, report.n_pairs, report.n_test_images) == (32, 8, 12)
    assert report.classes == ("water", "field", "city") and "needs 280 images" in report.not_measured
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert metrics == report.metrics
    assert metrics["miou_ratio"] == pytest.approx(metrics["miou_drawn"] / metrics["miou_real"])
    lines = read_sheet(tmp_path / "first" / "segmentation.csv")
    sets = {(line["learned_from"], line["measured_on"]) for line in lines}
    assert sets == {
        ("real", "real, other places"),
        ("real", "real, same places"),
        ("real", "drawn, other places"),
        ("real and drawn", "real, other places"),
        ("real and drawn", "real, same places"),
    }
    cells = {(line["learned_from"], line["measured_on"]): line for line in lines if line["measure"] == "miou"}
    alone, helped = (float(cells[name, "real, other places"]["value"]) for name in ("real", "real and drawn"))
    assert float(cells["real and drawn", "real, other places"]["gain"]) == pytest.approx(helped - alone, abs=1e-5)
    assert metrics["miou_helped"] == pytest.approx(helped, abs=1e-5)
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


def folder_with(folder: Path, **metrics: float) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_drawn_images_must_show_their_masks_nearly_as_well_as_real_ones(tmp_path: Path) -> None:
    good = follows_masks(folder_with(tmp_path / "good", miou_real=0.5, miou_drawn=0.3, miou_ratio=0.6))
    bad = follows_masks(folder_with(tmp_path / "bad", miou_real=0.5, miou_drawn=0.29, miou_ratio=0.58))
    assert good.passed and "0.300 on drawn images, 0.500 on real ones: 60%" in good.sentence
    assert not bad.passed and "58%, expected 60% or more" in bad.sentence


def test_a_model_that_copies_is_nearer_to_what_it_learned_from(tmp_path: Path) -> None:
    def metrics(learned: float) -> dict[str, float]:
        found = {"st_lpips_learned": learned, "st_lpips_learned_high": learned + 0.02}
        return {**found, "st_lpips_test": 0.4, "st_lpips_test_low": 0.38}

    assert draws_no_copies(folder_with(tmp_path / "good", **metrics(0.27))).passed
    copies = draws_no_copies(folder_with(tmp_path / "bad", **metrics(0.25)))
    assert not copies.passed and "train on more pairs" in copies.sentence
