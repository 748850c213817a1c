"""README.md, then docs/usage.md: every command in them works, pasted in its order on a fresh checkout."""

import contextlib
import io
import re
import shlex
import subprocess
import sys

import pytest
from projects import CHECKOUT, Project, new_project
from prune_runs import PLAN

from rsprune_dagster.cli import commands as cli
from rsprune_dagster.corpus.synthetic import COLOURS, write_corpus

PAGES = "".join((CHECKOUT / name).read_text() for name in ("README.md", "docs/usage.md"))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES, re.DOTALL | re.MULTILINE)
NOT_RUN = {
    "make test": "it would run this test",
    "make ui": "a server, which does not end by itself",
    "RSPRUNE_WEBHOOK=https://chat.example/hook make ui": "a server, which does not end by itself",
    "make mlflow": "a server, which does not end by itself",
    "docker compose -f docker/compose.yaml up --build --detach --wait": "it needs Docker",
}
"""Commands that this test leaves out, and why."""
PAIR_CLASSES = [f"{colour} {name}" for colour, name in COLOURS.items()]
SMALL = {
    "study": {"arms": ["full", "rsprune-0.15"], "seeds": [0], "checkpoints": [16]},
    "training": {"image_size_px": 32, "n_images": 16, "save_every_images": 16, "ema_half_life_images": 8},
    "super_resolution": {"scale": 2, "n_images": 16, "save_every_images": 16},
    "semantic_synthesis": {
        "sources": ["synthetic"],
        "test_sources": ["synthetic"],
        "classes": PAIR_CLASSES,
        "crop_px": 32,
    },
    "report": {"n_other_seeds": 0},
}
"""Parameters beside those of `new_project` that spare minutes."""


def commands() -> list[list[str]]:
    """The words of what is pasted, in order: lines of a shell without their comments, and the Python code."""
    pasted: list[list[str]] = []
    for language, text in BLOCKS:
        if language == "python":
            pasted.append([sys.executable, "-c", text])
        else:
            lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
            pasted += [["bash", "-e", "-c", line] for line in lines if line]
    return pasted


def test_what_is_left_out_is_there() -> None:
    assert [line for line in NOT_RUN if line not in [words[-1] for words in commands()]] == []
    assert {language for language, _ in BLOCKS} == {"", "python"}
    assert "demo: setup\n\t$(BIN)/rsprune demo $(DEMO)\n" in (CHECKOUT / "Makefile").read_text()


def test_each_setting_that_is_shown_has_an_effect() -> None:
    """With the reference and the sources of params.yaml."""
    shown = re.findall(r"`(--set [^`]+)`", PAGES)
    assert len(shown) > 1
    for each in shown:
        cli._params([word for word in shlex.split(each) if word != "--set"], cli.PRUNING)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{each.name}" for each in sorted(CHECKOUT.glob("docs/*.md")))]
)
def test_each_link_names_a_file_and_a_heading_of_it(page: str) -> None:
    """Those to other sites are not followed."""
    path = CHECKOUT / page
    for link in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        target = (path.parent / link[0]).resolve() if link[0] else path
        assert target.exists(), link
        assert not link[1] or link[1] in anchors(target.read_text()), link


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, dvc: str) -> Project:
    """A checkout whose synthetic corpus is small, with a bare repository that it may push to."""
    folder = tmp_path_factory.mktemp("readme")
    project = new_project(folder)
    synthetic = project.root / ".state" / "synthetic"
    write_corpus(synthetic, PLAN)
    for section, part in (("corpus", "corpus"), ("reference", "reference"), ("evaluation", "held_out")):
        project.change(section, sources=[f".state/synthetic/{part}"])
    for section, values in SMALL.items():
        project.change(section, **values)
    project.commit("small")
    project.run("git", "clone", "--quiet", "--bare", str(project.root), str(folder / "origin.git"))
    project.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    project.run("git", "fetch", "--quiet", "origin")
    return project


@pytest.mark.slow
def test_every_command_works_in_its_order(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of rsprune in this process, which spares the imports of each."""
    monkeypatch.chdir(project.root)
    names = {f"GIT_{role}_{what}": "t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for name, value in {**project.environment(), **names}.items():
        monkeypatch.setenv(name, value)
    for name in ("DAGSTER_HOME", "RSPRUNE_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for words in commands():
        line = words[-1].replace("make demo", ".venv/bin/rsprune demo")
        if line in NOT_RUN:
            continue
        ours = line.startswith(".venv/bin/rsprune ")
        code, said = in_this_process(shlex.split(line)[1:], monkeypatch) if ours else in_a_shell(words)
        assert code == 0, f"{line}\n{said}"
    left = project.run("git", "status", "--porcelain").splitlines()
    assert left == [" M params.yaml", "?? grid.png", "?? pruned/"]  # what the reader asked for by name


def in_this_process(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code of `rsprune`, and what it said."""
    monkeypatch.setattr(sys, "argv", ["rsprune", *arguments])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), said.getvalue()


def in_a_shell(words: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    return done.returncode, done.stdout + done.stderr
