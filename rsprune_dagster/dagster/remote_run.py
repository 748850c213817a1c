"""A run on another Dagster: launched with this checkout's parameters, followed to its end, and judged.

That Dagster keeps the result, and does not take it for the versioned state where the parameters depart from its own
params.yaml. So a pull request can be tried on the machine that has the corpus.

Dagster's own client launches the run and asks for its status. It has no call for the assets of a job and for the log
of a run: these two are queries in GraphQL.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError
from gql import Client, GraphQLRequest
from gql.transport import exceptions
from gql.transport.requests import RequestsHTTPTransport

from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.check_results import CheckResult, raise_for_blocking
from rsprune_dagster.tracking.restore import Say
from rsprune_dagster.utils.errors import BlockingCheckError, RunError, UsageError
from rsprune_dagster.viz import markdown

POLL_S = 1.0
PATIENCE_S = 300.0
"""How long a Dagster that has launched the run may not answer."""
_ANSWER_S = 60
_ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)

_JOBS = """{ repositoriesOrError { __typename
    ... on RepositoryConnection { nodes { name location { name } jobs { name }
        assetNodes { assetKey { path } opName jobNames } } }
    ... on PythonError { message } } }"""

_LOG = """query($id: ID!, $cursor: String) { logsForRun(runId: $id, afterCursor: $cursor) { __typename
    ... on EventConnection { cursor hasMore events { __typename
        ... on StepEvent { stepKey }
        ... on ExecutionStepFailureEvent { error { message causes { message } } }
        ... on RunFailureEvent { error { message causes { message } } }
        ... on MaterializationEvent { assetKey { path } metadataEntries { label
            ... on IntMetadataEntry { intValue } ... on FloatMetadataEntry { floatValue }
            ... on TextMetadataEntry { text } } }
        ... on AssetCheckEvaluationEvent { evaluation { checkName success severity description assetKey { path } } }
    } } } }"""


@dataclass
class RemoteRun:
    """A run on another Dagster, with what its log said so far."""

    run_id: str
    link: str
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.QUEUED
    checks: list[CheckResult] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    figures: list[tuple[str, str, float | str]] = field(default_factory=list)
    """Asset, name, value."""

    def judge(self) -> None:
        """Raise unless it succeeded.

        Raises:
            BlockingCheckError: a blocking check did not pass.
            RunError: the run failed for another reason, or was cancelled.
        """
        if self.status == dg.DagsterRunStatus.SUCCESS:
            return
        try:
            raise_for_blocking(self.checks)
        except BlockingCheckError as error:
            raise BlockingCheckError(f"{error}. See {self.link}") from None
        why = self.failures[0] if self.failures else "its log says why"
        raise RunError(f"the run {self.run_id} ended as {self.status.value}: {why}. See {self.link}")

    def as_markdown(self) -> str:
        """The ended run, for a pull request."""
        verdict, refusal = "passed", ""
        try:
            self.judge()
        except RunError as error:
            verdict, refusal = "refused", f"> {error}"
        checks = [(each.asset, each.check, _outcome(each), each.sentence) for each in self.checks]
        parts = [
            f"## Re-pruning, rehearsed: {verdict}",
            f"[Run {self.run_id}]({self.link})",
            refusal,
            markdown.table(("asset", "check", "outcome", ""), checks) if checks else "",
            markdown.table(("asset", "figure", "value"), self.figures) if self.figures else "",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def add(self, event: Mapping[str, Any], say: Say) -> None:
        """Add an event of the run's log."""
        match event["__typename"]:
            case "ExecutionStepSuccessEvent":
                say(f"{event['stepKey']} is done")
            case "ExecutionStepFailureEvent":
                self.failures.append(f"{event['stepKey']}: {_innermost(event['error'])}")
            case "RunFailureEvent" if event["error"]:
                self.failures.append(_innermost(event["error"]))
            case "MaterializationEvent":
                asset = "/".join(event["assetKey"]["path"])
                self.figures += [(asset, name, value) for name, value in _figures(event["metadataEntries"])]
            case "AssetCheckEvaluationEvent":
                self.checks.append(_check(event["evaluation"]))


@dataclass(frozen=True)
class RemoteDagster:
    """The web server of a Dagster. Methods raise UsageError where something else answers, RunError where it refuses."""

    url: str
    """Without a slash at its end."""

    def launch(self, job: str, assets: Sequence[str], config: Mapping[str, Any]) -> str:
        """Launch a run of a job; its id.

        Args:
            assets: of the job; none: all of them.
            config: `run_config`; ops that are not run are left out of it.

        Raises:
            UsageError: no Dagster answers, there is no such job, or it has no such asset.
            RunError: it refuses the run, or did not answer its launch.
        """
        node = self._repository_with(job)
        nodes = [each for each in node["assetNodes"] if job in each["jobNames"]]
        ops = {"/".join(each["assetKey"]["path"]): each["opName"] for each in nodes}
        if unknown := [asset for asset in assets if asset not in ops]:
            raise UsageError(f"the job {job} has no {', '.join(unknown)}; it has {', '.join(sorted(ops))}")
        run = {ops[asset] for asset in assets or ops}
        try:
            with _errors_of(self.url):
                return self._client().submit_job_execution(
                    job,
                    repository_location_name=node["location"]["name"],
                    repository_name=node["name"],
                    run_config={**config, "ops": {op: values for op, values in config["ops"].items() if op in run}},
                    asset_selection=[asset.split("/") for asset in assets] or None,
                )
        except ConnectionError as error:
            raise RunError(
                f"{self.url} did not answer the launch of {job} ({error}): does it run there? If not, launch again"
            ) from None

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        """The status of a run. ConnectionError: the server does not answer."""
        with _errors_of(self.url):
            return self._client().get_run_status(run_id)

    def events(self, run_id: str, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """The events of a run after `cursor`, and the last one's cursor. ConnectionError: it does not answer."""
        events: list[dict[str, Any]] = []
        has_more = True
        while has_more:
            log = self._ask(_LOG, id=run_id, cursor=cursor)["logsForRun"]
            events += log.get("events", [])
            cursor, has_more = log.get("cursor", cursor), log.get("hasMore", False)
        return events, cursor

    def _repository_with(self, job: str) -> dict[str, Any]:
        try:
            answer = self._ask(_JOBS)["repositoriesOrError"]
        except ConnectionError as error:
            raise UsageError(f"no Dagster answers at {self.url}: {error}; give the address of its web UI") from None
        nodes = answer.get("nodes", [])
        for node in nodes:
            if any(each["name"] == job for each in node["jobs"]):
                return dict(node)
        jobs = sorted({each["name"] for node in nodes for each in node["jobs"] if not each["name"].startswith("__")})
        raise UsageError(f"{self.url} has no job {job}; it has {', '.join(jobs) or answer.get('message', 'none')}")

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        with _errors_of(self.url):
            return dict(Client(transport=self._transport()).execute(GraphQLRequest(query, variable_values=variables)))

    def _client(self) -> DagsterGraphQLClient:
        return DagsterGraphQLClient(self.url, transport=self._transport())

    def _transport(self) -> RequestsHTTPTransport:
        return RequestsHTTPTransport(f"{self.url}/graphql", timeout=_ANSWER_S)


@contextmanager
def _errors_of(url: str) -> Iterator[None]:
    """Turn errors of Dagster's client, which wraps those of gql, which wraps those of requests, into ours."""
    try:
        yield
    except (DagsterGraphQLClientError, exceptions.TransportError) as raised:
        error = raised.__cause__ or raised if isinstance(raised, DagsterGraphQLClientError) else raised
        match error:
            case DagsterGraphQLClientError():
                raise RunError(f"{url} refuses: {_refusal(error)}") from None
            case exceptions.TransportQueryError():
                raise RunError(f"{url} does not understand: {error}") from None
            case exceptions.TransportServerError(code=int(code)) if code < 500:
                raise RunError(f"{url} says {error}") from None
            case exceptions.TransportConnectionFailed(__cause__=ValueError()) | exceptions.TransportProtocolError():
                # requests calls what is no URL a ValueError
                raise UsageError(f"{url} is not Dagster's web UI: {error}") from None
            case _:
                raise ConnectionError(str(error)) from None


def run_config(definitions: Sequence[dg.AssetsDefinition], params: Params) -> dict[str, Any]:
    """The values of params.yaml as a run's configuration: what the launchpad would show, were this checkout served.

    Args:
        definitions: `build_assets(params)`, whose defaults the values are.
    """
    shapes: dict[str, Any] = {each.op.name: each.op.config_schema.config_type for each in definitions}
    ops = {
        op: {"config": {name: field.default_value for name, field in shape.fields.items() if field.default_provided}}
        for op, shape in shapes.items()
    }
    return {"ops": ops, "resources": {"compute": {"config": params.compute.model_dump()}}}


def run_remotely(url: str, job: str, assets: Sequence[str], config: Mapping[str, Any], say: Say) -> RemoteRun:
    """Launch a job and follow it to its end, however that is.

    Args:
        url: of Dagster's web server.
        assets: of the job; none: all.
        config: `run_config`; what the job has no op for is left out.

    Raises:
        UsageError: no Dagster answers there, or it has no such job.
        RunError: it refuses the run, or stopped answering.
    """
    dagster = RemoteDagster(url.rstrip("/"))
    run_id = dagster.launch(job, assets, config)
    run = RemoteRun(run_id, f"{dagster.url}/runs/{run_id}")
    say(f"launched {run.link}; interrupting this command leaves it running")
    cursor, reached_at = None, time.monotonic()
    while run.status not in _ENDED:
        time.sleep(POLL_S)
        try:
            status = dagster.status(run_id)  # before the events: those of an ended run are all read
            events, cursor = dagster.events(run_id, cursor)
        except ConnectionError as error:
            if time.monotonic() - reached_at > PATIENCE_S:
                raise RunError(f"{url} has not answered for {PATIENCE_S:.0f} s ({error}): see {run.link}") from None
            continue
        for event in events:
            run.add(event, say)
        run.status, reached_at = status, time.monotonic()
    return run


def _figures(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float | str]]:
    """The numbers of a materialization, and the version's hash."""
    for entry in entries:
        name, number = entry["label"], entry.get("intValue", entry.get("floatValue"))
        if number is not None and not name.startswith("dagster/"):
            yield name, number
        elif name == "content hash":
            yield name, entry["text"]


def _check(evaluation: Mapping[str, Any]) -> CheckResult:
    return CheckResult(
        asset="/".join(evaluation["assetKey"]["path"]),
        check=evaluation["checkName"],
        passed=evaluation["success"],
        blocking=evaluation["severity"] == "ERROR",  # as `asset_checks.Check.result` gives it
        sentence=evaluation["description"] or "",
    )


def _outcome(check: CheckResult) -> str:
    return "passed" if check.passed else "failed" if check.blocking else "warned"


def _innermost(error: Mapping[str, Any]) -> str:
    """The innermost message: Dagster wraps what an asset raised."""
    messages = [error["message"], *(cause["message"] for cause in error.get("causes") or [])]
    return " ".join(messages[-1].split())


def _refusal(error: DagsterGraphQLClientError) -> str:
    """What Dagster's client got instead of an answer: the name of an error, and its message or messages."""
    name, body = (*error.args, "")[:2]
    messages = [each["message"] for each in body] if isinstance(body, list) else [str(body)]
    return f"{name}: {' '.join('; '.join(messages).split())}"
