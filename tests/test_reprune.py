"""A re-pruning of the real pipeline, as the workflow's own scripts run it, and its rehearsal on a running Dagster."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import rsprune_command
from browser import dagster_ui
from projects import CHECKOUT, Project, clone, link_environments, new_project, workflow_script

from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dvc_lock import version_in

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("dvc")]

SUMMARY = Path(".state", "re-prune")
"""The folder in which the workflow has the summary."""
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
    shutil.move(folder / "made" / "corpus", project.root / "data")
    project.run_dvc("add", "data")
    project.run_dvc("push", "data.dvc")
    project.change("corpus", sources=["data"])
    project.commit("a DVC remote, and the corpus on it")
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
    given = project.environment(**AUTHOR)
    return Ended(*rsprune_command.run(["reprune", *arguments], cwd=project.root, environment=given))


def ended(project: Project, *command: str, **environment: str) -> Ended:
    env = project.environment(**AUTHOR, **environment)
    done = subprocess.run(command, cwd=project.root, env=env, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout + done.stderr)


def workflow_step(project: Project, name: str, **environment: str) -> Ended:
    """Run the script of a step of re-prune.yml as GitHub does, with the environment that its expressions would give."""
    return ended(project, "bash", "-e", "-c", workflow_script(name), **environment)


def published(project: Project) -> str:
    """The commit that the bare remote's branch is at."""
    return project.run("git", "ls-remote", "origin", "refs/heads/main").partition("\t")[0]


def pushed_files(project: Project) -> set[str]:
    """The files in the DVC remote."""
    return {str(path) for path in (project.root.parent / "data").rglob("*") if path.is_file()}


def runs(project: Project) -> list[str]:
    """The assets that were made in this checkout."""
    return [record.asset for record in project.run_log.records()]


def test_a_changed_parameter_is_pruned_published_and_told_once(project: Project, tmp_path: Path) -> None:
    project.change("selection", keep_fraction=0.2)
    changed = project.commit("keep more")
    project.run("git", "push", "--quiet")
    before = project.dvc.lock()
    done = workflow_step(project, "Re-prune", SCAN="--no-scan", BASE="HEAD~1")
    assert done.code == 0, done.said
    assert runs(project) == ["pruned_subset"]
    assert published(project) == changed  # the data alone went out
    handed = {"HANDED": str(project.root / SUMMARY), "REMOTE": str(tmp_path / "bare.git"), "BRANCH": "main"}
    for step in ("Commit", "Push"):
        done = workflow_step(project, step, **handed)
        assert done.code == 0, done.said

    assert project.run("git", "rev-parse", "HEAD~1").strip() == changed
    assert published(project) == project.run("git", "rev-parse", "HEAD").strip()
    assert project.run("git", "show", "--name-only", "--format=%an", "HEAD").split() == ["t", "dvc.lock"]
    now = project.dvc.lock_at("HEAD")
    assert [asset for asset in now if now[asset] != before[asset]] == ["pruned_subset"]

    summary = (project.root / SUMMARY / "summary.md").read_text()
    for part in (
        "## Re-pruning: done",
        "| pruned_subset | selection.keep_fraction |",
        "| scene | kept before | dropped before | kept now | dropped now |",
        "| was ranked below the cut | ",  # why tiles entered
        "| pruned_subset: n_kept | ",  # a metric
    ):
        assert part in summary, part
    pictures = sorted(path.name for path in (project.root / SUMMARY / "summary").iterdir())
    assert "pruned_subset.kept_by_scene.svg" in pictures
    assert all(f"](summary/{name})" in summary for name in pictures)

    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text('#!/bin/sh\necho "$@"\nfor body; do :; done\ncat "$body"\n')
    gh.chmod(0o755)
    said = workflow_step(project, "Comment", **handed, NUMBER="7", PATH=f"{gh.parent}:{os.environ['PATH']}").said
    assert said.startswith("pr comment 7 --edit-last --create-if-none --body-file")
    assert "| pruned_subset: n_kept | " in said
    assert "](summary/" not in said and "data:image" not in said  # a comment cannot show them

    other = clone(Project(tmp_path / "bare.git"), tmp_path / "other")
    other.run_dvc("remote", "modify", "--local", "far", "url", str(tmp_path / "data"))
    commit, data = published(other), pushed_files(project)
    done = reprune(other, "--push", "--base", "HEAD~2", "--summary", "summary.md")  # images are listed again
    assert (done.code, runs(other)) == (0, ["raw_corpus", "reference_scenes"]), done.said
    assert "nothing changed" in done.said
    assert (published(other), pushed_files(project)) == (commit, data)
    assert other.run("git", "status", "--porcelain", "--untracked-files=no") == ""
    assert "| pruned_subset: n_kept | " in (other.root / "summary.md").read_text()  # what the pull request changes
    assert not (other.root / "assets" / "embeddings").exists()  # nothing was pulled that nobody reads
    other.run_dvc("pull", "--with-deps", "pruned_subset")
    assert tree_of(other.root / "assets" / "pruned_subset").digest == version_in(now, "pruned_subset")


def test_gates_that_fail_publish_nothing(project: Project) -> None:
    project.change("selection", strategy="random")
    project.change("repruning", max_exchanged_fraction=0.1)
    project.commit("another subset")
    project.run("git", "push", "--quiet")
    before, data = published(project), pushed_files(project)
    done = workflow_step(project, "Re-prune", SCAN="--no-scan", BASE="HEAD~1")
    assert done.code == 1, done.said
    assert "gate failed: pruned_subset/exchanged: " in done.said
    assert "repruning.max_exchanged_fraction allows 10.0%" in done.said
    assert runs(project) == ["pruned_subset"]

    project.change("embedding", image_size_px=64)
    project.change("checks", norm_tolerance=1e-9)
    project.commit("smaller, and too strict")
    project.run("git", "push", "--quiet")
    before, head = published(project), project.run("git", "rev-parse", "HEAD").strip()
    done = reprune(project, "--no-scan", "--push", "--summary", "summary.md")
    assert done.code == 1, done.said
    assert "gate failed: embeddings/unit_norms: " in done.said
    assert runs(project)[1:] == ["embeddings"]  # and nothing that follows from it
    comment = (project.root / "summary.comment.md").read_text()
    assert "## Re-pruning: refused" in comment and "embeddings/unit_norms" in comment
    assert (published(project), project.run("git", "rev-parse", "HEAD").strip()) == (before, head)
    assert pushed_files(project) == data


def test_a_corpus_behind_a_pointer_is_pulled_and_one_that_lost_most_tiles_is_refused(project: Project) -> None:
    project.run_dvc("pull", "data.dvc")
    lose_most_of(project.root / "data")
    project.run_dvc("add", "data")
    project.run_dvc("push", "data.dvc")
    project.commit("most of it was lost")
    project.run("git", "push", "--quiet")
    shutil.rmtree(project.root / "data")
    shutil.rmtree(project.root / ".dvc" / "cache")
    before = published(project)
    done = reprune(project, "--push")
    assert "pulling data.dvc from the DVC remote" in done.said
    assert done.code == 1, done.said
    assert "gate failed: pruned_subset/not_shrunken: " in done.said
    assert "raw_corpus" in runs(project)
    assert published(project) == before


def lose_most_of(corpus: Path) -> None:
    """Leave the first container of a corpus: a source that is not mounted."""
    for path in sorted(corpus.iterdir())[1:]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_rehearsal_on_a_running_dagster_is_waited_for_and_judged(first: Project, tmp_path: Path) -> None:
    """The server has its own checkout and corpus; the parameters are those of the checkout that asks."""
    server = clone(first, tmp_path / "server")
    server.change("corpus", sources=[str(tmp_path / "made" / "corpus")])
    server.change("checks", max_shrink_fraction=0.2)
    write_corpus(tmp_path / "made", SyntheticPlan(n_tiles=120, n_scene_files=0, n_reference_per_scene=10))
    asks = clone(first, tmp_path / "asks")
    asks.change("corpus", sources=[str(tmp_path / "made" / "corpus")])
    asks.change("selection", keep_fraction=0.3)
    home = server.root / ".state" / "dagster"
    home.mkdir(parents=True)
    (home / "dagster.yaml").symlink_to(CHECKOUT / "dagster.yaml")
    environment = {**server.environment(), "DAGSTER_HOME": str(home), "RSPRUNE_PROJECT": str(server.root)}
    with dagster_ui(CHECKOUT, tmp_path / "dagster.log", environment) as url:
        done = workflow_step(asks, "Rehearse", RSPRUNE_DAGSTER=url)
        assert done.code == 0, done.said
        summary = (asks.root / SUMMARY / "summary.md").read_text()
        assert "## Re-pruning, rehearsed: passed" in summary
        assert "| pruned_subset | exact_count | passed | 36 of 120 readable tiles are kept. |" in summary
        assert "| pruned_subset | n_kept | 36 |" in summary
        assert url in done.said and "pruned_subset is done" in done.said

        lose_most_of(tmp_path / "made" / "corpus")
        done = workflow_step(asks, "Rehearse", RSPRUNE_DAGSTER=url)
        assert done.code == 1, done.said
        assert "gate failed: raw_corpus/not_shrunken: " in done.said
        assert "| raw_corpus | not_shrunken | failed |" in (asks.root / SUMMARY / "summary.comment.md").read_text()

        done = reprune(asks, "--dagster", url, "--job", "prun")
        assert done.code == 2 and "has no job prun; it has" in done.said
    assert runs(asks) == []
    records = server.run_log.records()
    last = {record.asset for record in records if record.run_id == records[-1].run_id}
    assert "raw_corpus" in last and last <= {"raw_corpus", "reference_scenes"}  # the gate stopped what follows


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing", "--push"], "no asset is called nothing"),
        (["--summary", "summary.txt"], "expected the name of a Markdown file"),
        (["--dagster", "http://127.0.0.1:9", "--push"], "--push publishes what this checkout made"),
        (["--dagster", "http://127.0.0.1:9"], "no Dagster answers at http://127.0.0.1:9"),
        (["--dagster", "nonsense"], "nonsense is not Dagster's web UI"),
    ],
)
def test_what_is_off_is_usage(first: Project, arguments: list[str], sentence: str) -> None:
    done = reprune(first, *arguments)
    assert done.code == 2 and sentence in done.said, done.said
