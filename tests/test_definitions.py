"""The definitions: quick to load, the graph as drawn, and what a materialization records."""

import json
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.execution.api import create_execution_plan
from dagster._core.storage.tags import MAX_RUNTIME_SECONDS_TAG
from prune_runs import PROJECT, settings

from rsprune_dagster.config.layout import STUDIES, Layout
from rsprune_dagster.config.params import load
from rsprune_dagster.dagster.assets import build_assets
from rsprune_dagster.dagster.jobs import JOBS
from rsprune_dagster.dagster.metadata import rounded
from rsprune_dagster.definitions import build_defs, defs
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.run_recorder import folder_recorder

DEPENDENCIES = {
    "raw_corpus": set(),
    "reference_scenes": set(),
    "entropy_scores": {"raw_corpus", "reference_scenes"},
    "embeddings": {"raw_corpus", "reference_scenes", "entropy_scores"},
    "scene_clusters": {"embeddings"},
    "pruned_subset": {"raw_corpus", "entropy_scores", "embeddings", "scene_clusters"},
}
TRAINING = {
    "diffusion_checkpoint": {"raw_corpus", "pruned_subset"},
    "evaluation_metrics": {"raw_corpus", "pruned_subset", "diffusion_checkpoint"},
    "super_resolution_checkpoint": {"raw_corpus", "pruned_subset", "diffusion_checkpoint"},
    "semantic_synthesis_checkpoint": {"diffusion_checkpoint"},
}
STUDY = {name: {"raw_corpus", "entropy_scores", "embeddings", "scene_clusters", "pruned_subset"} for name in STUDIES}
REPORT = {"pruning_report": {*DEPENDENCIES, *TRAINING}}
"""The pruning half of the graph, as docs/architecture.md draws it."""

HEAVY = ("torch", "torchvision", "faiss", "sklearn", "matplotlib", "rasterio", "numba", "scipy")


def _in_a_new_process(code: str) -> str:
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    """So it is quick. How many seconds that is depends on the processor."""
    code = "import json, sys; import rsprune_dagster.definitions; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(_in_a_new_process(code))
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_the_command_line_answers_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys; import rsprune_dagster.cli.commands; print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    assert _in_a_new_process(code.replace("sys.argv[1:]", str([*HEAVY, "dagster"]))) == "[]"


def test_the_graph_is_the_one_that_is_drawn() -> None:
    graph = defs.resolve_asset_graph()
    found = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert found == {**DEPENDENCIES, **TRAINING, **REPORT, **STUDY}


def test_every_asset_says_what_it_is_and_whose() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and len(node.description.split()) > 10, key
        assert node.group_name in ("corpus", "pruning", "training", "evaluation", "downstream"), key
        assert node.owners and node.kinds and node.code_version, key


def test_the_launchpad_offers_every_parameter_of_an_asset_with_its_default_and_its_meaning() -> None:
    params = load(PROJECT / "params.yaml")
    for asset in build_assets(params):
        fields = asset.op.config_schema.config_type.fields  # type: ignore[union-attr]
        assert fields, asset.key
        for name, field in fields.items():
            assert field.default_provided and field.default_value is not None, (asset.key, name)
            assert field.description and len(field.description.split()) > 1, (asset.key, name)


def test_parameters_without_comments_are_offered_without_a_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load(PROJECT / "params.yaml")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    monkeypatch.setenv("RSPRUNE_PROJECT", str(tmp_path))
    [offered] = [asset for asset in build_assets(params) if asset.key.to_user_string() == "pruned_subset"]
    fields = offered.op.config_schema.config_type.fields  # type: ignore[union-attr]
    assert {name: field.description for name, field in fields.items()} == dict.fromkeys(fields)


def test_what_hangs_is_ended_sooner_where_a_job_is_known_to_be_short() -> None:
    monitoring = yaml.safe_load((PROJECT / "dagster.yaml").read_text())["run_monitoring"]
    assert monitoring["enabled"]
    limits = {job.name: float(job.tags[MAX_RUNTIME_SECONDS_TAG]) for job in JOBS if MAX_RUNTIME_SECONDS_TAG in job.tags}
    assert {"prune", "evaluate", "report"} == set(limits)
    assert all(0 < seconds < monitoring["max_runtime_seconds"] for seconds in limits.values())


def test_the_job_is_the_whole_pruning_half() -> None:
    job = defs.resolve_job_def("prune")
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(DEPENDENCIES)


@pytest.mark.parametrize(
    ("name", "more"), [("study", ()), ("study_super_resolution", ("none",)), ("study_semantic_synthesis", ("none",))]
)
def test_a_study_has_a_partition_for_each_arm_and_seed_and_is_no_part_of_everything(
    name: str, more: tuple[str, ...]
) -> None:
    job = defs.resolve_job_def(name)
    params = load(PROJECT / "params.yaml").study
    assert job.partitions_def is not None
    keys = job.partitions_def.get_partition_keys()
    assert set(keys) == {f"{arm}|{seed}" for arm in (*params.arms, *more) for seed in params.seeds}
    config = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    limits = config["concurrency"]["runs"]["tag_concurrency_limits"]
    assert [(each["key"], each["limit"]) for each in limits if each["key"] in job.tags] == [("rsprune/study", 1)]
    everything = defs.resolve_job_def("everything").asset_layer.executable_asset_keys
    assert {key.to_user_string() for key in everything} == {*DEPENDENCIES, *TRAINING, *REPORT}


def test_a_bad_value_in_the_launchpad_ends_in_a_sentence(tmp_path: Path) -> None:
    job = _pipeline(tmp_path, tmp_path).resolve_job_def("prune")
    config = {"ops": {"raw_corpus": {"config": {"sources": [str(tmp_path / "nowhere")]}}}}
    ended = job.execute_in_process(run_config=config, asset_selection=[dg.AssetKey("raw_corpus")], raise_on_error=False)
    [failure] = [event for event in ended.all_events if event.is_step_failure]
    assert "no such file or folder" in str(failure.event_specific_data.error)


@pytest.mark.parametrize(
    ("asset", "config", "sentence"),
    [
        ("raw_corpus", {"tile_size_px": 1}, "tile_size_px is 1"),
        ("raw_corpus", {"overlap_px": 256}, "overlap_px 256 must be less than tile_size_px 256"),
        ("pruned_subset", {"keep_fraction": 15.0}, "give 0.15 to keep 15 %"),
        ("pruned_subset", {"strategy": "k_centre"}, "did you mean k_center"),
        ("embeddings", {"backbone": "mobilnet_v2"}, "mobilenet_v2"),
        ("pruning_report", {"keep_fractions": [2.0]}, "keep_fractions"),
        ("semantic_synthesis_checkpoint", {"classes": ["#00 a", "#000000 b"]}, "the palette has '#00 a'"),
        ("semantic_synthesis_checkpoint", {"classes": ["#000000 a"]}, "1 classes, expected 2 to 254"),
    ],
)
def test_a_value_that_the_command_line_refuses_is_refused_when_a_run_is_launched(
    asset: str, config: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    """An execution plan is what Dagster makes of a launch before there is a run."""
    job = _pipeline(tmp_path, tmp_path).resolve_job_def("everything")
    with pytest.raises(dg.DagsterInvalidConfigError, match=re.escape(sentence)):
        create_execution_plan(job, run_config={"ops": {asset: {"config": config}}})
    assert create_execution_plan(job, run_config={"ops": {asset: {"config": {}}}})
    assert not (tmp_path / "lineage").exists()


def test_the_log_says_which_change_of_the_launchpad_has_no_effect(synthetic: Path, tmp_path: Path) -> None:
    job = _pipeline(synthetic, tmp_path).resolve_job_def("prune")

    def warned(**ops: dict[str, object]) -> list[str]:
        config = {"ops": {asset: {"config": values} for asset, values in ops.items()}}
        with dg.DagsterInstance.ephemeral() as instance:
            assets = [dg.AssetKey(name) for name in ("raw_corpus", "reference_scenes", "entropy_scores")]
            job.execute_in_process(run_config=config, asset_selection=assets, instance=instance)
            [run] = instance.get_runs()
            return [log.user_message for log in instance.all_logs(run.run_id) if "has no effect" in log.user_message]

    assert warned() == []
    [said] = warned(entropy_scores={"threshold_bits": 1.1})
    assert "entropy.threshold_bits has no effect here: it needs entropy.threshold_from=bits" in said
    assert warned(entropy_scores={"threshold_bits": 1.1}, reference_scenes={"sources": []}) == []


def test_a_materialization_records_figures_pictures_and_the_hash_of_its_folder(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with dg.DagsterInstance.get() as instance:
        job = _pipeline(synthetic, tmp_path).resolve_job_def("prune")
        assert job.execute_in_process(instance=instance).success
        recorded = {name: instance.get_latest_materialization_event(dg.AssetKey(name)) for name in DEPENDENCIES}
        for name, event in recorded.items():
            assert event is not None and event.asset_materialization is not None
            _check(name, event.asset_materialization, tmp_path / "assets" / name)
    figures = recorded["pruned_subset"].asset_materialization.metadata  # type: ignore[union-attr]
    assert figures["n_kept"].value == round(0.15 * figures["n_readable"].value)


def test_figures_are_shown_with_six_digits_and_without_empty_texts() -> None:
    shown = rounded({"psnr": 29.136343955993652, "rate": 1.23456789e-7, "n": 12_345_678, "said": "", "name": "a"})
    assert shown == {"psnr": 29.1363, "rate": 1.23457e-07, "n": 12_345_678, "name": "a"}


def test_docs_name_every_asset() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    assert [name for name in DEPENDENCIES if not re.search(rf"\b{name}\b", text)] == []


def _check(name: str, recorded: dg.AssetMaterialization, folder: Path) -> None:
    values = recorded.metadata.values()
    assert any(isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue) for value in values), name
    pictures = [value for value in values if isinstance(value, dg.MarkdownMetadataValue)]
    assert name == "embeddings" or any("data:image/" in picture.value for picture in pictures), name
    assert name == "embeddings" or next(iter(values)) in pictures, "pictures stand before figures"
    assert recorded.tags and recorded.tags["dagster/data_version"] == tree_of(folder).digest


def _pipeline(made: Path, work: Path) -> dg.Definitions:
    params = settings(made / "corpus", made / "reference")
    layout = Layout.of_project(work)
    return build_defs(params, layout, recorder=folder_recorder(layout, params.tracking))
