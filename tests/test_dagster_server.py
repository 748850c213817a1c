"""A Dagster that goes away, or is none, is one line. The server is the real one in test_reprune.py."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rsprune_dagster.automation.dagster_server import DagsterServer, Job
from rsprune_dagster.errors import RunError, UsageError

JOB = Job("all", "repository", "location", {})
NO_CONFIG: dict[str, dict[str, str]] = {"ops": {}}


@contextmanager
def answering(status: int, body: bytes, length: int | None = None) -> Iterator[DagsterServer]:
    """A web server that says one thing, `length` bytes of it promised."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield DagsterServer(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_answer_that_breaks_off_is_as_if_there_was_none() -> None:
    with answering(200, b'{"data": {', length=1000) as dagster:
        with pytest.raises(OSError, match="IncompleteRead"):  # which a rehearsal waits for to pass
            dagster.follow("run", None)
        with pytest.raises(UsageError, match="no Dagster answers at"):
            dagster.job("all")
        with pytest.raises(RunError, match="did not answer the launch of all"):
            dagster.launch(JOB, [], NO_CONFIG)


def test_a_server_that_is_restarting_is_waited_for_and_a_wrong_request_is_not() -> None:
    with answering(502, b"bad gateway") as dagster, pytest.raises(OSError, match="502"):
        dagster.follow("run", None)
    with answering(400, b"no such field") as dagster, pytest.raises(RunError, match="says 400: no such field"):
        dagster.follow("run", None)


def test_another_web_page_is_not_taken_for_dagster() -> None:
    with answering(200, b"<html>") as dagster, pytest.raises(UsageError, match="is not Dagster's web UI"):
        dagster.job("all")
    with pytest.raises(UsageError, match="is not Dagster's web UI"):
        DagsterServer("nonsense").job("all")


def test_a_log_is_read_to_its_last_page() -> None:
    pages = iter([(["a"], True), (["b", "c"], False), ([], False)])

    class Paged(DagsterServer):
        def _ask(self, query: str, **variables: object) -> dict[str, object]:
            events, has_more = next(pages)
            log = {"events": events, "cursor": str(variables["cursor"]) + "+", "hasMore": has_more}
            return {"runOrError": {"status": "STARTED" if has_more else "SUCCESS"}, "logsForRun": log}

    status, events, cursor = Paged("http://unused").follow("run", None)
    assert (events, cursor) == (["a", "b", "c"], "None++")
    assert status == "STARTED"  # what it was before the events were read: it is asked again
