"""The workflows: valid, pinned, with no more rights than they need, and calling only what there is."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from rsprune_dagster.cli.commands import app
from rsprune_dagster.tracking.dvc_lock import DvcProject
from rsprune_dagster.tracking.staleness import with_upstream

CHECKOUT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
JOBS = {(path.stem, name): job for path in WORKFLOWS for name, job in yaml.safe_load(path.read_text())["jobs"].items()}
VALUES = {"SCAN": "--no-scan"}
"""What a variable that stands for an option is at one time."""


def steps() -> Iterator[dict[str, Any]]:
    for job in JOBS.values():
        yield from job["steps"]


def commands() -> list[list[str]]:
    """The words of each line of all scripts, as a shell splits them."""
    return [words for step in steps() for words in words_of(step)]


def words_of(step: dict[str, Any]) -> list[list[str]]:
    lines = step.get("run", "").splitlines()
    known = [re.sub(r"\$(\w+)", lambda found: VALUES.get(found[1], found[0]), line) for line in lines]
    return [shlex.split(line) for line in known]


def test_the_workflows_are_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.stem for path in WORKFLOWS] == ["ci", "re-prune"]


def test_actions_are_pinned_and_say_which_version_that_is() -> None:
    lines = [line.strip(" -") for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert len(lines) == sum("uses" in step for step in steps()) > 0
    for line in lines:
        assert re.fullmatch(r"uses: actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_rights_are_given_to_jobs_one_by_one() -> None:
    assert all(yaml.safe_load(path.read_text())["permissions"] == {} for path in WORKFLOWS)
    assert JOBS["ci", "ci"]["permissions"] == {"contents": "read"}
    assert JOBS["re-prune", "re-prune"]["permissions"] == {"contents": "read"}
    assert JOBS["re-prune", "publish"]["permissions"] == {"contents": "write", "pull-requests": "write"}


def test_the_code_of_a_branch_never_runs_where_something_may_be_written() -> None:
    """What may write calls git, gh and cp alone, and takes the branch's results from outside its checkout."""
    for name, job in JOBS.items():
        for step in job["steps"]:
            if "write" in job["permissions"].values() and "run" in step:
                assert {words[0] for words in words_of(step)} <= {"git", "gh", "cp"}, (name, step)
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, name
            if step.get("uses", "").startswith("actions/download-artifact@"):
                assert step["with"]["path"].startswith("${{ runner.temp }}/"), name


def test_the_token_is_known_to_the_steps_alone_that_push_or_comment() -> None:
    """What the environment of a job has, or of a step that prunes, is in the hands of the branch's code."""
    for path in WORKFLOWS:
        told = yaml.safe_load(path.read_text())
        assert not re.search(r"token", str([told.get("env"), *(job.get("env") for job in told["jobs"].values())]))
        assert "pull_request_target" not in told[True]  # it would give a fork's code rights and secrets
    with_token = [(name, step["name"]) for name, job in JOBS.items() for step in job["steps"] if "token" in str(step)]
    assert with_token == [(("re-prune", "publish"), "Push"), (("re-prune", "publish"), "Comment")]


def test_each_has_a_timeout_and_runs_once_a_branch() -> None:
    assert all("timeout-minutes" in job for job in JOBS.values())
    assert all("concurrency" in yaml.safe_load(path.read_text()) for path in WORKFLOWS)


def test_no_script_holds_what_a_stranger_may_write() -> None:
    """An expression in a script is pasted in before a shell reads it: a branch's name could be a command."""
    assert not [step["run"] for step in steps() if "${{" in step.get("run", "")]


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == ".venv/bin/rsprune"], ids=" ".join)
def test_commands_of_rsprune_exist_with_their_options(words: list[str]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    command = group.commands[words[1]]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    assert {word for word in words[2:] if word.startswith("-")} <= known


def test_whatever_else_they_call_is_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    for words in commands():
        if words[0] == "make":
            assert set(words[1:]) <= targets
        elif words[0].startswith(".") and not words[0].startswith(".venv"):
            assert (CHECKOUT / words[0]).is_file()
        else:
            assert words[0] in (".venv/bin/rsprune", "git", "gh", "cp")


def test_a_change_of_anything_the_subset_is_made_from_prunes_anew_and_dvc_lock_does_not() -> None:
    [patterns] = [yaml.safe_load(path.read_text())[True]["pull_request"]["paths"] for path in WORKFLOWS[1:]]
    stages = DvcProject(CHECKOUT).stages()
    made_from = {
        f"{path}/any.py" if (CHECKOUT / path).is_dir() else path
        for asset in with_upstream(DvcProject(CHECKOUT), ["pruned_subset"])
        for path in stages[asset].get("deps", [])
        if not path.startswith("assets/")
    }
    for path in (*made_from, "params.yaml", "dvc.yaml", "corpus.dvc"):
        assert any(fnmatch(path, pattern) for pattern in patterns), path
    assert not any(fnmatch("dvc.lock", pattern) for pattern in patterns)
    assert "github-actions[bot]" in JOBS["re-prune", "re-prune"]["if"]
