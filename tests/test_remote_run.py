"""A Dagster that goes away, or is none, is one line. The server is the real one in test_reprune.py."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from rsprune_dagster.dagster.check_results import CheckResult
from rsprune_dagster.dagster.remote_run import RemoteDagster, RemoteRun
from rsprune_dagster.utils.errors import BlockingCheckError, RunError, UsageError

NO_CONFIG: dict[str, dict[str, str]] = {"ops": {}}
CUT_OFF = (200, b'{"data": {', 1000)
JOBS = {
    "data": {
        "repositoriesOrError": {
            "__typename": "RepositoryConnection",
            "nodes": [{"name": "here", "location": {"name": "there"}, "jobs": [{"name": "all"}], "assetNodes": []}],
        }
    }
}


@contextmanager
def answering(*answers: object) -> Iterator[RemoteDagster]:
    """A web server that gives these answers in turn, then the last one again.

    An answer is JSON, or status, body, and how many bytes of it are promised.
    """
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            in_json = json.dumps(answer, default=str).encode()
            status, body, length = answer if isinstance(answer, tuple) else (200, in_json, len(in_json))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield RemoteDagster(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_answer_that_breaks_off_is_as_if_there_was_none() -> None:
    with answering(CUT_OFF) as dagster:
        with pytest.raises(ConnectionError, match="IncompleteRead"):
            dagster.status("run")
        with pytest.raises(UsageError, match="no Dagster answers at"):
            dagster.launch("all", [], NO_CONFIG)
    with answering(JOBS, CUT_OFF) as dagster, pytest.raises(RunError, match="did not answer the launch of all"):
        dagster.launch("all", [], NO_CONFIG)


def test_a_server_that_is_restarting_is_waited_for_and_a_wrong_request_is_not() -> None:
    with answering((502, b"bad gateway", 11)) as dagster, pytest.raises(ConnectionError, match="502"):
        dagster.events("run", None)
    with answering((400, b"no", 2)) as dagster, pytest.raises(RunError, match="says 400"):
        dagster.events("run", None)
    wrong = {"errors": [{"message": "no such field"}]}
    with answering(wrong) as dagster, pytest.raises(RunError, match=r"does not understand: .*no such field"):
        dagster.events("run", None)


def test_what_dagster_refuses_is_said_with_its_reasons() -> None:
    invalid = {"__typename": "RunConfigValidationInvalid", "errors": [{"message": "too\nlow"}, {"message": "no seed"}]}
    refusal, why = (
        {"data": {"launchPipelineExecution": invalid}},
        "refuses: RunConfigValidationInvalid: too low; no seed",
    )
    with answering(JOBS, refusal) as dagster, pytest.raises(RunError, match=why):
        dagster.launch("all", [], NO_CONFIG)
    unknown = {"__typename": "RunNotFoundError", "message": "no run xyz"}
    with answering({"data": {"pipelineRunOrError": unknown}}) as dagster, pytest.raises(RunError, match="no run xyz"):
        dagster.status("xyz")


def test_a_job_or_an_asset_that_is_not_there() -> None:
    with answering(JOBS) as dagster:
        with pytest.raises(UsageError, match="has no job al; it has all"):
            dagster.launch("al", [], NO_CONFIG)
        with pytest.raises(UsageError, match="the job all has no raw_corpus"):
            dagster.launch("all", ["raw_corpus"], NO_CONFIG)


def test_another_web_page_is_not_taken_for_dagster() -> None:
    with answering((200, b"<html>", 6)) as dagster, pytest.raises(UsageError, match="is not Dagster's web UI"):
        dagster.launch("all", [], NO_CONFIG)
    with pytest.raises(UsageError, match="is not Dagster's web UI"):
        RemoteDagster("nonsense").launch("all", [], NO_CONFIG)


def test_a_log_is_read_to_its_last_page() -> None:
    def page(events: Sequence[str], cursor: str, *, has_more: bool) -> object:
        return {"data": {"logsForRun": {"events": events, "cursor": cursor, "hasMore": has_more}}}

    with answering(page(["a"], "1", has_more=True), page(["b", "c"], "2", has_more=False)) as dagster:
        assert dagster.events("run", None) == (["a", "b", "c"], "2")


def test_a_run_that_failed_names_its_gate_else_its_first_failure() -> None:
    run = RemoteRun("7", "http://dagster/runs/7", dg.DagsterRunStatus.FAILURE)
    error = {"message": "step failed", "causes": [{"message": "the disk\nis full"}]}
    run.add({"__typename": "ExecutionStepFailureEvent", "stepKey": "embeddings", "error": error}, print)
    with pytest.raises(
        RunError, match=r"run 7 ended as FAILURE: embeddings: the disk is full. See http://dagster/runs"
    ):
        run.judge()
    run.checks.append(CheckResult("embeddings", "readable", False, False, "some are not."))
    run.checks.append(CheckResult("embeddings", "finite", False, True, "one is not."))
    with pytest.raises(
        BlockingCheckError, match=r"^gate failed: embeddings/finite: one is not.. See http://dagster/runs/7$"
    ):
        run.judge()
    assert "| embeddings | readable | warned | some are not. |" in run.as_markdown()
    RemoteRun("8", "", dg.DagsterRunStatus.SUCCESS, checks=run.checks[:1]).judge()
