"""What a run's checks said: the gate that a refresh, a command or CI stands before."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg

from rsprune_dagster.errors import GateError


@dataclass(frozen=True)
class Finding:
    """A check that did not pass: `pruned_subset`, `exact_count`, and its sentence."""

    asset: str
    check: str
    sentence: str
    blocking: bool

    def __str__(self) -> str:
        return f"{self.asset}/{self.check}: {self.sentence}"


def findings(instance: dg.DagsterInstance, run_id: str) -> list[Finding]:
    """The checks of a run that did not pass, in the order in which they were made."""
    logs = (entry.dagster_event for entry in instance.all_logs(run_id))
    found = (event.asset_check_evaluation_data for event in logs if event and _is_check(event))
    return [
        Finding(
            each.asset_key.to_user_string(), each.check_name, each.description or "it did not pass", bool(each.blocking)
        )
        for each in found
        if not each.passed
    ]


def gate(found: Iterable[Finding]) -> None:
    """Raise where a blocking check did not pass.

    Raises:
        GateError: `gate failed: `, and the sentence of each; exit code 1.
    """
    stopped = [str(each) for each in found if each.blocking]
    if stopped:
        raise GateError(f"gate failed: {'; '.join(stopped)}")


def warnings(found: Sequence[Finding]) -> list[str]:
    """The sentences of the checks that let the run go on."""
    return [str(each) for each in found if not each.blocking]


def _is_check(event: dg.DagsterEvent) -> bool:
    return event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
