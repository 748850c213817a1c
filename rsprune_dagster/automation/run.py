"""The pruning job in this process: what the command line and the tests run, the same assets as in the web UI."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from rsprune_dagster.assets import build_assets
from rsprune_dagster.assets.wiring import SYNTHETIC
from rsprune_dagster.errors import RunError, UserError
from rsprune_dagster.params import Params
from rsprune_dagster.resources.settings import Compute, Store


def materialize_pruning(params: Params, *, root: Path, cache_root: Path, progress_on: str = "log") -> None:
    """Materialize the corpus and pruning assets below `root`, as one Dagster run.

    The run is recorded in the Dagster instance of DAGSTER_HOME where that is set, else nowhere.

    Raises:
        UserError: as the assets raise it; folders of assets that failed keep their last version.
    """
    from rsprune_dagster.pruning.steps.preflight import check

    check(params, made_later=SYNTHETIC)
    resources = {
        "store": Store(root=str(root), cache_root=str(cache_root)),
        "compute": Compute(progress_on=progress_on, **params.compute.model_dump()),
    }
    with _instance() as instance, _quiet():
        try:
            run = dg.materialize(build_assets(params), resources=resources, instance=instance, run_config=_LOG_NOTHING)
        except (dg.Failure, dg.DagsterExecutionStepExecutionError) as error:
            raise _cause(error) from error
    if not run.success:
        raise RunError(f"the run {run.run_id} failed: see its log in the web UI")


_LOG_NOTHING: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    if os.environ.get("DAGSTER_HOME"):
        yield dg.DagsterInstance.get()
    else:
        with dg.DagsterInstance.ephemeral() as instance:
            yield instance


@contextmanager
def _quiet() -> Iterator[None]:
    """Dagster's own lines belong into its event log; a terminal shows ours."""
    logger = logging.getLogger("dagster")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> BaseException:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    return cause or error
