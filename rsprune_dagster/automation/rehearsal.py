"""A re-pruning rehearsed on a running Dagster: launched with this checkout's parameters, waited for, judged.

The running Dagster keeps the result, and does not take it for the versioned state where the parameters depart from its
own params.yaml. So a pull request can be tried on the machine that has the corpus.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from rsprune_dagster.automation.dagster_server import DagsterServer
from rsprune_dagster.automation.gate import Finding, gate
from rsprune_dagster.errors import GateError, RunError
from rsprune_dagster.lineage.restore import Say
from rsprune_dagster.params import Params
from rsprune_dagster.report import markdown

POLL_S = 1.0
PATIENCE_S = 300.0
"""So long a Dagster that was reached once may not answer."""


@dataclass(frozen=True)
class Check:
    """An asset check that was evaluated in the run."""

    name: str
    asset: str
    passed: bool
    blocking: bool
    sentence: str

    def finding(self) -> Finding:
        return Finding(self.asset, self.name, self.sentence or "it did not pass", self.blocking)


@dataclass
class Rehearsal:
    """A run on another Dagster, as it is told of while it goes on."""

    run_id: str
    link: str
    status: str = "QUEUED"
    checks: list[Check] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    figures: dict[str, dict[str, float | str]] = field(default_factory=dict)
    """By asset, then by name."""

    @property
    def has_ended(self) -> bool:
        return self.status in ("SUCCESS", "FAILURE", "CANCELED")

    def judge(self) -> None:
        """Raise unless it succeeded.

        Raises:
            GateError: a blocking check did not pass.
            RunError: the run failed for another reason, or was cancelled.
        """
        if self.status == "SUCCESS":
            return
        where = f"See {self.link}"
        try:
            gate(each.finding() for each in self.checks if not each.passed)
        except GateError as error:
            raise GateError(f"{error}. {where}") from None
        why = self.failures[0] if self.failures else "its log says why"
        raise RunError(f"the run {self.run_id} ended as {self.status}: {why}. {where}")

    @property
    def refusal(self) -> str:
        """Why it failed; empty where it succeeded."""
        try:
            self.judge()
        except RunError as error:
            return str(error)
        return ""

    def as_markdown(self) -> str:
        """For a pull request."""
        verdict = "passed" if self.status == "SUCCESS" else "refused" if self.has_ended else self.status
        figures = [(asset, name, value) for asset, all_of in self.figures.items() for name, value in all_of.items()]
        checks = [(each.asset, each.name, _outcome(each), each.sentence) for each in self.checks]
        parts = [
            f"## Re-pruning, rehearsed: {verdict}",
            f"[Run {self.run_id}]({self.link})",
            f"> {self.refusal}" if self.has_ended and self.refusal else "",
            markdown.table(("asset", "check", "outcome", ""), checks) if checks else "",
            markdown.table(("asset", "figure", "value"), figures) if figures else "",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def take(self, event: Mapping[str, Any], say: Say) -> None:
        """Take in an event of the run's log."""
        kind = event["__typename"]
        if kind == "ExecutionStepSuccessEvent":
            say(f"{event['stepKey']} is done")
        elif kind == "ExecutionStepFailureEvent":
            self.failures.append(f"{event['stepKey']}: {_sentence(event['error'])}")
        elif kind == "RunFailureEvent" and event.get("error"):
            self.failures.append(_sentence(event["error"]))
        elif kind == "MaterializationEvent":
            self.figures["/".join(event["assetKey"]["path"])] = _figures(event["metadataEntries"])
        elif kind == "AssetCheckEvaluationEvent":
            self.checks.append(_check(event["evaluation"]))


def settings(definitions: Sequence[dg.AssetsDefinition], params: Params) -> dict[str, Any]:
    """The values of params.yaml as a run's configuration: what the launchpad would show, were this checkout served.

    Args:
        definitions: `build_assets(params)`, whose defaults the values are.
    """
    ops = {definition.op.name: {"config": _defaults(definition)} for definition in definitions}
    return {"ops": ops, "resources": {"compute": {"config": params.compute.model_dump()}}}


def rehearse(url: str, job: str, assets: Sequence[str], config: Mapping[str, Any], say: Say) -> Rehearsal:
    """Launch a job and follow it to its end, however that is.

    Args:
        url: of Dagster's web server.
        assets: of the job; none: all.
        config: `settings`; what the job has no op for is left out.

    Raises:
        UsageError: no Dagster answers there, or it has no such job.
        RunError: it refuses the run, or stopped answering.
    """
    dagster = DagsterServer(url.rstrip("/"))
    run_id = dagster.launch(dagster.job(job), assets, config)
    rehearsal = Rehearsal(run_id, f"{dagster.url}/runs/{run_id}")
    say(f"launched {rehearsal.link}; interrupting this command leaves it running")
    cursor, reached_at = None, time.monotonic()
    while not rehearsal.has_ended:
        time.sleep(POLL_S)
        try:
            rehearsal.status, events, cursor = dagster.follow(run_id, cursor)
            for event in events:
                rehearsal.take(event, say)
            reached_at = time.monotonic()
        except OSError as error:
            if time.monotonic() - reached_at > PATIENCE_S:
                raise RunError(
                    f"{url} has not answered for {PATIENCE_S:.0f} s ({error}): see {rehearsal.link}"
                ) from None
    return rehearsal


def _defaults(definition: dg.AssetsDefinition) -> dict[str, Any]:
    fields: Any = definition.op.config_schema.config_type
    return {name: field.default_value for name, field in fields.fields.items() if field.default_provided}


def _figures(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | str]:
    """Numbers, and the version's hash."""
    numbers = {each["label"]: each.get("intValue", each.get("floatValue")) for each in entries}
    hashes = {each["label"]: each["text"] for each in entries if each["label"] == "content hash"}
    ours = {name: value for name, value in numbers.items() if value is not None and not name.startswith("dagster/")}
    return {**ours, **hashes}


def _check(evaluation: Mapping[str, Any]) -> Check:
    texts = [each["text"] for each in evaluation["metadataEntries"] if each.get("text")]
    return Check(
        name=evaluation["checkName"],
        asset="/".join(evaluation["assetKey"]["path"]),
        passed=evaluation["success"],
        blocking=evaluation["severity"] == "ERROR",  # as `checks.Check.result` gives it
        sentence=evaluation.get("description") or "; ".join(texts),
    )


def _outcome(check: Check) -> str:
    return "passed" if check.passed else "failed" if check.blocking else "warned"


def _sentence(error: Mapping[str, Any]) -> str:
    """The innermost message: Dagster wraps what an asset raised."""
    messages = [error["message"], *(cause["message"] for cause in error.get("causes") or [])]
    return " ".join(messages[-1].split())
