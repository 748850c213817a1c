"""Which tiles trained the champion: found by name, also after another subset took the place of the one it had."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from lineage_worlds import World, new_world

from rsprune_dagster.tracking import champion_origin as champion
from rsprune_dagster.tracking.champion import Verdict, subset_of
from rsprune_dagster.tracking.champion_origin import training_tiles
from rsprune_dagster.tracking.find import find_one
from rsprune_dagster.tracking.run_log import Record, this_process
from rsprune_dagster.utils.errors import RunError, UsageError

CHECKPOINT = "ab" * 16 + ".dir"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Half of the tiles are kept. Its subset has the ledger alone, so that stands for the table of the kept tiles."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    monkeypatch.setattr(champion, "TILES", "decisions.parquet")
    made = new_world(tmp_path / "project")
    made.materialize("run-first", keep=0.5)
    made.commit("half")
    return made


def crown(world: World) -> str:
    """A checkpoint trained on the present subset becomes the champion; the subset's version."""
    subset = world.present()["pruned_subset"]
    made = Record("run-train", "diffusion_checkpoint", "FINISHED", 1_700_000_500.0, this_process())
    made = replace(made, ended_at=1_700_000_501.0, inputs={"pruned_subset": subset}, data_version=CHECKPOINT)
    verdict = asdict(Verdict(CHECKPOINT, CHECKPOINT, "", "it becomes the champion as the first that was evaluated"))
    world.run_log.write(made)
    world.run_log.write(replace(made, run_id="run-judge", asset="evaluation_metrics", inputs={}, verdict=verdict))
    return subset


def test_the_champion_has_a_name_and_its_tiles_are_those_it_was_trained_on(world: World) -> None:
    subset = crown(world)
    assert find_one(world.history(), "champion").data_version == CHECKPOINT
    found = training_tiles(world.history())
    assert found.subset == subset == subset_of(world.run_log, CHECKPOINT)
    assert found.path.is_relative_to(world.assets)
    assert found.best(2) == [(1, "a/00", "sea"), (2, "a/01", "city")]


def test_they_stay_the_same_when_another_subset_lies_there(world: World) -> None:
    before = crown(world)
    first = training_tiles(world.history()).best(20)
    world.materialize("run-second", tiles="b", keep=0.25)
    found = training_tiles(world.history())
    assert found.subset == before != world.present()["pruned_subset"]
    assert found.best(20) == first and not found.path.is_relative_to(world.assets)


def test_without_a_champion_or_its_tiles_a_sentence_says_what_to_do(world: World) -> None:
    with pytest.raises(UsageError, match="no champion yet: `rsprune materialize evaluation_metrics`"):
        training_tiles(world.history())
    subset = crown(world)
    world.materialize("run-second", keep=0.25)
    world.cache.path(subset).unlink()
    with pytest.raises(RunError, match=f"rsprune restore {subset}"):
        training_tiles(world.history())
