"""Posts each failed run to a webhook: the sentence that the run's page shows, and the link to it."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import dagster as dg

from rsprune_dagster.config.params import AutomationParams
from rsprune_dagster.dagster.check_results import check_results
from rsprune_dagster.dagster.sensors import sensor_status
from rsprune_dagster.utils.errors import RunError

N_TRIES: Final = 3
"""Dagster goes on to the next failure when a tick fails, so the sensor tries again by itself."""
WAIT_S: Final = 2.0
ANSWER_S: Final = 10.0


def tell_failure(params: AutomationParams) -> dg.SensorDefinition:
    """Posts each failed run to RSPRUNE_WEBHOOK, else to `automation.webhook`; without either it does nothing."""

    @dg.run_failure_sensor(
        name="tell_failure",
        default_status=sensor_status(params),
        minimum_interval_seconds=min(30, params.look_every_s),
        description="Posts a failed run to the webhook of automation.webhook or RSPRUNE_WEBHOOK.",
    )
    def tell(context: dg.RunFailureSensorContext) -> None:
        if url := os.environ.get("RSPRUNE_WEBHOOK") or params.webhook:
            post(url, message(context, params.ui_url))

    return tell


def message(context: dg.RunFailureSensorContext, ui_url: str) -> dict[str, Any]:
    """What is posted: `text` is what chats show, the rest is for programs."""
    run = context.dagster_run
    link = f"{ui_url.rstrip('/')}/runs/{run.run_id}"
    sentence, step = _sentence(context)
    where = f" at {step}" if step else ""
    return {
        "text": f"{run.job_name} failed{where}: {sentence}\n{link}",
        "event": "run_failed",
        "job": run.job_name,
        "run_id": run.run_id,
        "step": step,
        "sentence": sentence,
        "link": link,
    }


def post(url: str, content: Mapping[str, Any], *, wait_s: float = WAIT_S) -> None:
    """Post JSON, three times where the server does not take it.

    Raises:
        RunError: it did not take it; names the server, and not the URL, which may hold a secret.
    """
    body = json.dumps(content).encode()
    for attempt in range(1, N_TRIES + 1):
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt == N_TRIES:
                raise RunError(
                    f"the webhook at {urlsplit(url).hostname} did not take the message: {reason}; "
                    "check automation.webhook and RSPRUNE_WEBHOOK"
                ) from None
            time.sleep(wait_s)


def _sentence(context: dg.RunFailureSensorContext) -> tuple[str, str]:
    """Why the run failed, and at which asset's step: a check's sentence, else the step's own, else Dagster's."""
    for result in check_results(context.instance, context.dagster_run.run_id):
        if result.blocking and not result.passed:
            return str(result), result.asset
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        told = data.user_failure_data.description if data.user_failure_data else None
        error = data.error.message.strip() if data.error else None
        return told or error or "no reason was recorded", str(event.step_key)
    return context.failure_event.message or "no reason was recorded", ""
