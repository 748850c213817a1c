"""`rsprune` or a script in a process of its own, forked from a server that has its imports: that spares seconds."""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path

PATIENCE_S = 900
"""Longest wait for a command, which takes seconds on a machine that is not busy."""
IMPORTED = (
    "dagster._core.storage.base_storage",
    "rsprune_dagster.dagster.assets",
    "rsprune_dagster.dagster.asset_checks",
    "rsprune_dagster.dagster.materialize",
    "rsprune_dagster.cli.commands",
    "rsprune_dagster.diffusion.training",
    "rsprune_dagster.stages.validate",
    "rsprune_dagster.viz.pictures",
)
"""Modules of the server: none of them computes anything or starts a thread when it is imported."""
RSPRUNE = "from rsprune_dagster.cli import commands\ncommands.main()\n"
_FORKS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Running:
    """A command at work, with the files that take its output and its errors."""

    process: BaseProcess
    folder: Path

    def wait(self) -> int:
        """The exit code; minus the signal's number for a process that a signal ended."""
        self.process.join(PATIENCE_S)
        code = self.process.exitcode
        assert code is not None, f"the command is at work after {PATIENCE_S} s: {self.said()}"
        return code

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(PATIENCE_S)

    def said(self) -> str:
        """All that was written, errors after output."""
        return "".join((self.folder / name).read_text() for name in ("out", "err"))


def start(arguments: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str], before: str = "") -> Running:
    """Start `rsprune` with these arguments.

    Args:
        before: Python code that the process runs first, for what a test has go wrong.
    """
    return start_script(before + RSPRUNE, arguments, cwd=cwd, environment=environment)


def start_script(
    code: str, arguments: Sequence[str | Path], *, cwd: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Running:
    """Start a process that runs this Python code; the arguments are in its `sys.argv`."""
    _ensure_server()
    folder = Path(tempfile.mkdtemp(dir=_outputs()))
    for name in ("out", "err"):
        (folder / name).touch()
    given = (code, [str(each) for each in arguments], cwd or Path.cwd(), dict(environment), folder)
    process = _FORKS.Process(target=_run, args=given)
    process.start()
    return Running(process, folder)


def run(
    arguments: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str], before: str = ""
) -> tuple[int, str]:
    """The exit code of `rsprune`, and what it said."""
    running = start(arguments, cwd=cwd, environment=environment, before=before)
    return running.wait(), running.said()


@cache
def _outputs() -> Path:
    """A folder for what the commands say, which goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="rsprune-commands-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _ensure_server() -> None:
    """Start the server once. It has one thread for each library (`conftest.py`): threads do not survive a fork."""
    _FORKS.set_forkserver_preload(list(IMPORTED))
    multiprocessing.forkserver.ensure_running()


def _run(code: str, arguments: list[str], cwd: Path, environment: dict[str, str], folder: Path) -> None:
    # a test that loads Dagster may have left SIGTERM as SIGINT was, and that is ignored below `nohup ... &`
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for descriptor, name in ((0, os.devnull), (1, folder / "out"), (2, folder / "err")):
        file = os.open(name, os.O_RDWR)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["rsprune", *arguments]
    try:
        exec(code, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
