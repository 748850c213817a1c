"""An asset's folder is the old version or the new one, never half."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.tracking import asset_store
from rsprune_dagster.tracking.asset_store import remove_staging, replaced
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.utils.errors import RunError


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.of_project(tmp_path)


def write(layout: Layout, text: str) -> None:
    with replaced(layout, "thing") as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text)


def test_replaced_as_a_whole(layout: Layout) -> None:
    write(layout, "old")
    write(layout, "new")
    assert {path.read_text() for path in layout.folder("thing").rglob("*.txt")} == {"new"}
    assert list((layout.assets / ".staging").iterdir()) == []


def test_a_failed_write_leaves_the_old_version(layout: Layout) -> None:
    write(layout, "old")
    with pytest.raises(ValueError, match="boom"), replaced(layout, "thing") as folder:
        (folder / "a.txt").write_text("half")
        raise ValueError("boom")
    assert (layout.folder("thing") / "a.txt").read_text() == "old"
    assert list((layout.assets / ".staging").iterdir()) == []


def test_replaced_where_the_file_system_cannot_exchange(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asset_store, "_exchange", lambda one, other: False)
    write(layout, "old")
    write(layout, "new")
    assert (layout.folder("thing") / "sub" / "b.txt").read_text() == "new"


def test_a_missing_asset_says_what_to_do(layout: Layout) -> None:
    with pytest.raises(RunError, match="thing has not been materialized"):
        layout.folder("thing")


def test_a_full_disk_is_one_clear_line(layout: Layout) -> None:
    write(layout, "old")
    with pytest.raises(RunError, match="free some space"), replaced(layout, "thing"):
        raise OSError(28, "No space left on device")
    assert (layout.folder("thing") / "a.txt").read_text() == "old"


WRITER = """
import sys
from pathlib import Path
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.tracking.asset_store import replaced
layout = Layout.of_project(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    with replaced(layout, "thing") as folder:
        for name in range(20):
            (folder / f"{name}.txt").write_text(str(number))
"""


def test_killed_at_any_moment_the_folder_is_whole(layout: Layout, tmp_path: Path) -> None:
    for round_number in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        deadline = time.monotonic() + 30
        while not layout.has("thing") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05 + 0.037 * round_number)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        contents = {path.read_text() for path in layout.folder("thing").iterdir()}
        assert len(contents) == 1
        assert len(list(layout.folder("thing").iterdir())) == 20
    remove_staging(layout)
    assert list((layout.assets / ".staging").iterdir()) == []


def test_drafts_of_living_processes_stay(layout: Layout) -> None:
    mine = layout.assets / ".staging" / f"thing-{os.getpid()}-abc"
    mine.mkdir(parents=True)
    remove_staging(layout)
    assert mine.is_dir()


def test_hash_follows_content_and_names_only(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, order in ((one, "ab"), (other, "ba")):
        folder.mkdir()
        for name in order:
            (folder / name).write_text(name)
    assert tree_of(one).digest == tree_of(other).digest
    (other / "a").rename(other / "c")
    assert tree_of(one).digest != tree_of(other).digest
