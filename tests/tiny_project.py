"""A project of three tiny assets, with git, DVC and a run log, and Dagster runs of it, here or in other processes.

`second` and `third` are made from `first`, side by side; `third` is tried twice. What goes wrong on the way is planned
in a file of the project, so that every process reads it.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.dagster.resources import Store
from rsprune_dagster.tracking.dvc_lock import DvcProject
from rsprune_dagster.tracking.run_log import Record, RunLog
from rsprune_dagster.tracking.run_recorder import RunRecorder
from rsprune_dagster.utils.errors import RunError

CHECKOUT = Path(__file__).resolve().parents[1]
UPSTREAM: Mapping[str, tuple[str, ...]] = {"first": (), "second": ("first",), "third": ("first",)}
ASSETS = tuple(UPSTREAM)
SENTENCE = "the tiles of Atlantis are missing: look below the sea"


@dataclass(frozen=True)
class Tiny:
    """The project. `uri`: MLflow's, to which its runs are copied; empty: the test copies them."""

    root: Path
    uri: str = ""

    @property
    def run_log(self) -> RunLog:
        return RunLog(self.root / ".state" / "lineage")

    @property
    def dvc(self) -> DvcProject:
        return DvcProject(self.root)

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.root / ".state" / "dagster"))

    def plan(self, **trouble: str) -> None:
        """What each asset does before it is whole: `raise`, `raise once`, `hang`; `salt` changes what they write."""
        (self.root / "trouble.json").write_text(json.dumps(trouble))

    def run(self, executor: str = "in_process", **options: Any) -> dg.JobExecutionResult:
        """One Dagster run of all assets; what it raises is in its result."""
        with self.instance() as instance, self.execute(instance, executor, **options) as result:
            return result

    def execute(self, instance: dg.DagsterInstance, executor: str, **options: Any) -> dg.JobExecutionResult:
        return dg.execute_job(
            self.job(executor), instance=instance, raise_on_error=False, run_config=_LOG_NOTHING, **options
        )

    def job(self, executor: str) -> Any:
        arguments: Any = (str(self.root), self.uri, executor)
        return dg.build_reconstructable_job(
            "tiny_project", "all_assets", arguments, reconstructor_working_directory=str(Path(__file__).parent)
        )

    def start(self, executor: str = "in_process") -> "subprocess.Popen[bytes]":
        """A run in a process of its own, which an interrupt ends as the web UI's button does."""
        command = [sys.executable, __file__, str(self.root), self.uri, executor]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def wait_for(self, asset: str, status: str, patience_s: float = 120) -> Record:
        """The first record of the asset with this status, once there is one."""
        ends = time.monotonic() + patience_s
        while time.monotonic() < ends:
            for record in self.run_log.records():
                if (record.asset, record.status) == (asset, status):
                    return record
            time.sleep(0.05)
        raise AssertionError(f"{asset} is not {status} after {patience_s:.0f} s: {self.statuses()}")

    def records_of(self, run_id: str) -> dict[str, Record]:
        return {record.asset: record for record in self.run_log.records() if record.run_id == run_id}

    def statuses(self) -> list[tuple[str, str]]:
        return [(record.asset, record.status) for record in self.run_log.records()]

    def dagster_versions(self) -> dict[str, str]:
        """The data version of each asset's latest materialization in Dagster."""
        with self.instance() as instance:
            events = {name: instance.get_latest_materialization_event(dg.AssetKey(name)) for name in ASSETS}
        return {
            name: (event.asset_materialization.tags or {})["dagster/data_version"]
            for name, event in events.items()
            if event and event.asset_materialization
        }


def tiny_project(root: Path, uri: str = "") -> Tiny:
    """Write the project and commit it."""
    tiny = Tiny(root, uri)
    (root / ".dvc").mkdir(parents=True)
    shutil.copy(CHECKOUT / ".dvc" / "config", root / ".dvc" / "config")
    shutil.copy(CHECKOUT / "params.yaml", root / "params.yaml")
    stages = {name: _stage(name, upstream) for name, upstream in UPSTREAM.items()}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / ".gitignore").write_text("/assets\n/.state\n/trouble.json\n/.dvc/tmp\n/.dvc/cache\n/.dvc/config.local\n")
    (root / ".dvcignore").write_text("/.state\n/assets/.staging\n")
    (root / ".state" / "dagster").mkdir(parents=True)
    shutil.copy(CHECKOUT / "dagster.yaml", root / ".state" / "dagster" / "dagster.yaml")
    for command in (["init", "--quiet"], ["add", "--all"], [*_WHO, "commit", "--quiet", "-m", "start"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    tiny.plan()
    return tiny


def all_assets(root: str, uri: str, executor: str) -> dg.JobDefinition:
    """The job; Dagster's child processes build it anew."""
    tiny = Tiny(Path(root), uri)
    executors = {
        "in_process": dg.in_process_executor,
        "multiprocess": dg.multiprocess_executor.configured({"max_concurrent": 2}),
    }
    definitions = dg.Definitions(
        assets=[_asset(tiny, name, upstream) for name, upstream in UPSTREAM.items()],
        jobs=[dg.define_asset_job("all_assets", executor_def=executors[executor])],
        resources={
            "store": Store.of(Layout.of_project(tiny.root)),
            "recorder": RunRecorder(run_log=str(tiny.run_log.root), project=root, tracking_uri=uri),
        },
    )
    return definitions.resolve_job_def("all_assets")


def _asset(tiny: Tiny, name: str, upstream: Sequence[str]) -> dg.AssetsDefinition:
    @dg.asset(name=name, deps=list(upstream), code_version="1", retry_policy=_RETRIES.get(name))
    def made_of_letters(
        context: dg.AssetExecutionContext, store: Store, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        plan = json.loads((tiny.root / "trouble.json").read_text())
        seed = yaml.safe_load((tiny.root / "params.yaml").read_text())["compute"]["seed"]
        with recorder.record_asset(context, store.open(), {"compute": {"seed": seed}}) as made:
            with made.replace() as draft:
                (draft.folder(name) / "letters.txt").write_text(f"{name} {plan.get('salt', '')} {seed}")
                _get_into_trouble(plan.get(name, ""), context.retry_number)
            record = made.finish({"n_letters": len(name)}, {})
            made.mlflow_link()
        return dg.MaterializeResult(data_version=dg.DataVersion(record.data_version))

    return made_of_letters


def _get_into_trouble(kind: str, n_retries: int) -> None:
    if kind == "raise":
        raise dg.Failure(SENTENCE, allow_retries=False)
    if kind == "raise once" and n_retries == 0:
        raise RunError(SENTENCE)
    if kind == "hang":
        time.sleep(3600)


def _stage(name: str, upstream: Sequence[str]) -> dict[str, Any]:
    folders = {"deps": [f"assets/{each}" for each in upstream]} if upstream else {}
    return {"cmd": f"make {name}", **folders, "params": ["compute.seed"], "outs": [f"assets/{name}"]}


_RETRIES = {"third": dg.RetryPolicy(max_retries=1)}  # with a policy, Dagster also tries again what was cancelled
_LOG_NOTHING: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_WHO = ["-c", "user.name=t", "-c", "user.email=t@localhost"]

if __name__ == "__main__":
    Tiny(Path(sys.argv[1]), sys.argv[2]).run(sys.argv[3])
