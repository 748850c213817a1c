"""What a re-pruning publishes and refuses, on a project of tiny assets with a bare git remote and a DVC remote."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml
from projects import workflow_script
from tiny_project import ASSETS, SENTENCE, Tiny, tiny_project

from rsprune_dagster.dagster.repruning import UpdateRequest, reprune
from rsprune_dagster.tracking.dvc_lock import version_in
from rsprune_dagster.tracking.repruning import Repruning
from rsprune_dagster.tracking.restore import Say
from rsprune_dagster.utils.errors import BlockingCheckError, RunError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("dvc")]


@dataclass(frozen=True)
class World:
    """The project, its bare remote, and the folder that is its DVC remote."""

    tiny: Tiny
    bare: Path
    data: Path

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        command = ["git", "-C", str(folder or self.tiny.root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message: str) -> str:
        self.git("commit", "--quiet", "--all", "--message", message)
        return self.git("rev-parse", "HEAD")

    def published(self) -> str:
        """The commit that the bare remote's branch is at."""
        return self.git("rev-parse", "HEAD", folder=self.bare)

    def pushed(self) -> set[str]:
        """The files in the DVC remote."""
        return {str(path.relative_to(self.data)) for path in self.data.rglob("*") if path.is_file()}

    def change_seed(self, seed: int) -> str:
        path = self.tiny.root / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params["compute"]["seed"] = seed
        path.write_text(yaml.safe_dump(params, sort_keys=False))
        return self.commit(f"seed {seed}")

    def make(self, asset: str, warn: Say) -> None:
        if not self.tiny.run(asset_selection=[dg.AssetKey(asset)]).success:
            raise RunError(SENTENCE)

    def reprune(self, *assets: str, make: Callable[[str, Say], object] | None = None, **wish: object) -> Repruning:
        goes_out = {"push_data": True, "commit": True}
        asked = {"base": "HEAD", "scan": False, **goes_out, "summary": None, "run_url": "", **wish}
        done, _ = reprune(self.tiny.root, UpdateRequest(assets or ("second",), **asked), print, make or self.make)  # type: ignore[arg-type]
        return done

    def someone_pushes(self) -> None:
        """Have somebody else push a commit to the branch."""
        other = self.bare.parent / "other"
        self.git("clone", "--quiet", str(self.bare), str(other))
        (other / "NOTES").write_text("meanwhile\n")
        self.git("add", "NOTES", folder=other)
        self.git("-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "meanwhile", folder=other)
        self.git("push", "--quiet", folder=other)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A project whose branch is published, with nothing made yet."""
    tiny = tiny_project(tmp_path / "project")
    world = World(tiny, tmp_path / "bare.git", tmp_path / "data")
    config = tiny.root / ".dvc" / "config"
    remote = f"['remote \"far\"']\n    url = {world.data}\n"
    config.write_text(config.read_text().replace("[core]", "[core]\n    remote = far") + remote)
    world.git("config", "user.name", "t")
    world.git("config", "user.email", "t@localhost")
    world.commit("a DVC remote")
    world.git("clone", "--quiet", "--bare", str(tiny.root), str(world.bare))
    world.git("remote", "add", "origin", str(world.bare))
    return world


def test_data_goes_out_first_then_one_commit_of_the_lock_alone(world: World) -> None:
    hook = world.bare / "hooks" / "pre-receive"
    hook.write_text(f"#!/bin/sh\nfind {world.data} -type f > {world.bare}/there\n")
    hook.chmod(0o755)
    before = world.git("rev-parse", "HEAD")
    done = world.reprune("second")
    assert [each.asset for each in done.made] == ["first", "second"]  # and not the third, which nobody asked for
    assert world.published() == world.git("rev-parse", "HEAD")
    assert world.git("rev-parse", "HEAD~1") == before
    assert world.git("show", "--name-only", "--format=", "HEAD") == "dvc.lock"
    assert world.git("status", "--porcelain") == ""
    there = (world.bare / "there").read_text()
    for asset in ("first", "second"):
        version = version_in(world.tiny.dvc.lock_at("HEAD"), asset)
        assert f"{version[:2]}/{version[2:]}" in there
        assert f"{asset}: {version} (never recorded)" in world.git("log", "-1", "--format=%B")


def test_the_workflow_prunes_without_a_way_to_git_and_publishes_without_the_code_of_the_branch(
    world: World, tmp_path: Path
) -> None:
    away = world.bare.rename(tmp_path / "away.git")
    before, handed = world.git("rev-parse", "HEAD"), tmp_path / "handed"
    handed.mkdir()
    world.reprune("second", commit=False, summary=handed / "summary.md")
    assert world.pushed() and world.git("rev-parse", "HEAD") == before
    away.rename(world.bare)
    (handed / "dvc.lock").write_bytes((world.tiny.root / "dvc.lock").read_bytes())
    fresh, config = Tiny(tmp_path / "fresh"), tmp_path / "config"
    world.git("clone", "--quiet", str(world.bare), str(fresh.root))
    (fresh.root / "dvc.lock").symlink_to(config)  # a branch may hold links to where nothing may be written

    for step in ("Commit", "Push"):
        environment = {**os.environ, "HANDED": str(handed), "REMOTE": str(world.bare), "BRANCH": "main"}
        names = {f"GIT_{role}_{what}": "t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        command = ["bash", "-e", "-c", workflow_script(step)]
        subprocess.run(command, cwd=fresh.root, env={**environment, **names}, check=True)
    assert not config.exists()
    assert world.git("rev-parse", "main~1", folder=world.bare) == before
    assert fresh.dvc.lock_at("HEAD") == world.tiny.dvc.lock()
    version = version_in(world.tiny.dvc.lock(), "second")
    assert f"second: {version} (never recorded)" in world.git("log", "-1", "--format=%B", "main", folder=world.bare)


def test_what_is_as_the_commit_has_it_is_neither_made_nor_published(world: World, tmp_path: Path) -> None:
    world.reprune("second", "third")
    before, data, records = world.published(), world.pushed(), world.tiny.statuses()
    done = world.reprune("second", "third", summary=tmp_path / "summary.md")
    assert done.made == ()
    assert (world.published(), world.pushed(), world.tiny.statuses()) == (before, data, records)
    assert world.git("status", "--porcelain") == ""
    assert "## Re-pruning: nothing changed" in (tmp_path / "summary.md").read_text()

    world.change_seed(7)
    assert [each.why for each in world.reprune("second").made] == ["compute.seed", "compute.seed, assets/first"]
    assert [each.asset for each in world.reprune("third").made] == ["third"]  # with the first as it was published


def test_a_blocking_check_that_fails_publishes_nothing_however_often_it_is_tried(world: World, tmp_path: Path) -> None:
    def make(asset: str, warn: Say) -> None:
        warn(f"{asset}/looks_odd: look at it")
        world.make(asset, warn)
        if asset == "second":
            raise BlockingCheckError("gate failed: second/letters: too few: write more")

    before, data = world.published(), world.pushed()
    for _ in range(2):  # the refused version lies in the working tree now: it was not let through
        with pytest.raises(BlockingCheckError, match="gate failed: second/letters: too few: write more"):
            world.reprune("second", make=make, summary=tmp_path / "summary.md")
        assert (world.published(), world.git("rev-parse", "HEAD"), world.pushed()) == (before, before, data)
    for name in ("summary.md", "summary.comment.md"):
        text = (tmp_path / name).read_text()
        assert "## Re-pruning: refused" in text and "> gate failed: second/letters: too few" in text
        assert "| second | never recorded |" in text  # it was made
        assert "* first/looks_odd: look at it" in text
    assert world.reprune("second").changed  # the check passes now


def test_a_run_that_fails_publishes_nothing_of_what_was_made_before(world: World) -> None:
    before = world.published()
    world.tiny.plan(second="raise")
    with pytest.raises(RunError, match=f"second was not made: {SENTENCE}") as caught:
        world.reprune("second")
    assert not isinstance(caught.value, BlockingCheckError)
    assert (world.published(), world.pushed()) == (before, set())


def test_data_that_the_remote_does_not_take_keeps_the_lock_at_home(world: World) -> None:
    world.data.write_text("a file where a folder is needed")
    before = world.published()
    with pytest.raises(RunError, match="dvc push failed"):
        world.reprune()
    assert (world.published(), world.git("rev-parse", "HEAD")) == (before, before)


def test_a_branch_that_moves_on_meanwhile_is_left_alone(world: World) -> None:
    def make(asset: str, warn: Say) -> None:
        world.make(asset, warn)
        if asset == "second":
            world.someone_pushes()

    before = world.git("rev-parse", "HEAD")
    with pytest.raises(RunError, match=r"moved on to .* `git pull --rebase`, then run again"):
        world.reprune(make=make)
    assert world.git("rev-parse", "HEAD") == before  # the commit was taken back
    assert world.git("status", "--porcelain") == "?? dvc.lock"

    n_records = len(world.tiny.statuses())
    with pytest.raises(RunError, match="moved on to"):
        world.reprune()
    assert len(world.tiny.statuses()) == n_records  # said before the work this time

    world.git("pull", "--quiet", "--rebase", "origin", world.git("branch", "--show-current"))
    world.reprune()
    assert world.published() == world.git("rev-parse", "HEAD")


def test_a_git_remote_that_goes_away_meanwhile_leaves_no_commit_behind(world: World) -> None:
    def make(asset: str, warn: Say) -> None:
        world.make(asset, warn)
        if asset == "second":
            world.bare.rename(world.bare.with_name("away.git"))

    before = world.git("rev-parse", "HEAD")
    with pytest.raises(RunError, match="git ls-remote failed"):
        world.reprune(make=make)
    assert world.git("rev-parse", "HEAD") == before
    assert world.git("status", "--porcelain") == "?? dvc.lock"


def test_a_code_file_that_is_gone_is_named(world: World) -> None:
    world.reprune("second")
    stages = yaml.safe_load((world.tiny.root / "dvc.yaml").read_text())
    stages["stages"]["second"]["deps"] = [*stages["stages"]["second"]["deps"], "gone.py"]
    (world.tiny.root / "dvc.yaml").write_text(yaml.safe_dump(stages))
    world.commit("names a file that is not there")
    with pytest.raises(UsageError, match=r"dvc\.yaml names gone\.py, which is not there"):
        world.reprune("second")


def test_what_was_lost_everywhere_is_made_again_before_it_is_read(world: World) -> None:
    world.reprune("first")
    version = world.tiny.dvc.version("first")
    for root in (world.data, world.tiny.root / ".dvc" / "cache"):
        (root / "files" / "md5" / version[:2] / version[2:]).unlink()
    subprocess.run(["rm", "-r", str(world.tiny.root / "assets" / "first")], check=True)
    done = world.reprune("second")
    assert [(each.asset, each.why) for each in done.made] == [
        ("first", "its data was lost"),
        ("second", "never recorded"),
    ]
    assert world.tiny.dvc.version("first") == version
    assert (world.data / "files" / "md5" / version[:2] / version[2:]).is_file()


def test_what_cannot_be_published_is_said_before_the_work(world: World) -> None:
    with pytest.raises(UsageError, match=r"no asset is called secnd \(did you mean second\?\)"):
        world.reprune("secnd")
    with pytest.raises(UsageError, match="git knows no revision nowhere"):
        world.reprune(base="nowhere")
    stages = world.tiny.root / "dvc.yaml"
    whole = stages.read_text()
    stages.write_text(whole + "# changed\n")
    with pytest.raises(UsageError, match=r"dvc\.yaml differ from the commit"):
        world.reprune("second")
    stages.write_text(whole)
    branch = world.git("branch", "--show-current")
    world.git("checkout", "--quiet", "--detach")
    with pytest.raises(UsageError, match="HEAD is detached"):
        world.reprune()
    world.git("checkout", "--quiet", branch)
    world.tiny.run(asset_selection=[dg.AssetKey(name) for name in ASSETS])
    with pytest.raises(UsageError, match=r"dvc\.lock holds a version of third that is not committed"):
        world.reprune("second")
    config = world.tiny.root / ".dvc" / "config"
    config.write_text(config.read_text().replace("remote = far", ""))
    world.commit("no remote")
    with pytest.raises(UsageError, match="no default DVC remote"):
        world.reprune("second", "third")
    assert world.tiny.statuses() == [(name, "FINISHED") for name in ASSETS]
    assert world.pushed() == set()
