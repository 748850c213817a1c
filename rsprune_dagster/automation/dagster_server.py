"""Dagster's web server, asked by GraphQL: which jobs there are, a run launched, and what became of it."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsprune_dagster.errors import RunError, UsageError

_ANSWER_S = 60.0

_JOBS = """{ repositoriesOrError { __typename
    ... on RepositoryConnection { nodes { name location { name } jobs { name } assetNodes {
        assetKey { path } opName jobNames } } }
    ... on PythonError { message } } }"""

_LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message } } }"""

_FOLLOW = """query($id: ID!, $cursor: String) {
    runOrError(runId: $id) { __typename ... on Run { status } ... on Error { message } }
    logsForRun(runId: $id, afterCursor: $cursor) { __typename ... on EventConnection { cursor hasMore
      events { __typename
        ... on StepEvent { stepKey }
        ... on ExecutionStepFailureEvent { error { message causes { message } } }
        ... on RunFailureEvent { error { message causes { message } } }
        ... on MaterializationEvent { assetKey { path } metadataEntries { label
            ... on IntMetadataEntry { intValue } ... on FloatMetadataEntry { floatValue }
            ... on TextMetadataEntry { text } } }
        ... on AssetCheckEvaluationEvent { evaluation { checkName success severity description assetKey { path }
            metadataEntries { label ... on TextMetadataEntry { text } } } }
    } } } }"""


@dataclass(frozen=True)
class Job:
    """A job, and where its server has it."""

    name: str
    repository: str
    location: str
    ops: Mapping[str, str]
    """The op of each of its assets."""


@dataclass(frozen=True)
class DagsterServer:
    """The server at `url`, without a slash at its end."""

    url: str

    def job(self, name: str) -> Job:
        """A job by name.

        Raises:
            UsageError: no Dagster answers at the address, or none of its code locations has such a job.
        """
        try:
            answer = self._ask(_JOBS)["repositoriesOrError"]
        except OSError as error:
            raise UsageError(f"no Dagster answers at {self.url}: {error}; give the address of its web UI") from None
        found = [node for node in answer.get("nodes", []) if any(job["name"] == name for job in node["jobs"])]
        if not found:
            jobs = sorted({job["name"] for node in answer.get("nodes", []) for job in node["jobs"]})
            known = ", ".join(each for each in jobs if not each.startswith("__")) or answer.get("message", "none")
            raise UsageError(f"{self.url} has no job {name}; it has {known}")
        node = found[0]
        ops = {
            "/".join(each["assetKey"]["path"]): each["opName"]
            for each in node["assetNodes"]
            if name in each["jobNames"]
        }
        return Job(name, node["name"], node["location"]["name"], ops)

    def launch(self, job: Job, assets: Sequence[str], config: Mapping[str, Any]) -> str:
        """Launch a run of a job; its id.

        Args:
            assets: of the job; none: all of them.
            config: a run's configuration; ops that are not run are left out of it.

        Raises:
            UsageError: the job has no such asset.
            RunError: Dagster refuses it.
        """
        if unknown := [asset for asset in assets if asset not in job.ops]:
            raise UsageError(f"the job {job.name} has no {', '.join(unknown)}; it has {', '.join(sorted(job.ops))}")
        ops = {job.ops[asset] for asset in assets or job.ops}
        selector: dict[str, Any] = {
            "repositoryLocationName": job.location,
            "repositoryName": job.repository,
            "jobName": job.name,
        }
        if assets:
            selector["assetSelection"] = [{"path": asset.split("/")} for asset in assets]
        run_config = {**config, "ops": {op: values for op, values in config["ops"].items() if op in ops}}
        params = {"selector": selector, "runConfigData": json.dumps(run_config), "mode": "default"}
        try:
            answer = self._ask(_LAUNCH, params=params)["launchRun"]
        except OSError as error:
            raise RunError(
                f"{self.url} did not answer the launch of {job.name} ({error}): does it run there? If not, launch again"
            ) from None
        if answer["__typename"] != "LaunchRunSuccess":
            reasons = [each["message"] for each in answer.get("errors", [])] or [answer.get("message", "")]
            raise RunError(
                f"{self.url} refuses the run ({answer['__typename']}): {' '.join('; '.join(reasons).split())}"
            )
        return str(answer["run"]["runId"])

    def follow(self, run_id: str, cursor: str | None) -> tuple[str, list[dict[str, Any]], str | None]:
        """The status of a run as it was before its events after `cursor` were read, those, and where they end.

        Raises:
            OSError: the server does not answer.
            RunError: it does not know the run.
        """
        events: list[dict[str, Any]] = []
        status, has_more = "", True
        while has_more:
            answer = self._ask(_FOLLOW, id=run_id, cursor=cursor)
            run, log = answer["runOrError"], answer["logsForRun"]
            if "status" not in run:
                raise RunError(f"{self.url} does not know the run {run_id} any more: {run.get('message', '')}")
            status = status or run["status"]
            events += log.get("events", [])
            cursor, has_more = log.get("cursor", cursor), log.get("hasMore", False)
        return status, events, cursor

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of the answer; OSError, which URLError is, where there is none."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        try:
            request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise
            raise RunError(
                f"{self.url}/graphql says {error.code}: {error.read(300).decode(errors='replace')}"
            ) from None
        except http.client.HTTPException as error:  # the server went away in the middle of its answer
            raise ConnectionError(f"{type(error).__name__}: {error}") from None
        except ValueError as error:  # no URL, or something else than JSON
            raise UsageError(f"{self.url} is not Dagster's web UI: {error}") from None
        if answer.get("errors"):
            raise RunError(f"{self.url} does not understand: {answer['errors'][0]['message']}")
        return dict(answer["data"])
