"""What starts by itself, and what does not: the look for new tiles, retries, the webhook, the one switch."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from prune_runs import settings

from rsprune_dagster.config.layout import STUDIES, Layout
from rsprune_dagster.corpus.fingerprint import Fingerprint, fingerprint_of
from rsprune_dagster.dagster import gpu_pool
from rsprune_dagster.dagster.assets import build_assets
from rsprune_dagster.dagster.automation_conditions import ON_REQUEST, with_conditions
from rsprune_dagster.dagster.materialize import PROCESS, end_killed_runs
from rsprune_dagster.dagster.sensors import NewTilesCursor
from rsprune_dagster.dagster.study_job import study_jobs
from rsprune_dagster.dagster.user_errors import is_transient, surface_user_errors
from rsprune_dagster.dagster.webhook import message, post
from rsprune_dagster.definitions import build_defs, defs
from rsprune_dagster.tracking.run_recorder import folder_recorder
from rsprune_dagster.utils.errors import RunError, UsageError


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """A folder of files that look like tiles: nobody reads them here."""
    folder = tmp_path / "tiles"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "sub/c.png", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_glimpse_counts_files_and_does_not_change_by_itself(tiles: Path) -> None:
    assert fingerprint_of([str(tiles)]).n_files == 3
    assert fingerprint_of([str(tiles)]) == fingerprint_of([str(tiles)])


@pytest.mark.parametrize("change", ["come", "go", "written anew", "named otherwise"])
def test_a_glimpse_changes_with_the_files(change: str, tiles: Path) -> None:
    before = fingerprint_of([str(tiles)])
    if change == "come":
        (tiles / "sub" / "d.png").write_bytes(b"d")
    elif change == "go":
        (tiles / "a.jpg").unlink()
    elif change == "written anew":
        (tiles / "a.jpg").write_bytes(b"longer than before")
    else:
        (tiles / "a.jpg").rename(tiles / "z.jpg")
    assert fingerprint_of([str(tiles)]).fingerprint != before.fingerprint


def test_a_glimpse_does_not_mind_files_that_are_no_tiles(tiles: Path) -> None:
    before = fingerprint_of([str(tiles)])
    (tiles / "notes.txt").write_text("more")
    assert fingerprint_of([str(tiles)]) == before


def test_a_glimpse_reads_no_tile_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("a.jpg", "sub/b.jpg"):
        fs.pipe(f"/glimpsed/{name}", b"x")
    monkeypatch.setattr(type(fs), "cat_file", _refuse)
    monkeypatch.setattr(type(fs), "_open", _refuse)
    before = fingerprint_of(["memory://glimpsed"])
    assert before.n_files == 2
    monkeypatch.undo()
    fs.pipe("/glimpsed/sub/c.jpg", b"x")
    assert fingerprint_of(["memory://glimpsed"]).n_files == 3


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("a tile was read")


SCANNED = {"n_files": 3, "fingerprint": "old"}
OLD, NEW, NEWER = Fingerprint(3, "old"), Fingerprint(5, "new"), Fingerprint(6, "newer")


def looks(*seen: Fingerprint, scanned: dict[str, Any] | None = None) -> list[str]:
    """The run keys of looks that follow each other, the memory going through Dagster's cursor."""
    cursor, keys = None, []
    for each in seen:
        memory, key, why = NewTilesCursor.parse(cursor).next(each, SCANNED if scanned is None else scanned)
        assert why
        cursor, keys = json.dumps(asdict(memory)), [*keys, key]
    return keys


def test_without_new_tiles_nothing_is_started() -> None:
    assert looks(OLD, OLD, OLD) == ["", "", ""]


def test_new_tiles_are_acted_on_once_and_only_when_they_stand_still() -> None:
    assert looks(OLD, NEW, NEW, NEW) == ["", "", "1-new", ""]
    assert looks(NEW, NEWER, NEWER, NEWER) == ["", "", "1-newer", ""]


def test_a_corpus_that_was_never_scanned_is_new() -> None:
    assert looks(OLD, OLD, scanned={}) == ["", "1-old"]


def test_files_that_come_back_to_an_earlier_state_are_a_change_with_a_key_of_its_own() -> None:
    assert looks(NEW, NEW, NEWER, NEWER, NEW, NEW) == ["", "1-new", "", "2-newer", "", "3-new"]


def test_a_cursor_of_another_form_is_the_first_look() -> None:
    assert (
        NewTilesCursor.parse("nonsense")
        == NewTilesCursor.parse('{"other": 1}')
        == NewTilesCursor.parse(None)
        == NewTilesCursor()
    )


def test_nothing_starts_unasked_and_one_setting_turns_all_of_it_on(tmp_path: Path) -> None:
    assert _statuses(defs) == {"STOPPED"}
    params = settings(tmp_path, None, automation={"enabled": True})
    layout = Layout(tmp_path, tmp_path)
    on = build_defs(params, layout, recorder=folder_recorder(layout, params.tracking))
    assert _statuses(on) == {"RUNNING"}


def _statuses(definitions: dg.Definitions) -> set[str]:
    repository = definitions.get_repository_def()
    started = [*repository.schedule_defs, *repository.sensor_defs]
    assert {each.name for each in started} == {"weekly_refresh", "new_tiles", "follow_up", "tell_failure"}
    return {each.default_status.value for each in started}


def test_what_is_made_from_others_follows_them_and_roots_wait_to_be_asked() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        condition = graph.get(key).automation_condition
        assert (condition is None) == (key.to_user_string() in ON_REQUEST), key


@pytest.mark.parametrize("schedule", ["every monday", "* * * *", ""])
def test_a_schedule_that_is_no_cron_is_refused_with_an_example(schedule: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected five fields"):
        settings(tmp_path, None, automation={"schedule": schedule})


def test_a_training_follows_a_sound_subset_with_the_schedule_and_not_before() -> None:
    """The subset's content and its blocking check are played; the conditions are the pipeline's own."""
    played = {"version": "1", "sound": True}

    @dg.asset
    def pruned_subset() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(data_version=dg.DataVersion(str(played["version"])))

    @dg.asset_check(asset=pruned_subset, blocking=True)
    def sound() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=bool(played["sound"]))

    @dg.asset(deps=[pruned_subset])
    def diffusion_checkpoint() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(data_version=dg.DataVersion(f"of {played['version']}"))

    @dg.asset(deps=[diffusion_checkpoint])
    def evaluation_metrics() -> None: ...

    params = settings(Path("x"), None, automation={"schedule": "0 3 * * 1"}).automation
    assets = with_conditions([pruned_subset, diffusion_checkpoint, evaluation_metrics], params)
    definitions = dg.Definitions(assets=assets, asset_checks=[sound], jobs=[dg.define_asset_job("all_of_it")])
    followers = dg.AssetSelection.assets("diffusion_checkpoint", "evaluation_metrics")
    sunday = datetime(2026, 11, 29, 12, tzinfo=UTC)
    cursor = None
    with dg.DagsterInstance.ephemeral() as instance:

        def asked(days: float) -> set[str]:
            """Which assets are asked for so many days after the Sunday; they are made at once."""
            nonlocal cursor
            found = dg.evaluate_automation_conditions(
                defs=definitions,
                instance=instance,
                cursor=cursor,
                evaluation_time=sunday + timedelta(days=days),
                asset_selection=followers,
            )
            cursor = found.cursor
            names = {each.key.to_user_string() for each in found.results if each.true_subset.size}
            if names:
                make(*names)
            return names

        def make(*names: str) -> None:
            job = definitions.resolve_job_def("all_of_it")
            keys = [dg.AssetKey(name) for name in names]
            job.execute_in_process(instance=instance, asset_selection=keys, raise_on_error=False)

        def subset(version: str, *, is_sound: bool) -> None:
            played.update(version=version, sound=is_sound)
            make("pruned_subset")

        subset("1", is_sound=True)
        assert asked(0) == set()  # no tick of the schedule has come
        assert asked(1) == {"diffusion_checkpoint"}
        assert asked(1.1) == {"evaluation_metrics"}
        assert asked(2) == set()
        subset("1", is_sound=True)
        assert asked(8) == set()  # made anew, with the same content
        subset("2", is_sound=False)
        assert asked(15) == set()
        subset("2", is_sound=True)
        assert asked(15.1) == {"diffusion_checkpoint"}
        assert asked(15.2) == {"evaluation_metrics"}
        subset("3", is_sound=True)
        assert asked(15.3) == set()  # in the same week


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (ConnectionResetError("gone"), True),
        (TimeoutError("slow"), True),
        (OSError(116, "stale file handle"), True),
        (EndpointConnectionError(endpoint_url="http://s3"), True),
        (caused(UsageError("cannot read s3://x"), ConnectionRefusedError("no")), True),
        (ClientError({"Error": {"Code": "403"}}, "GetObject"), False),
        (OSError(28, "no space left"), False),
        (FileNotFoundError("a.jpg"), False),
        (UsageError("no such backbone"), False),
        (ValueError("ours"), False),
    ],
)
def test_only_what_may_pass_by_itself_is_tried_again(error: Exception, helps: bool) -> None:
    assert is_transient(error) is helps
    expected = dg.RetryRequested if helps else dg.Failure if isinstance(error, UsageError) else type(error)
    with pytest.raises(expected), surface_user_errors():
        raise error


def test_a_gpu_is_for_one_step_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "driver").touch()
    monkeypatch.setattr(gpu_pool, "NVIDIA_DRIVER", tmp_path / "driver")
    pools = {asset.key.to_user_string(): asset.op.pool for asset in build_assets(settings(tmp_path, None))}
    trainings = {
        "diffusion_checkpoint",
        "super_resolution_checkpoint",
        "semantic_synthesis_checkpoint",
        *STUDIES,
    }
    on_gpu = {name for name, pool in pools.items() if pool == "gpu"}
    assert on_gpu == {"embeddings", "scene_clusters", "evaluation_metrics", *trainings}
    params = settings(tmp_path, None)
    jobs = study_jobs(params, build_assets(params))
    assert len(jobs) == len(STUDIES)
    for job in jobs:  # its asset, in a run inside, asks for the slot; if both did, one would wait for the other
        assert [node.definition.pool for node in job.nodes] == [None]


def test_a_run_whose_command_was_killed_is_ended_by_the_next_one() -> None:
    @dg.job(tags={PROCESS: "boot:999999999:1"})
    def hung() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(hung, status=dg.DagsterRunStatus.STARTED, tags=hung.tags)
        end_killed_runs(instance)
        ended = instance.get_run_by_id(run.run_id)
        assert ended is not None and ended.status == dg.DagsterRunStatus.FAILURE


@contextmanager
def chat(*answers: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that takes messages; it answers with these codes, then with 200."""
    codes, taken = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(codes.pop(0) if codes else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/secret-token", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_message_is_posted_again_where_the_server_stumbles() -> None:
    with chat(500, 503) as (url, taken):
        post(url, {"text": "it failed"}, wait_s=0)
    assert [each["text"] for each in taken] == ["it failed"] * 3


def test_a_webhook_that_does_not_answer_is_named_without_its_secret() -> None:
    with chat(500, 500, 500) as (url, _), pytest.raises(RunError, match=r"webhook at 127\.0\.0\.1") as caught:
        post(url, {"text": "it failed"}, wait_s=0)
    assert "secret-token" not in str(caught.value) and "RSPRUNE_WEBHOOK" in str(caught.value)


@pytest.mark.parametrize("kind", ["a step", "a blocking check"])
def test_the_message_has_the_sentence_the_step_and_the_link(kind: str) -> None:
    @dg.asset
    def thing() -> None:
        if kind == "a step":
            raise dg.Failure("the tiles of Atlantis are missing: look below the sea", allow_retries=False)

    @dg.asset_check(asset="thing", blocking=True)
    def sound() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description="it is not sound: mend it.")

    definitions = dg.Definitions(assets=[thing], asset_checks=[sound], jobs=[dg.define_asset_job("all_of_it")])
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.resolve_job_def("all_of_it")
        ended = job.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            sensor_name="tell_failure",
            dagster_event=ended.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=ended.dagster_run,
        ).for_run_failure()
        told = message(context, "http://ui:3000/")
    wanted = "Atlantis are missing" if kind == "a step" else "thing/sound: it is not sound: mend it."
    assert wanted in told["sentence"] and wanted in told["text"] and told["step"] == "thing"
    assert told["link"] == f"http://ui:3000/runs/{ended.run_id}" and told["job"] == "all_of_it"
