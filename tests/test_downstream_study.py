"""The studies of downstream tasks: arms share the fine-tuning, partitions add their runs, what is done stays."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prune_runs import Outcome, settings
from study_runs import StudyWorld

from rsprune_dagster.cli.study import study
from rsprune_dagster.config.params import Params
from rsprune_dagster.diffusion import training
from rsprune_dagster.stages import downstream_study as study_stage
from rsprune_dagster.study.results import read_results
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.viz import downstream_study
from rsprune_dagster.viz.blocks import Gallery, Table
from rsprune_dagster.viz.pictures import downstream_study_pictures

LENGTH = {"n_images": 32, "save_every_images": 16, "n_test_images": 12}


class World(StudyWorld):
    """A corpus of 300 tiles."""

    def params(self, **task: Any) -> Params:
        return settings(
            self.made / "corpus",
            self.made / "reference",
            training={"image_size_px": 16, "batch_size": 16, "precision": "float32", "sample_steps": 2},
            evaluation={"sources": [str(self.made / "held_out")]},
            super_resolution={**LENGTH, **task},
            semantic_synthesis={**LENGTH, "n_drawn_images": 8, "n_segmenter_images": 32, "n_segmenters": 1},
            study={"arms": ["full", "rsprune-0.2"], "seeds": [0, 1], "checkpoints": [16]},
        )

    def run(self, study: str, arm: str, seed: int, params: Params | None = None) -> Path:
        return self.materialize(study, arm, seed, params or self.params())


@pytest.fixture(scope="module")
def world(synthetic: Path, pruned: Outcome, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.of(synthetic, pruned, tmp_path_factory.mktemp("downstream_study"))


def test_each_partition_adds_its_run_and_arms_are_compared_in_each_score(world: World) -> None:
    seen = []
    for seed in (0, 1):
        for arm in ("full", "rsprune-0.2", "none"):
            folder = world.run("super_resolution_study", arm, seed)
            seen.append((arm, seed))
            results = read_results(folder)
            assert sorted((one.arm, one.seed) for one in results) == sorted(seen)
    assert {one.arm: one.n_tiles for one in results}["none"] == 0
    psnr = {(one.arm, one.seed): one.points[-1].scores["psnr_mean"] for one in results}
    assert len(set(psnr.values())) == 6, "foundations and seeds differ, so do the results"
    bicubic = {one.points[-1].scores["psnr_bicubic"] for one in results if one.seed == 0}
    assert len(bicubic) == 1, "all arms are measured on the same images"
    summaries = json.loads((folder / "summary.json").read_text())
    assert [one["score"] for one in summaries] == ["psnr_mean", "st_lpips_sample"]
    [kept] = [arm for arm in summaries[0]["arms"] if arm["arm"] == "rsprune-0.2"]
    gaps = [psnr["rsprune-0.2", seed] - psnr["none", seed] for seed in (0, 1)]
    assert kept["to_none"]["value"] == pytest.approx(sum(gaps) / 2) and kept["to_none"]["n_seeds"] == 2
    assert kept["to_full"]["n_seeds"] == 2 and kept["images_needed"] == []
    pictures = downstream_study_pictures(folder)
    for end, images in (("sample", "samples"), ("drawn_same_places", "drawn images, same places")):
        assert downstream_study.label(f"frechet_descriptor_{end}") == f"Fréchet distance of {images}, descriptor ↓"
    assert downstream_study.label("fid_drawn").endswith(" of drawn images ↓")
    assert set(pictures) == {"arms", "differences", "results for the same inputs"}
    assert "none, random weights" in str(pictures["arms"]) and "| rsprune 20 % | 61 | 2 |" in str(pictures["arms"])
    arms, differences, gallery = downstream_study.blocks(folder)
    assert isinstance(arms, Table) and arms.rows[0][0] == "full corpus"
    assert isinstance(differences, Table) and ("none, random weights", "full corpus") in [
        tuple(row[:2]) for row in differences.rows
    ]
    assert isinstance(gallery, Gallery)
    assert gallery.rows[0].heading == "input" and gallery.rows[-1].heading == "truth"


def test_a_finished_run_is_not_repeated_and_other_settings_start_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.run("super_resolution_study", "full", 0)
    before = (folder / "full" / "0.json").read_bytes()
    monkeypatch.setattr(study_stage, "train", _never)  # a foundation is trained once for all tasks and settings
    with monkeypatch.context() as patched:
        patched.setattr(study_stage.super_resolution, "fine_tune", _never)
        assert (world.run("super_resolution_study", "full", 0) / "full" / "0.json").read_bytes() == before
        harmless = world.params(save_every_images=32)
        assert (world.run("super_resolution_study", "full", 0, harmless) / "full" / "0.json").read_bytes() == before
    [alone] = read_results(world.run("super_resolution_study", "full", 0, world.params(n_test_images=13)))
    assert (alone.arm, alone.seed) == ("full", 0)
    assert not list(world.layout.cache.glob("study/*/*/work/*")), "states of what is done are removed"


def test_a_killed_run_goes_on_to_the_same_result(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    params = world.params(n_test_images=11)
    untroubled = (world.run("super_resolution_study", "rsprune-0.2", 0, params) / "rsprune-0.2" / "0.json").read_bytes()
    for results in world.layout.cache.glob("study/*/*"):
        shutil.rmtree(results)  # foundations too
    save = training.save_state
    with monkeypatch.context() as patched:
        patched.setattr(training, "save_state", lambda *state: (save(*state), _never()))
        for _ in range(2):  # in the training of the foundation, then in the fine-tuning
            with pytest.raises(AssertionError):
                world.run("super_resolution_study", "rsprune-0.2", 0, params)
    again = world.run("super_resolution_study", "rsprune-0.2", 0, params)
    assert (again / "rsprune-0.2" / "0.json").read_bytes() == untroubled


def test_synthesis_has_its_study(world: World) -> None:
    for arm in ("rsprune-0.2", "none"):
        folder = world.run("semantic_synthesis_study", arm, 0)
    summaries = json.loads((folder / "summary.json").read_text())
    assert [one["score"] for one in summaries] == [
        "miou_drawn_same_places",
        "miou_drawn",
        "miou_gain_same_places",
        "miou_gain",
    ]
    [one, other] = read_results(folder)
    assert one.points[-1].scores["miou_real"] == other.points[-1].scores["miou_real"], "one segmenter judges all arms"
    scores = one.points[-1].scores
    assert scores["miou_gain"] == pytest.approx(scores["miou_helped"] - scores["miou_real"])


def test_test_images_of_the_corpus_stop_the_study(world: World) -> None:
    rows = pq.read_table(world.layout.file("decisions")).to_pylist()
    images = [
        Path(row["uri"]) for row in rows if row["decision"] == "unselected" and row["uri"].endswith((".jpg", ".png"))
    ]
    (world.work / "leaking").mkdir()
    for image in images[:3]:
        shutil.copy(image, world.work / "leaking")
    leaky = world.params(sources=[str(world.made / "reference")], test_sources=[str(world.work / "leaking")])
    with pytest.raises(RunError, match="3 test images were trained on"):
        world.run("super_resolution_study", "none", 0, leaky)


def test_without_test_images_there_is_no_study(world: World) -> None:
    params = world.params().with_values({"evaluation": {"sources": []}, "semantic_synthesis": {"test_sources": []}})
    for task, parameter in (
        ("super_resolution", r"test_sources or evaluation"),
        ("semantic_synthesis", "test_sources"),
    ):
        with pytest.raises(UsageError, match=rf"the study needs test .*{parameter}"):
            world.run(f"{task}_study", "none", 0, params)


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("the foundation was trained already")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"task": "superresolution"},
            r"--task superresolution \(did you mean super_resolution\?\): there are super",
        ),
        ({"arm": ["none"]}, "only the studies of downstream tasks have it; name one with --task"),
        (
            {"task": "super_resolution", "arm": ["non"]},
            r"--arm non \(did you mean none\?\): there are full, random",
        ),
        ({"task": "super_resolution", "seed": [9]}, r"--seed 9: there are 0, 1, 2; add it to study.seeds"),
    ],
)
def test_a_wrong_name_on_the_command_line_is_told(
    asked: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSPRUNE_PROJECT", str(Path(__file__).resolve().parents[1]))
    with pytest.raises(UsageError, match=words):
        study(**asked)
