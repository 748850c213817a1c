"""A re-pruning on a real git repository with a bare remote and a DVC remote: what is made, published, and refused."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from projects import Project, clone, link_environments, new_project

from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus
from rsprune_dagster.resources.content import tree_of
from rsprune_dagster.resources.dvc_lock import DvcProject, version_in

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("dvc")]

PRUNING = ("raw_corpus", "reference_scenes", "entropy_scores", "embeddings", "scene_clusters", "pruned_subset")
AUTHOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "t"), ("EMAIL", "t@localhost"))
}


class Ended(NamedTuple):
    """How a command ended, and all that it said."""

    code: int
    said: str


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, dvc: str) -> Project:
    """A project that was re-pruned and published once: `bare.git` and `data` beside it are its remotes."""
    folder = tmp_path_factory.mktemp("reprune")
    project = new_project(folder)
    project.run_dvc("remote", "add", "--default", "far", str(folder / "data"))
    project.commit("a DVC remote")
    project.run("git", "clone", "--quiet", "--bare", str(project.root), str(folder / "bare.git"))
    project.run("git", "remote", "add", "origin", str(folder / "bare.git"))
    ended = reprune(project, "--push")
    assert ended.code == 0, ended.said
    return project


@pytest.fixture
def project(first: Project, tmp_path: Path) -> Project:
    """A fresh clone of the published project, with remotes of its own: what a CI runner has."""
    before = first.root.parent
    shutil.copytree(before / "bare.git", tmp_path / "bare.git")
    shutil.copytree(before / "data", tmp_path / "data")
    first.run("git", "clone", "--quiet", str(tmp_path / "bare.git"), str(tmp_path / "runner"))
    fresh = Project(tmp_path / "runner")
    link_environments(fresh)
    fresh.run_dvc("remote", "add", "--force", "--default", "far", str(tmp_path / "data"))
    fresh.commit("the DVC remote of this test")
    fresh.run("git", "push", "--quiet")
    return fresh


def reprune(project: Project, *arguments: str) -> Ended:
    done = subprocess.run(
        [".venv/bin/rsprune", "reprune", *arguments],
        cwd=project.root,
        env=project.environment(**AUTHOR),
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout + done.stderr)


def published(project: Project) -> str:
    """The commit that the bare remote's branch is at."""
    return project.run("git", "ls-remote", "origin", "refs/heads/main").partition("\t")[0]


def pushed_files(project: Project) -> set[str]:
    """The files in the DVC remote."""
    return {str(path) for path in (project.root.parent / "data").rglob("*") if path.is_file()}


def runs(project: Project) -> list[str]:
    """The assets that were made in this checkout."""
    return [record.asset for record in project.journal.records()]


def test_a_changed_parameter_is_pruned_published_and_told(project: Project, tmp_path: Path) -> None:
    project.change("selection", keep_fraction=0.2)
    changed = project.commit("keep more")
    before = project.dvc.lock()
    ended = reprune(project, "--no-scan", "--push", "--base", "HEAD~1", "--summary", str(tmp_path / "summary.md"))
    assert ended.code == 0, ended.said
    assert runs(project) == ["pruned_subset"]

    head = project.run("git", "rev-parse", "HEAD").strip()
    assert published(project) == head
    assert project.run("git", "rev-parse", "HEAD~1").strip() == changed
    assert project.run("git", "show", "--name-only", "--format=", "HEAD").split() == ["dvc.lock"]
    now = project.dvc.lock_at("HEAD")
    assert [asset for asset in now if now[asset] != before[asset]] == ["pruned_subset"]

    other = clone(project, tmp_path / "other")
    other.run_dvc("pull", "--with-deps", "pruned_subset")
    assert tree_of(other.root / "assets" / "pruned_subset").digest == version_in(now, "pruned_subset")

    summary = (tmp_path / "summary.md").read_text()
    comment = (tmp_path / "summary.comment.md").read_text()
    assert "## Re-pruning: done" in summary
    assert "| pruned_subset | selection.keep_fraction |" in summary
    assert "| scene | kept before | dropped before | kept now | dropped now |" in summary
    assert "was ranked below the cut" in summary  # why tiles entered
    assert "pruned_subset: n_kept" in summary  # a metric
    pictures = sorted(path.name for path in (tmp_path / "summary").iterdir())
    assert "pruned_subset.kept_by_scene.png" in pictures
    assert all(f"](summary/{name})" in summary for name in pictures)
    assert "](summary/" not in comment and "data:image" not in comment
    assert summary.startswith(comment.strip())


def test_nothing_changed_is_done_and_publishes_nothing(project: Project) -> None:
    before, data = published(project), pushed_files(project)
    ended = reprune(project, "--push", "--no-scan")
    assert (ended.code, runs(project)) == (0, []), ended.said
    assert "nothing changed" in ended.said
    assert (published(project), pushed_files(project)) == (before, data)
    assert project.run("git", "status", "--porcelain") == ""
    assert not (project.root / "assets" / "embeddings").exists()  # nothing was pulled that nobody reads


def test_images_listed_again_without_a_change_change_nothing(project: Project) -> None:
    before = published(project)
    ended = reprune(project, "--push")
    assert (ended.code, runs(project)) == (0, ["raw_corpus", "reference_scenes"]), ended.said
    assert "nothing changed" in ended.said
    assert published(project) == before


def test_a_corpus_behind_a_pointer_is_pulled_and_its_new_tiles_are_found(project: Project, tmp_path: Path) -> None:
    write_corpus(tmp_path / "made", SyntheticPlan(n_tiles=120, n_scene_files=0, n_reference_per_scene=10))
    shutil.copytree(tmp_path / "made" / "corpus", project.root / "data")
    project.run_dvc("add", "data")
    project.change("corpus", sources=["data"])
    project.commit("the corpus is versioned")
    project.run_dvc("push", "data.dvc")
    assert reprune(project, "--push").code == 0
    n_before = n_tiles(project)

    images = sorted(path for path in (project.root / "data").rglob("*.png"))
    for number in range(3):
        images[number].unlink()
    project.run_dvc("add", "data")
    project.run_dvc("push", "data.dvc")
    project.commit("fewer tiles")
    project.run("git", "push", "--quiet")
    runner = clone(Project(tmp_path / "bare.git"), tmp_path / "second")
    ended = reprune(runner, "--push")
    assert ended.code == 0, ended.said
    assert "pulling data.dvc" in ended.said
    assert n_tiles(runner) == n_before - 3
    assert published(runner) == runner.run("git", "rev-parse", "HEAD").strip()


def n_tiles(project: Project) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(project.root / "assets" / "pruned_subset" / "decisions.parquet").metadata.num_rows)


def test_a_gate_that_fails_publishes_nothing_and_is_not_forgotten(project: Project, tmp_path: Path) -> None:
    project.change("clustering", candidates=[10])
    project.change("repruning", max_exchanged_fraction=0.0)
    project.commit("other clusters")
    project.run("git", "push", "--quiet")
    before, data = published(project), pushed_files(project)
    for _ in range(2):  # the refused version lies in the working tree now: it is not taken for one that was let through
        ended = reprune(project, "--no-scan", "--push", "--summary", str(tmp_path / "summary.md"))
        assert ended.code == 1, ended.said
        assert "repruning.max_exchanged_fraction allows 0.0%" in ended.said
        assert "## Re-pruning: refused" in (tmp_path / "summary.comment.md").read_text()
        assert (published(project), pushed_files(project)) == (before, data)
        assert project.run("git", "rev-parse", "HEAD").strip() == before
    assert runs(project) == ["scene_clusters", "pruned_subset"] * 2


def test_a_run_that_fails_publishes_nothing(project: Project, tmp_path: Path) -> None:
    project.change("selection", keep_fraction=0.2)
    project.commit("keep more")
    project.run("git", "push", "--quiet")
    before, data = published(project), pushed_files(project)
    (project.root / "assets" / ".staging").touch()  # where assets are filled before they take their places
    ended = reprune(project, "--no-scan", "--push", "--summary", str(tmp_path / "summary.md"))
    assert ended.code == 1, ended.said
    assert "pruned_subset was not made: cannot write" in (tmp_path / "summary.md").read_text()
    assert (published(project), pushed_files(project)) == (before, data)


def test_data_that_the_remote_does_not_take_keeps_the_lock_at_home(project: Project) -> None:
    project.change("selection", keep_fraction=0.2)
    changed = project.commit("keep more")
    project.run_dvc("pull", "--quiet")
    project.run_dvc("remote", "modify", "--local", "far", "url", "/proc/nowhere")
    ended = reprune(project, "--no-scan", "--push")
    assert ended.code == 1, ended.said
    assert "dvc push failed" in ended.said
    assert project.run("git", "rev-parse", "HEAD").strip() == changed
    assert published(project) != changed


def test_a_branch_that_moved_is_said_before_and_after_the_run(project: Project, tmp_path: Path) -> None:
    project.change("selection", keep_fraction=0.2)
    mine = project.commit("keep more")
    move_after_the_first_look(project, tmp_path)
    ended = reprune(project, "--no-scan", "--push")
    assert ended.code == 1, ended.said
    assert "moved on to" in ended.said and "git pull --rebase" in ended.said
    assert runs(project) == ["pruned_subset"]
    assert project.run("git", "rev-parse", "HEAD").strip() == mine  # the commit was taken back
    assert project.run("git", "status", "--porcelain").split() == ["M", "dvc.lock"]

    ended = reprune(project, "--no-scan", "--push")
    assert ended.code == 1 and "moved on to" in ended.said
    assert runs(project) == ["pruned_subset"]  # said before the run this time

    project.run("git", "checkout", "--quiet", "dvc.lock")
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "pull", "--quiet", "--rebase")
    assert reprune(project, "--no-scan", "--push").code == 0
    assert published(project) == project.run("git", "rev-parse", "HEAD").strip()


def move_after_the_first_look(project: Project, folder: Path) -> None:
    """Have someone push to the branch while the re-pruning runs: when its data arrive at the DVC remote."""
    other = clone(Project(folder / "bare.git"), folder / "other")
    (other.root / "NOTES").write_text("meanwhile\n")
    other.commit("meanwhile")
    hook = project.root / ".git" / "hooks" / "pre-push"
    hook.write_text(f"#!/bin/sh\nunset GIT_DIR\nexec git -C {other.root} push --quiet\n")
    hook.chmod(0o755)


def test_a_lost_upstream_version_is_made_again(project: Project) -> None:
    version = project.dvc.version("scene_clusters")
    remote = project.root.parent / "data" / "files" / "md5"
    (remote / version[:2] / version[2:]).unlink()
    project.change("selection", keep_fraction=0.2)
    project.commit("keep more")
    ended = reprune(project, "--no-scan", "--push")
    assert ended.code == 0, ended.said
    assert runs(project) == ["scene_clusters", "pruned_subset"]
    assert project.dvc.version("scene_clusters") == version
    assert (remote / version[:2] / version[2:]).is_file()  # and it is there again


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "no asset is called nothing"),
        (["--base", "nowhere"], "git knows no revision nowhere"),
        (["--summary", "summary.txt"], "expected the name of a Markdown file"),
        (["--dagster", "http://127.0.0.1:9", "--push"], "--push publishes what this checkout made"),
        (["--dagster", "http://127.0.0.1:9"], "no Dagster answers at http://127.0.0.1:9"),
        (["--dagster", "nonsense"], "nonsense is not Dagster's web UI"),
    ],
)
def test_usage(first: Project, arguments: list[str], sentence: str) -> None:
    ended = reprune(first, *arguments)
    assert ended.code == 2 and sentence in ended.said, ended.said


def test_what_cannot_be_published_is_usage(project: Project) -> None:
    project.change("selection", keep_fraction=0.2)
    ended = reprune(project, "--push")
    assert ended.code == 2 and "params.yaml differ from the commit" in ended.said
    project.commit("keep more")
    project.run("git", "checkout", "--quiet", "--detach")
    ended = reprune(project, "--push")
    assert ended.code == 2 and "HEAD is detached" in ended.said
    project.run("git", "checkout", "--quiet", "main")
    project.run_dvc("remote", "default", "--unset")
    project.commit("no remote")
    ended = reprune(project, "--push")
    assert ended.code == 2 and "no default DVC remote" in ended.said
    project.change("selection", keep_fraction=7)
    assert reprune(project).code == 2
    assert runs(project) == []
    assert DvcProject(project.root).lock() == DvcProject(project.root).lock_at("HEAD")
