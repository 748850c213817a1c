"""Assets materialized in this process: what the command line and the tests run, the same assets as in the web UI."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dagster as dg

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import Params, suggest
from rsprune_dagster.dagster.asset_checks import build_checks
from rsprune_dagster.dagster.check_results import check_results, failures, raise_for_blocking
from rsprune_dagster.dagster.image_sources import SYNTHETIC
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.tracking.run_log import is_alive, this_process
from rsprune_dagster.tracking.run_recorder import RunRecorder
from rsprune_dagster.utils.errors import RunError, UsageError, UserError
from rsprune_dagster.utils.file_lock import held


def materialize(
    definitions: Sequence[dg.AssetsDefinition],
    params: Params,
    layout: Layout,
    *,
    recorder: RunRecorder,
    assets: Sequence[str] = (),
    partition: Mapping[str, str] | None = None,
    home: Path | None = None,
    progress_on: str = "log",
    warn: Callable[[str], object] = lambda _: None,
    finish: Callable[[], object] = lambda: None,
) -> str:
    """Materialize and check assets, as one Dagster run, whose id is returned.

    Args:
        definitions: `build_assets(params)`, or the part of the pipeline that is wanted.
        assets: none named: all that have no partitions.
        partition: of the assets that have some, by dimension.
        home: the folder of the Dagster instance that records the run (a DAGSTER_HOME); none: nothing is recorded.
        warn: told the sentence of each check that did not pass and lets the run go on, and whether another command
            is waited for.
        finish: called after a run that succeeded, while other commands still wait for this one.

    Raises:
        BlockingCheckError: a blocking check did not pass; what follows its asset was not made.
        UserError: as the assets raise it; folders of assets that failed keep their last version.
        KeyboardInterrupt: the run was interrupted.
    """
    from rsprune_dagster.stages.validate import check

    check(params, made_later=SYNTHETIC)
    wanted = known_assets(assets, _names(definitions)) or _unpartitioned(definitions)
    if "diffusion_checkpoint" in wanted and params.training.autoencoder:
        from rsprune_dagster.diffusion.latents import space_of

        space_of(params.training)
    if "semantic_synthesis_checkpoint" in wanted:
        from rsprune_dagster.downstream.masks import Palette

        Palette.of(params.semantic_synthesis.classes)
    if {"diffusion_checkpoint", "super_resolution_checkpoint"} <= set(wanted):
        from rsprune_dagster.downstream.crops import check_scale

        check_scale(params.super_resolution.scale, params.training.image_size_px)
    resources = {
        "store": Store.of(layout),
        "compute": Compute(progress_on=progress_on, **params.compute.model_dump()),
        "recorder": recorder,
    }
    tags = {COMMAND: uuid.uuid4().hex, PROCESS: this_process()}
    with _alone(layout.state, partition, warn), _instance(home) as instance, _quiet():
        end_killed_runs(instance)
        try:
            run = dg.materialize(
                [*definitions, *build_checks(params, definitions)],
                selection=list(wanted),
                partition_key=dg.MultiPartitionKey(partition) if partition else None,
                resources=resources,
                instance=instance,
                run_config=_LOG_NOTHING,
                tags=tags,
            )
        except dg.DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        except (dg.Failure, dg.DagsterExecutionStepExecutionError) as error:
            raise _cause(error) from error
        except dg.DagsterError as error:
            raise_for_blocking(check_results(instance, _run_with(tags, instance)))
            if said := _said_after_retries(error):
                raise RunError(said) from error
            raise
        for sentence in failures(check_results(instance, run.run_id), blocking=False):
            warn(sentence)
        if not run.success:
            raise RunError(f"the run {run.run_id} failed: see its log in the web UI")
        finish()
    return run.run_id


def end_killed_runs(instance: dg.DagsterInstance) -> None:
    """Runs of commands whose process is gone have failed: Dagster learns it, and their places in pools are free."""
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        if PROCESS in run.tags and not is_alive(run.tags[PROCESS]):
            instance.report_run_failed(run, "its process was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def project_home(project: Path) -> Path:
    """The DAGSTER_HOME of a project: the environment's, else the one that `make ui` serves."""
    if named := os.environ.get("DAGSTER_HOME"):
        return Path(named)
    home = Layout.of_project(project).dagster_home
    home.mkdir(parents=True, exist_ok=True)
    settings, wanted = home / "dagster.yaml", project / "dagster.yaml"
    if wanted.is_file() and not settings.exists():
        settings.symlink_to(os.path.relpath(wanted, home))
    return home


COMMAND, PROCESS = "rsprune/command", "rsprune/process"
"""Tags of a run that a command started: which one, and in which process."""
_LOG_NOTHING: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def _names(definitions: Sequence[dg.AssetsDefinition]) -> tuple[str, ...]:
    return tuple(definition.key.to_user_string() for definition in definitions)


def _unpartitioned(definitions: Sequence[dg.AssetsDefinition]) -> tuple[str, ...]:
    return _names([definition for definition in definitions if definition.partitions_def is None])


def known_assets(names: Sequence[str], known: tuple[str, ...]) -> Sequence[str]:
    """The names. UsageError: one of them is not known."""
    for name in names:
        if name not in known:
            raise UsageError(f"no asset is called {name}{suggest(name, known)}; there are {', '.join(known)}")
    return names


def _alone(
    work: Path, partition: Mapping[str, str] | None, say: Callable[[str], object]
) -> AbstractContextManager[None]:
    """Lock the asset folder against other commands, which would read what this one replaces.

    Partitions write to folders of their own, or lock them, and take no lock here. Neither do runs of the web UI.
    """
    return nullcontext() if partition else held(work / "lock", f"{work / 'lock'}, as it makes assets there", say)


@contextmanager
def _instance(home: Path | None) -> Iterator[dg.DagsterInstance]:
    if home is not None:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield instance
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


def _run_with(tags: Mapping[str, str], instance: dg.DagsterInstance) -> str:
    [record] = instance.get_run_records(dg.RunsFilter(tags=dict(tags)))
    return str(record.dagster_run.run_id)


def _said_after_retries(error: dg.DagsterError) -> str:
    """The error of the last retry of a step that failed. Dagster keeps only its text."""
    infos = getattr(error, "user_code_process_error_infos", [])
    said = infos[0].cause.message.partition(": ")[2] if infos and infos[0].cause else ""
    return " ".join(said.split())


def _cause(error: BaseException) -> BaseException:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    return cause or error
