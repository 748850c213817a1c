"""What a run's asset checks said. A blocking check that failed stops a refresh, a command and CI."""

from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg

from rsprune_dagster.utils.errors import BlockingCheckError


@dataclass(frozen=True)
class CheckResult:
    """An evaluated check: its asset (`pruned_subset`), its name (`exact_count`), its outcome and its message."""

    asset: str
    check: str
    passed: bool
    blocking: bool
    sentence: str

    def __str__(self) -> str:
        return f"{self.asset}/{self.check}: {self.sentence or 'it did not pass'}"


def check_results(instance: dg.DagsterInstance, run_id: str) -> list[CheckResult]:
    """The checks of a run, in the order in which they were evaluated."""
    logs = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [log.dagster_event.asset_check_evaluation_data for log in logs if log.dagster_event]
    return [
        CheckResult(
            each.asset_key.to_user_string(), each.check_name, each.passed, bool(each.blocking), each.description or ""
        )
        for each in found
    ]


def failures(results: Iterable[CheckResult], *, blocking: bool) -> list[str]:
    """The sentences of the checks that failed: those that block, or those that only warn."""
    return [str(each) for each in results if not each.passed and each.blocking is blocking]


def raise_for_blocking(results: Iterable[CheckResult]) -> None:
    """Raise where a blocking check failed.

    Raises:
        BlockingCheckError: `gate failed: `, and the sentence of each; exit code 1.
    """
    if failed := failures(results, blocking=True):
        raise BlockingCheckError(f"gate failed: {'; '.join(failed)}")
