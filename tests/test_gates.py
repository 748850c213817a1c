"""Blocking checks stop the flow, others tell and let it go on, in a run as on the command line; the champion's gate."""

from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
from prune_runs import settings

from rsprune_dagster.config.layout import STUDIES, Layout
from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.asset_checks import CHECKS, build_checks
from rsprune_dagster.dagster.assets import build_assets, build_pruning_assets
from rsprune_dagster.dagster.check_results import check_results
from rsprune_dagster.dagster.materialize import materialize
from rsprune_dagster.definitions import defs
from rsprune_dagster.evaluation.checks import (
    StoredEvaluation,
    no_leakage,
    not_worse_than_champion,
    read_evaluation,
    training_went_well,
)
from rsprune_dagster.evaluation.evaluate import Evaluation
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.leakage import Leak
from rsprune_dagster.evaluation.protocol import Protocol, Score
from rsprune_dagster.evaluation.writer import SampleSet, write_evaluation
from rsprune_dagster.tracking.run_recorder import folder_recorder
from rsprune_dagster.utils.errors import BlockingCheckError

MARGIN = 0.1
NETWORK = FeatureNetwork("averages", "ab" * 32, "none", 16, 48, lambda images: images)
PROTOCOL = Protocol("inception", "abc", "to 299 px", "reference", 2000, 2000, (("n_neighbours", 5),))


@dataclass(frozen=True)
class Flowed:
    """A run that went on though two checks complained. Tests change copies of its work."""

    corpus: Path
    work: Path
    said: list[str]


@pytest.fixture(scope="module")
def flowed(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Flowed:
    work = tmp_path_factory.mktemp("flowed")
    corpus = copytree(synthetic / "corpus", tmp_path_factory.mktemp("corpus") / "corpus")
    said = run(settings(corpus, synthetic / "reference", checks={"min_nmi": 0.99}), work)
    return Flowed(corpus, work, said)


def run(params: Params, work: Path, *assets: str) -> list[str]:
    """Materialize; the warnings."""
    said: list[str] = []
    layout = Layout(work / "assets", work)
    materialize(
        build_pruning_assets(params),
        params,
        layout,
        recorder=folder_recorder(layout, params.tracking),
        assets=assets,
        warn=said.append,
    )
    return said


def test_a_blocking_check_that_fails_ends_the_run_before_what_depends_on_it(synthetic: Path, tmp_path: Path) -> None:
    params = settings(synthetic / "corpus", synthetic / "reference", checks={"norm_tolerance": 1e-9})
    with pytest.raises(
        BlockingCheckError, match=r"gate failed: embeddings/unit_norms: of .* vectors, .* differ from length 1"
    ):
        run(params, tmp_path)
    assert (tmp_path / "assets" / "embeddings").is_dir()
    assert not (tmp_path / "assets" / "scene_clusters").exists()


def test_other_checks_that_fail_tell_and_let_the_run_go_on(flowed: Flowed) -> None:
    assert (flowed.work / "assets" / "pruned_subset").is_dir()
    assert [sentence.split(":")[0] for sentence in flowed.said] == [
        "reference_scenes/scenes_large_enough",
        "scene_clusters/tells_scenes_apart",
    ]


def test_an_asset_materialized_alone_is_checked_alone(flowed: Flowed, synthetic: Path, tmp_path: Path) -> None:
    work = copytree(flowed.work, tmp_path / "work")
    params = settings(flowed.corpus, synthetic / "reference", checks={"min_nmi": 0.99})
    assert run(params, work, "pruned_subset") == []


def test_a_corpus_that_lost_most_tiles_stops_until_someone_says_it_was_meant(
    flowed: Flowed, synthetic: Path, tmp_path: Path
) -> None:
    """Also a second time: it is compared with what the last subset was made from, not with what failed."""
    work, hidden = copytree(flowed.work, tmp_path / "work"), flowed.corpus / "part_0000"
    before = (work / "assets" / "pruned_subset" / "decisions.parquet").read_bytes()
    hidden.rename(tmp_path / "away")
    try:
        params = settings(flowed.corpus, synthetic / "reference", checks={"max_shrink_fraction": 0.2})
        for _ in range(2):
            with pytest.raises(BlockingCheckError, match=r"raw_corpus/not_shrunken: .* not mounted"):
                run(params, work)
        assert (work / "assets" / "pruned_subset" / "decisions.parquet").read_bytes() == before
        meant = settings(flowed.corpus, synthetic / "reference", checks={"max_shrink_fraction": 1.0})
        assert not any("not_shrunken" in sentence for sentence in run(meant, work))
    finally:
        (tmp_path / "away").rename(hidden)
    assert pq.read_metadata(work / "assets" / "pruned_subset" / "decisions.parquet").num_rows > 0


def test_every_asset_of_the_pipeline_is_checked_and_every_check_says_what_it_means() -> None:
    graph = defs.resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert keys <= {check.spec.asset_key.to_user_string() for check in CHECKS} | {*STUDIES}
    assert all((check.spec.description or "").endswith(".") for check in CHECKS)
    assert len({check.spec.key for check in CHECKS}) == len(CHECKS)


def test_jobs_run_the_checks_of_their_assets() -> None:
    params = settings([], None)
    assets = build_assets(params)
    names = {key for each in assets for key in each.keys}
    wanted = {check.spec.key for check in CHECKS if check.spec.asset_key in names}
    assert {key for each in build_checks(params, assets) for key in each.check_keys} == wanted
    in_job = defs.resolve_job_def("prune").asset_layer.asset_graph.asset_check_keys
    assert {key.name for key in in_job} >= {"conservation", "exact_count", "unit_norms"}


def test_results_are_read_back_from_the_instance() -> None:
    @dg.asset_check(asset="thing", blocking=True)
    def good_enough() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description="it is not: mend it.")

    @dg.asset
    def thing() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:
        ended = dg.materialize([thing, good_enough], instance=instance, raise_on_error=False)
        [found] = check_results(instance, ended.run_id)
    assert str(found) == "thing/good_enough: it is not: mend it." and found.blocking and not found.passed


def losses(folder: Path, *values: float) -> Path:
    (folder / "loss.csv").write_text("n_images,loss\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values)))
    return folder


def test_a_loss_that_falls_passes_and_one_that_is_nan_or_does_not_fall_fails(tmp_path: Path) -> None:
    assert training_went_well(losses(tmp_path, *(1.0 - 0.03 * i for i in range(20)))).passed
    diverged = training_went_well(losses(tmp_path, 1.0, float("nan"), 0.2))
    assert not diverged.passed and "1 of 3 losses are not finite" in diverged.sentence
    flat = training_went_well(losses(tmp_path, *([1.0] * 20)))
    assert not flat.passed and "training.n_images" in flat.sentence


def test_the_first_and_the_last_tenth_of_the_losses_are_compared(tmp_path: Path) -> None:
    ends = [1.0, 3.0], [3.0, 0.9]  # means 2 and 1.95
    found = training_went_well(losses(tmp_path, *ends[0], *([9.0] * 16), *ends[1]))
    assert found.passed and (found.figures["first_loss"], found.figures["last_loss"]) == (2.0, 1.95)
    assert not training_went_well(losses(tmp_path, *ends[0], *([0.0] * 16), 3.0, 1.0)).passed


def test_too_few_losses_are_not_asked_to_fall(tmp_path: Path) -> None:
    verdict = training_went_well(losses(tmp_path, 1.20, 1.22, 1.21))
    assert verdict.passed and "too few" in verdict.sentence
    assert not training_went_well(losses(tmp_path, 1.20, float("inf"))).passed


def scored(
    value: float, *, half_width: float = 1.0, protocol: Protocol = PROTOCOL, leaked: int = 0
) -> StoredEvaluation:
    """An evaluation with one distance."""
    score = Score("fid", value, value - half_width, value + half_width, 0.95, 200, protocol, False)
    return StoredEvaluation({"n_leaked_reference": float(leaked)}, {"fid": score}, ())


def against(champion: StoredEvaluation | None, evaluation: StoredEvaluation) -> tuple[bool, str]:
    verdict = not_worse_than_champion(evaluation, champion, max_fid_loss=MARGIN)
    return verdict.passed, verdict.sentence


def test_a_distance_may_be_better_than_the_champions_or_worse_by_less_than_the_margin() -> None:
    assert against(scored(50), scored(30))[0]
    assert against(scored(50), scored(54.9, half_width=0.1))[0]
    assert against(scored(50), scored(55, half_width=0.1))[0]
    assert against(None, scored(50))[0]


def test_a_distance_that_is_worse_by_more_than_the_margin_fails() -> None:
    passed, sentence = against(scored(50), scored(56))
    assert not passed
    assert "fid is 56 where the champion has 50: worse by more than 10%" in sentence and "rsprune restore" in sentence


def test_a_difference_that_may_be_chance_does_not_fail() -> None:
    assert against(scored(50, half_width=20), scored(56, half_width=20))[0]


def test_unequal_protocols_are_not_compared_and_that_is_said() -> None:
    other = replace(PROTOCOL, n_generated=500)
    passed, sentence = against(scored(50, protocol=other), scored(99))
    assert passed and "not compared" in sentence and "protocols differ" in sentence


def test_a_leaked_tile_fails() -> None:
    assert no_leakage(scored(1)).passed
    verdict = no_leakage(scored(1, leaked=2))
    assert not verdict.passed and "flatter the model" in verdict.sentence


def test_the_leak_gate_says_what_was_compared() -> None:
    def said(**counts: float) -> str:
        everything = {"n_held_out_all": 500.0, "n_training_tiles_all": 9000.0}
        return no_leakage(StoredEvaluation({"n_leaked_held_out": 0.0, **everything, **counts}, {}, ())).sentence

    whole = said(n_held_out=500, n_training_tiles=9000)
    assert "trained on: all 500 held-out tiles were compared with all 9,000 training tiles." in whole
    part = said(n_held_out=500, n_training_tiles=2000)
    assert "trained on, by content: all 500 held-out tiles" in part
    assert "Nearly equal tiles were sought among 500 and 2,000 of them (evaluation.max_tiles)." in part


def test_the_gates_read_what_an_evaluation_writes(tmp_path: Path) -> None:
    score, leaked = scored(40).scores["fid"], Leak(evaluation=0, training=3, exact=True)
    evaluation = Evaluation((score,), {}, {}, {}, {"held_out": (leaked,)}, ("1 tile of the held_out set is kept.",))
    write_evaluation(tmp_path, evaluation, SampleSet(np.zeros((0, 8, 8, 3), np.uint8), (), (), ()), {}, network=NETWORK)
    told = read_evaluation({path.name: path for path in tmp_path.iterdir()})
    assert told.scores == {"fid": score} and told.leaks == evaluation.leak_sentences
    verdict = no_leakage(told)
    assert not verdict.passed and "1 tile of the held_out set is kept." in verdict.sentence
    assert not not_worse_than_champion(told, scored(30), max_fid_loss=MARGIN).passed
