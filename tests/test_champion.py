"""Which checkpoint is the champion, by the run log and in MLflow's model registry."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prune_runs import PROJECT

from rsprune_dagster.config.params import EvaluationParams, load
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.tracking.champion import ALIAS, Verdict, current_champion, judge, read_mlflow_alias
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.mlflow_registry import SCORE, VERDICT, model_name
from rsprune_dagster.tracking.mlflow_sync import sync
from rsprune_dagster.tracking.run_log import Record, RunLog

NAME = "kernel_descriptor"
GONE = "another-boot:1:1"
"""A process that is no more."""
PROTOCOL = Protocol("descriptor", "", "none", "held-out", 100, 320)
MODEL_NAME = model_name("rsprune")


def score(value: float, *, half: float = 0.1, protocol: Protocol = PROTOCOL) -> Score:
    return Score(NAME, value, value - half, value + half, 0.95, 50, protocol, larger_is_better=False)


def params(**changes: Any) -> EvaluationParams:
    return load(PROJECT / "params.yaml").evaluation.model_copy(update=changes)


@dataclass(frozen=True)
class World:
    """A DVC project whose run log gets checkpoints and evaluations, one a second."""

    root: Path

    @property
    def run_log(self) -> RunLog:
        return RunLog(self.root / ".state" / "lineage")

    def train(self, content: str, asset: str = "diffusion_checkpoint", **recorded: Any) -> str:
        """A checkpoint of this content is recorded and lies in DVC's cache; its version."""
        folder = self.root / "assets" / asset
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "weights").write_text(content)
        tree = tree_of(folder)
        DvcCache.of(self.root).keep(folder, tree)
        self._record(asset, data_version=tree.digest, **recorded)
        return tree.digest

    def evaluate(
        self,
        checkpoint: str,
        scores: Sequence[Score],
        *,
        metrics: Mapping[str, float] | None = None,
        left_out: Mapping[str, str] | None = None,
        recorded: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Verdict:
        """What an evaluation decides, recorded."""
        made = judge(self.run_log, checkpoint, scores, metrics or {}, left_out or {}, params(**changes))
        self._record("evaluation_metrics", data_version="e" * 32 + ".dir", verdict=asdict(made), **(recorded or {}))
        return made

    def _record(self, asset: str, **values: Any) -> None:
        number = len(self.run_log.records())
        started = time.time() - 1000 + number
        record = Record(f"run-{number}", asset, "FINISHED", started, GONE, ended_at=started + 0.5)
        self.run_log.write(replace(record, **values))


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "project" / ".dvc").mkdir(parents=True)
    return World(tmp_path / "project")


def test_the_first_that_was_measured_is_the_champion(world: World) -> None:
    first = world.train("a")
    made = world.evaluate(first, [score(5)])
    assert made.moves and made.champion == first and "first" in made.reason
    standing = current_champion(world.run_log)
    assert standing is not None and standing.checkpoint == first


@pytest.mark.parametrize(("value", "takes"), [(4.0, True), (4.9, False), (5.0, False), (6.0, False)])
def test_another_takes_its_place_only_beyond_the_interval_of_the_difference(
    world: World, value: float, takes: bool
) -> None:
    first, second = world.train("a"), world.train("b")
    world.evaluate(first, [score(5)])
    made = world.evaluate(second, [score(value)])
    assert made.moves == takes and made.champion == (second if takes else first)
    assert made.previous == first and first[:8] in made.reason


def test_a_margin_is_added_to_the_interval(world: World) -> None:
    first, second = world.train("a"), world.train("b")
    world.evaluate(first, [score(5)])
    assert not world.evaluate(second, [score(4)], champion_margin=0.9).moves
    assert world.evaluate(second, [score(4)], champion_margin=0.5).moves


def test_copies_score_well_and_do_not_count(world: World) -> None:
    first, second = world.train("a"), world.train("b")
    world.evaluate(first, [score(5)])
    made = world.evaluate(second, [score(1)], metrics={"singled_out_pixels": 0.2})
    assert not made.moves and "20.0%" in made.reason and "champion_max_copies" in made.reason


def test_another_protocol_is_not_compared_and_the_reason_says_what_differs(world: World) -> None:
    first, second = world.train("a"), world.train("b")
    world.evaluate(first, [score(5)])
    made = world.evaluate(second, [score(1, protocol=replace(PROTOCOL, n_generated=999))])
    assert not made.moves and made.champion == first and "n_generated 999 against 320" in made.reason


@pytest.mark.parametrize(
    ("asked", "left_out", "said"),
    [(NAME, {NAME: "too few tiles"}, "too few tiles"), ("", {}, "is empty"), ("kernel_descripter", {}, NAME)],
)
def test_without_the_deciding_score_there_is_no_champion_and_the_reason_says_why(
    world: World, asked: str, left_out: dict[str, str], said: str
) -> None:
    scores = [] if left_out else [score(1)]
    made = world.evaluate(world.train("a"), scores, left_out=left_out, champion_score=asked)
    assert made.champion == "" and said in made.reason
    assert current_champion(world.run_log) is None


def test_the_champion_evaluated_again_stays(world: World) -> None:
    first = world.train("a")
    world.evaluate(first, [score(5)])
    made = world.evaluate(first, [score(9)])
    assert not made.moves and made.champion == first and "already" in made.reason


def test_the_registry_has_each_checkpoint_once_and_the_alias_follows(world: World, uri: str) -> None:
    from mlflow import MlflowClient

    first, second, third = (world.train(letter) for letter in "abc")
    client = MlflowClient(uri)
    world.evaluate(first, [score(5)])
    assert _deliver(world, uri) == 0
    assert _champion(client) == first
    world.evaluate(second, [score(4)])
    world.evaluate(third, [score(4.5)])
    assert _deliver(world, uri) == 0
    assert _champion(client) == second
    versions = client.search_model_versions(f"name = '{MODEL_NAME}'")
    assert sorted(version.tags["rsprune.data_version"] for version in versions) == sorted([first, second, third])
    assert all(SCORE in version.tags and VERDICT in version.tags for version in versions)
    of_third = next(version for version in versions if version.tags["rsprune.data_version"] == third)
    assert "stays" in of_third.tags[VERDICT]
    assert _deliver(world, uri) == 0  # again: nothing is registered twice
    assert len(client.search_model_versions(f"name = '{MODEL_NAME}'")) == 3


@pytest.mark.parametrize("asset", ["super_resolution_checkpoint", "semantic_synthesis_checkpoint"])
def test_a_fine_tuned_checkpoint_is_a_model_of_its_own_that_names_its_parent(
    asset: str, world: World, uri: str
) -> None:
    from mlflow import MlflowClient

    parent = world.train("a")
    child = world.train("b", asset, inputs={"diffusion_checkpoint": parent}, metrics={"psnr_mean": 25.0})
    assert _deliver(world, uri) == 0
    client = MlflowClient(uri)
    [version] = client.search_model_versions(f"name = '{model_name('rsprune', asset)}'")
    assert (version.tags["rsprune.data_version"], version.tags["rsprune.parent"]) == (child, parent)
    models = client.search_logged_models([client.get_experiment_by_name("rsprune").experiment_id])
    [model] = [each for each in models if each.name == asset]
    assert (model.tags["rsprune.data_version"], model.tags["rsprune.parent"]) == (child, parent)
    assert [(each.key, each.value) for each in model.metrics] == [("psnr_mean", 25.0)]
    [foundation] = client.search_model_versions(f"name = '{MODEL_NAME}'")
    assert foundation.tags["rsprune.data_version"] == parent and "rsprune.parent" not in foundation.tags


def test_what_is_registered_is_the_checkpoint_s_own_bytes(world: World, uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient, artifacts

    first = world.train("the weights")
    world.evaluate(first, [score(5)])
    _deliver(world, uri)
    source = MlflowClient(uri).get_model_version_by_alias(MODEL_NAME, ALIAS).source
    folder = artifacts.download_artifacts(source, dst_path=str(tmp_path / "down"), tracking_uri=uri)
    assert tree_of(Path(folder)).digest == first


def test_scores_hang_on_the_checkpoint_and_the_subset_it_was_trained_on(world: World, uri: str) -> None:
    from mlflow import MlflowClient

    first, subset = world.train("a"), "5" * 32 + ".dir"
    inputs = {"diffusion_checkpoint": first, "pruned_subset": subset}
    world.evaluate(first, [score(5)], recorded={"inputs": inputs, "metrics": {NAME: 5.0}})
    assert _deliver(world, uri) == 0
    world.evaluate(first, [score(5)], recorded={"inputs": inputs, "metrics": {NAME: 6.0}})
    assert _deliver(world, uri) == 0
    client = MlflowClient(uri)
    runs = client.search_runs(
        [client.get_experiment_by_name("rsprune").experiment_id], "tags.`mlflow.parentRunId` LIKE '%'"
    )
    in_order = sorted(runs, key=lambda run: run.info.start_time)
    trained, *evaluated = (client.get_run(run.info.run_id) for run in in_order)
    [model] = client.search_logged_models([trained.info.experiment_id])
    assert (model.status, model.source_run_id) == ("READY", trained.info.run_id)
    assert [each.model_id for each in trained.outputs.model_outputs] == [model.model_id]
    assert all([each.model_id for each in run.inputs.model_inputs] == [model.model_id] for run in evaluated)
    scores = {(each.run_id, each.key, each.value, each.dataset_name, each.dataset_digest) for each in model.metrics}
    assert scores == {
        (run.info.run_id, NAME, value, "pruned_subset", subset) for run, value in zip(evaluated, (5, 6), strict=True)
    }


def test_an_alias_that_a_person_moved_is_what_the_next_is_compared_with(world: World, uri: str) -> None:
    from mlflow import MlflowClient

    first, second, third = (world.train(letter) for letter in "abc")
    client = MlflowClient(uri)
    world.evaluate(first, [score(3)])
    world.evaluate(second, [score(5)])
    _deliver(world, uri)
    assert _champion(client) == first
    versions = client.search_model_versions(f"name = '{MODEL_NAME}'")
    moved = next(version for version in versions if version.tags["rsprune.data_version"] == second)
    client.set_registered_model_alias(MODEL_NAME, ALIAS, moved.version)
    world.evaluate(third, [score(4)])  # worse than the first, which the run log holds for the champion
    assert _deliver(world, uri) == 0
    assert _champion(client) == second
    seen = read_mlflow_alias(world.run_log)
    assert seen is not None and seen["checkpoint"] == second
    fourth = world.train("d")
    assert world.evaluate(fourth, [score(4)]).previous == second
    _deliver(world, uri)
    assert _champion(client) == fourth


def test_a_decision_waits_for_a_registry_that_is_away(world: World, uri: str) -> None:
    from mlflow import MlflowClient

    first = world.train("a")
    assert world.evaluate(first, [score(5)]).moves
    assert _deliver(world, "http://127.0.0.1:9") == 2  # nobody listens there
    assert _deliver(world, uri) == 0
    assert _champion(MlflowClient(uri)) == first


def _deliver(world: World, uri: str) -> int:
    """How many records still wait."""
    return sync(world.run_log, uri, "rsprune", world.root).n_pending


def _champion(client: Any) -> str:
    return str(client.get_model_version_by_alias(MODEL_NAME, ALIAS).tags["rsprune.data_version"])
