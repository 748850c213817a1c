"""The asset pruning_study: partitions add their runs, what is done stays, tiles that were trained on stop it."""

import csv
import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from prune_runs import Outcome, settings
from study_runs import StudyWorld

from rsprune_dagster.config.layout import STUDIES
from rsprune_dagster.config.params import Params
from rsprune_dagster.definitions import build_defs
from rsprune_dagster.study.results import read_results
from rsprune_dagster.tracking.run_recorder import folder_recorder
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.viz.pictures import study_pictures

ARMS = ("full", "rsprune-0.2")


class World(StudyWorld):
    """A corpus of 300 tiles."""

    def params(self, **study: Any) -> Params:
        return settings(
            self.made / "corpus",
            self.made / "reference",
            training={"image_size_px": 16, "batch_size": 16, "precision": "float32"},
            evaluation={
                "sources": [str(self.made / "held_out")],
                "network_size_px": 32,
                "n_samples": 40,
                "sample_steps": 2,
            },
            study={"arms": list(ARMS), "seeds": [0, 1], "checkpoints": [16, 32], **study},
        )

    def run(self, arm: str, seed: int, params: Params | None = None) -> Path:
        return self.materialize("pruning_study", arm, seed, params or self.params())

    @property
    def folder(self) -> Path:
        return self.layout.assets / "pruning_study"


@pytest.fixture(scope="module")
def world(synthetic: Path, pruned: Outcome, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.of(synthetic, pruned, tmp_path_factory.mktemp("pruning_study"))


def test_each_partition_adds_its_run_and_keeps_the_others(world: World) -> None:
    seen: list[tuple[str, int]] = []
    before: dict[str, bytes] = {}
    for seed in (0, 1):
        for arm in ARMS:
            folder = world.run(arm, seed)
            seen.append((arm, seed))
            assert sorted((one.arm, one.seed) for one in read_results(folder)) == sorted(seen)
            assert all((folder / name).read_bytes() == content for name, content in before.items())
            before = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/[0-9]*.json")}
    summary = json.loads((folder / "summary.json").read_text())
    assert [arm["arm"] for arm in summary["arms"]] == list(ARMS) and summary["arms"][1]["to_full"]["n_seeds"] == 2
    with (folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    n_scores = len({row["score"] for row in rows})
    assert len(rows) == len(seen) * 2 * n_scores
    pictures = study_pictures(folder)
    assert {"convergence", "arms", "verdicts", "samples of the same noise"} == set(pictures)


def test_the_job_of_the_web_ui_adds_a_partition_to_the_asset_that_has_no_button_of_its_own(world: World) -> None:
    params, layout = world.params(), world.layout
    recorder = folder_recorder(layout, params.tracking)
    defs = build_defs(params, layout, recorder=recorder)
    graph = defs.resolve_asset_graph()
    told = {key.to_user_string() for key in graph.get_all_asset_keys() if not graph.get(key).is_executable}
    assert told == {*STUDIES}
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("study")
        assert job.execute_in_process(partition_key="full|1", instance=instance).success
        event = instance.get_latest_materialization_event(dg.AssetKey("pruning_study"))
        assert event is not None and event.asset_materialization is not None
        assert event.asset_materialization.partition == "full|1"
    assert ("full", 1) in {(one.arm, one.seed) for one in read_results(world.folder)}


def test_a_study_with_other_numbers_starts_anew_beside_the_old_one(world: World) -> None:
    world.run("full", 0)
    other = world.params().with_values({"evaluation": {"n_samples": 41}})
    assert [one.seed for one in read_results(world.run("full", 0, other))] == [0]
    assert len(read_results(world.run("full", 0))) >= 1  # the old one is still there, and not done again


def test_held_out_tiles_that_are_in_the_corpus_stop_the_study(world: World) -> None:
    leaking = _labelled(world.made / "corpus", world.work / "leaking")
    leaky = world.params().with_values({"evaluation": {"sources": [str(leaking)]}})
    with pytest.raises(RunError, match="held-out tiles are in the training set"):
        world.run("full", 0, leaky)


def test_without_held_out_tiles_there_is_no_study(world: World) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.sources"):
        world.run("full", 0, world.params().with_values({"evaluation": {"sources": []}}))


def _labelled(corpus: Path, folder: Path) -> Path:
    """Some of the corpus' own tiles as two scenes."""
    images = sorted(path for path in corpus.rglob("*") if path.suffix in (".jpg", ".png"))[:40]
    for number, image in enumerate(images):
        scene = folder / ("a", "b")[number % 2]
        scene.mkdir(parents=True, exist_ok=True)
        (scene / f"{number}{image.suffix}").write_bytes(image.read_bytes())
    return folder
