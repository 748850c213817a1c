"""Two commands that make assets in one place: the second says so and waits; a killed one leaves no lock."""

import errno
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import dagster as dg
import pytest
from prune_runs import settings

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.dagster.materialize import materialize
from rsprune_dagster.tracking.run_recorder import folder_recorder
from rsprune_dagster.utils import file_lock
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.utils.file_lock import held

HOLD = """
import sys, time
from pathlib import Path
from rsprune_dagster.utils.file_lock import held
with held(Path(sys.argv[1]), "the lock", print):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(lock: Path) -> "subprocess.Popen[bytes]":
    """A process that holds the lock, and does not let go of it by itself."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_command_says_that_it_waits_and_goes_on_when_the_first_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = Mock(side_effect=RunError("reached"))
    monkeypatch.setattr(dg, "materialize", reached)
    said: list[str] = []
    with holder(tmp_path / "lock") as first:

        def say(sentence: str) -> None:
            said.append(sentence)
            reached.assert_not_called()
            first.kill()

        with pytest.raises(RunError, match="reached"):
            params = settings(tmp_path, None)
            layout = Layout(tmp_path / "assets", tmp_path)
            materialize([], params, layout, recorder=folder_recorder(layout, params.tracking), warn=say)
    assert said == [f"another process holds {tmp_path / 'lock'}, as it makes assets there: waiting for it"]


def test_a_lock_is_free_after_its_block_and_not_before(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            held(tmp_path / "lock", "the lock", print),
            pytest.raises(RunError, match="the lock has been held by another process"),
            held(tmp_path / "lock", "the lock", print, patience_s=0),
        ):
            pass


def test_a_file_system_without_locks_is_said_once_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_lock.fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "not implemented")))
    said: list[str] = []
    with held(tmp_path / "lock", "the lock", said.append):
        assert said == [f"the file system of {tmp_path / 'lock'} has no locks: start no second command there meanwhile"]


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), held(tmp_path / "file" / "lock", "the lock", print):
        pass
