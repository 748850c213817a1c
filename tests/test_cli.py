"""The command line: one clear line and an exit code for what is off, and answers about a finished prune."""

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
import rsprune_command
import torch
import typer
from PIL import Image
from prune_runs import PROJECT, RESULTS

from rsprune_dagster.cli import commands as cli
from rsprune_dagster.cli import out_folder as cli_out
from rsprune_dagster.cli.help import GROUPS
from rsprune_dagster.config.effects import NEEDS, without_effect
from rsprune_dagster.config.layout import WORK
from rsprune_dagster.config.params import load
from rsprune_dagster.corpus.storage import escaped_name
from rsprune_dagster.dagster import user_errors
from rsprune_dagster.pruning.encoders.embedding_cache import DIGEST, EmbeddingCache
from rsprune_dagster.stages import validate as preflight
from rsprune_dagster.utils.errors import RunError
from rsprune_dagster.utils.progress import lines


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The line on standard error that says what is off; progress bars end in carriage returns or rates."""
        said = [line for line in self.err.splitlines() if line.startswith("rsprune: ")]
        assert len(said) == 1, self.err
        assert "Traceback" not in self.err
        return said[0]


@pytest.fixture
def rsprune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs a command in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["rsprune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def earlier(commanded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The --out of an earlier prune, for a command that is to write there."""
    return Path(shutil.copytree(commanded, tmp_path_factory.mktemp("earlier") / "out"))


@pytest.fixture
def untouched(earlier: Path) -> Iterator[None]:
    """Afterwards the old results are the same files."""
    before = {name: ((earlier / name).stat().st_ino, (earlier / name).read_bytes()) for name in RESULTS}
    yield
    assert {name: ((earlier / name).stat().st_ino, (earlier / name).read_bytes()) for name in RESULTS} == before


def test_the_results_are_the_two_tables_and_nothing_half_written(commanded: Path) -> None:
    assert sorted(path.name for path in commanded.iterdir()) == sorted([".rsprune", *RESULTS])
    assert not list(commanded.rglob("*.draft"))
    assert not list((commanded / ".rsprune" / "assets" / ".staging").glob("*"))


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--keep", "0"], 2, "keep_fraction is 0"),
        (["--keep", "15"], 2, "give 0.15 to keep 15 %"),
        (["--keep", "much"], 2, "--keep"),
        (["--backbone", "mobilnet_v2"], 2, "mobilenet_v2"),
        (["--strategy", "k_centre"], 2, "k_center"),
        (["--strategy", "label_balanced"], 2, "labels"),
        (["--device", "tpu"], 2, "tpu"),
        (["--set", "entropy.treshold_bits=2"], 2, "did you mean threshold_bits"),
        (["--set", "entropi.threshold_bits=2"], 2, "SECTION.KEY=VALUE"),
        (["--set", "entropy.threshold_bits"], 2, "SECTION.KEY=VALUE"),
        (["--set", "entropy.threshold_bits=[1"], 2, "threshold_bits"),
        (["--set", "compute.workers=-1"], 2, "workers"),
        (["--weights", "nowhere.pth", "--backbone", "mobilenet_v2"], 2, "nowhere.pth"),
        (["--weights", "nowhere.pth"], 2, "takes no weights"),
        (["--reference", "nowhere"], 2, "nowhere"),
        (["--reference", ""], 2, "is a variable not set?"),
        (
            ["--set", "entropy.threshold_from=bits", "--set", "entropy.threshold_bits=8"],
            1,
            "entropy threshold of 8.00 bits",
        ),
        (["--fast"], 2, "--fast"),
        (["--set", "entropy.threshold_quantile=0.1"], 2, "it needs entropy.threshold_from=quantile"),
        (["--strategy", "random", "--set", "selection.cluster_exponent=1"], 2, "it needs selection.strategy=rsprune"),
        (["--set", "training.n_images=64"], 2, "the command does not read `training:`"),
        (["--set", "clustering.recluster=never"], 2, "this command has clustering.recluster=always"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_and_the_old_results_stay(
    options: list[str], code: int, words: str, synthetic: Path, earlier: Path, rsprune
) -> None:  # type: ignore[no-untyped-def]
    ended = rsprune("prune", synthetic / "corpus", "--out", earlier, *options)
    assert ended.code == code
    assert words in ended.complaint


def test_a_threshold_that_the_reference_overrules_is_refused(synthetic: Path, tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    command = ("prune", synthetic / "corpus", "--out", tmp_path, "--set", "entropy.threshold_bits=2")
    ended = rsprune(*command, "--reference", synthetic / "reference")
    assert ended.code == 2
    assert "entropy.threshold_bits has no effect here: it needs entropy.threshold_from=bits" in ended.complaint
    assert not list(tmp_path.iterdir())


def test_each_parameter_that_needs_another_is_one_and_is_of_use_with_some_other() -> None:
    """What the table says is met by a change of parameters, and by no other key than it names."""
    params = load(PROJECT / "params.yaml")
    others = {
        "entropy.threshold_from": ("bits", "quantile", "reference"),
        "embedding.weights": ("file.pth",),
        "embedding.backbone": ("mobilenet_v2",),
        "clustering.n_clusters": (0, 5),
        "clustering.recluster": ("never",),
        "selection.strategy": ("random", "rsprune"),
        "automation.enabled": (True,),
        "evaluation.champion_score": ("", "kid"),
        "report.n_other_seeds": (0, 1),
        "tracking.uri": ("none", ""),
        "reference.sources": ((), ("scenes",)),
    }
    for key, needs in NEEDS.items():
        section, _, name = key.partition(".")
        assert name in type(getattr(params, section)).model_fields
        met = {}
        for other, values in others.items():
            where, _, what = other.partition(".")
            found = {needs.met(params.with_values({where: {what: value}})) for value in values}
            met[other] = found | {needs.met(params)}
        decide = [other for other, found in met.items() if len(found) == 2]
        assert decide, key
        assert all(other in needs.what or other == "reference.sources" for other in decide), (key, decide)


@pytest.mark.usefixtures("untouched")
def test_a_corpus_that_is_empty_or_missing_is_one_line(tmp_path: Path, earlier: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"")
    missing = rsprune("prune", tmp_path / "nowhere", "--out", earlier)
    assert missing.code == 2 and "no such file or folder" in missing.complaint
    nothing = rsprune("prune", empty, "--out", earlier)
    assert nothing.code == 2 and str(empty) in nothing.complaint
    unusable = rsprune("prune", broken, "--out", earlier)
    assert unusable.code == 1 and "zero bytes" in unusable.complaint


@pytest.fixture
def no_server() -> Iterator[str]:
    """A URL that nobody answers at: its port is taken, and nobody listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/pool.tar"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("option", ["corpus", "--reference"])
def test_a_server_that_is_not_there_is_one_line(
    option: str, no_server: str, synthetic: Path, earlier: Path, rsprune
) -> None:  # type: ignore[no-untyped-def]
    sources = [no_server] if option == "corpus" else [synthetic / "corpus", option, no_server]
    ended = rsprune("prune", *sources, "--out", earlier)
    assert ended.code == 1
    assert f"cannot reach {no_server}: Cannot connect" in ended.complaint and "check the URL" in ended.complaint


@pytest.mark.usefixtures("untouched")
def test_a_server_that_goes_away_during_a_run_is_one_line_when_trying_again_did_not_help(
    no_server: str, earlier: Path, rsprune, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(user_errors, "RETRY_AFTER_S", 0)
    monkeypatch.setattr(preflight, "check", lambda *_, **__: None)
    ended = rsprune("prune", no_server, "--out", earlier)
    assert ended.code == 1
    assert f"cannot reach {no_server}: Cannot connect" in ended.complaint and "check the URL" in ended.complaint


@pytest.mark.usefixtures("untouched")
def test_a_reference_without_scenes_is_one_line(synthetic: Path, earlier: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    flat = next(each for each in (synthetic / "reference").iterdir() if each.is_dir())
    ended = rsprune("prune", synthetic / "corpus", "--reference", flat, "--out", earlier)
    assert ended.code == 2
    assert "one folder per scene" in ended.complaint


@pytest.mark.usefixtures("untouched")
def test_weights_of_another_file_or_another_network_are_one_line(
    synthetic: Path, earlier: Path, tmp_path: Path, rsprune
) -> None:  # type: ignore[no-untyped-def]
    from torchvision.models import squeezenet1_0

    other, renamed, text = tmp_path / "other.pth", tmp_path / "net-0123456789abcdef.pth", tmp_path / "text.pth"
    torch.save(squeezenet1_0(weights=None).state_dict(), other)
    renamed.write_bytes(other.read_bytes())
    text.write_text("no weights")
    for weights, words in ((other, "--backbone squeezenet1_0"), (renamed, "its name says"), (text, "cannot be read")):
        ended = rsprune(
            "prune", synthetic / "corpus", "--backbone", "mobilenet_v2", "--weights", weights, "--out", earlier
        )
        assert ended.code == 2
        assert words in ended.complaint


def test_all_tiles_blank_is_one_line(tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "corpus").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(tmp_path / "corpus" / f"{index}.png")
    ended = rsprune("prune", tmp_path / "corpus", "--out", tmp_path / "out")
    assert ended.code == 1
    assert "all 3 tiles are below the entropy threshold" in ended.complaint
    assert not (tmp_path / "out" / RESULTS[0]).exists()


def test_an_out_that_cannot_be_written_is_one_line(synthetic: Path, tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        ended = rsprune("prune", synthetic / "corpus", "--out", out)
        assert ended.code == 2
        assert "cannot be written" in ended.complaint


def test_a_missing_argument_and_an_unknown_command_are_one_line(rsprune) -> None:  # type: ignore[no-untyped-def]
    for arguments in (["prune", "somewhere"], ["prune"], ["prnue", "somewhere"], ["--nonsense"]):
        ended = rsprune(*arguments)
        assert ended.code == 2
        assert "--help" in ended.complaint


def test_what_is_short_is_said(tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    """Two copies of one picture: both cannot be kept."""
    (tmp_path / "corpus").mkdir()
    tile = Image.effect_noise((64, 64), 80)
    for name in ("a.png", "b.png"):
        tile.save(tmp_path / "corpus" / name)
    ended = rsprune("prune", tmp_path / "corpus", "--keep", "1", "--out", tmp_path / "out", "--device", "cpu")
    assert ended.code == 0
    assert "1 tiles are kept, not the 2 asked" in ended.complaint


def test_a_prune_says_what_is_in_effect_and_then_what_came_and_what_next(
    synthetic: Path, tmp_path: Path, rsprune
) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "a folder"
    command = ("prune", synthetic / "corpus", "--reference", synthetic / "reference", "--out", out, "--device", "cpu")
    ended = rsprune(*command, "--keep", "0.2", "--set", "selection.near_duplicate_correlation=0.9")
    told = ended.err.splitlines()
    assert told[0] == f"keeping 0.2 of {synthetic / 'corpus'}"
    assert told[1] == f"encoder descriptor, reference {synthetic / 'reference'}"
    assert str(PROJECT / "params.yaml") in told[2] and "selection.near_duplicate_correlation" in told[2]
    assert "\r" not in ended.err  # no terminal: lines, and no bar
    assert f"raw_corpus: {len(pq.read_table(out / RESULTS[1]))} to do" in told

    kept = pq.read_table(out / RESULTS[0]).column("scene").to_pylist()
    header, *rows = [line.split() for line in ended.out.partition("\n\n")[0].splitlines()]
    assert header == ["scene", "tiles", "of", "all", "kept", "of", "kept"]
    assert {row[0]: int(row[3]) for row in rows} == {scene: kept.count(scene) for scene in {row[0] for row in rows}}
    for before, after in ((1, 2), (3, 4)):
        total = sum(int(row[before]) for row in rows)
        assert all(row[after] == f"{int(row[before]) / total:.1%}" for row in rows)

    for line in ended.out.partition("next:\n")[2].splitlines():
        name, *arguments = shlex.split(line, comments=True)
        assert name == "rsprune"
        answer = rsprune(*[str(tmp_path / "target") if word == "FOLDER" else word for word in arguments])
        assert answer.code == 0, answer.err


def test_a_report_on_an_earlier_subset_goes_and_what_is_not_ours_stays(synthetic: Path, earlier: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    def prune(keep: float) -> Ended:
        command = ("prune", synthetic / "corpus", "--reference", synthetic / "reference", "--out", earlier)
        return rsprune(*command, "--device", "cpu", "--keep", keep)

    (earlier / "notes.html").write_text("mine")
    page = earlier / "report.html"
    assert rsprune("report", "--out", earlier).code == 0
    assert "removed" not in prune(0.15).err and page.is_file()  # the same subset
    assert f"rsprune: {page} told of the earlier subset and was removed" in prune(0.1).err
    assert not page.exists() and (earlier / "notes.html").read_text() == "mine"


def test_results_are_copied_while_other_commands_wait(
    small: Path, tmp_path: Path, rsprune, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    busy = []

    def publish(subset: Path, out: Path) -> list[str]:
        with (out / WORK / "lock").open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        busy.append(out)
        return cli_out.publish(subset, out)

    monkeypatch.setattr(cli, "publish", publish)
    assert rsprune("prune", small / "corpus", "--out", tmp_path, "--device", "cpu").code == 0
    assert busy == [tmp_path] and all((tmp_path / name).is_file() for name in RESULTS)


def test_an_interrupt_is_one_sentence_and_the_same_command_goes_on(synthetic: Path, tmp_path: Path) -> None:
    """SIGINT when the command says that it has begun; the rest of its work takes seconds."""
    command = ["prune", synthetic / "corpus", "--out", tmp_path / "out", "--device", "cpu"]
    running = rsprune_command.start(command, cwd=tmp_path, environment={**os.environ, "MLFLOW_TRACKING_URI": "none"})
    while running.is_alive() and "raw_corpus: " not in running.said():
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait() == 130, running.said()
    rest = running.said().partition("raw_corpus: ")[2].partition("\n")[2]
    *progress, last = rest.splitlines()
    assert last.startswith("rsprune: interrupted: finished work is kept, and the same command goes on")
    assert not [line for line in progress if not re.match(r"[\w ]+: [\d,]+ ", line)]
    assert not (tmp_path / "out" / RESULTS[0]).exists()


def test_progress_that_goes_into_a_file_is_lines_with_a_share_and_an_estimate() -> None:
    said: list[str] = []
    with lines(said.append, every_s=0.0)("embeddings", 4) as advance:
        for _ in range(4):
            advance(1)
    assert len(said) == 4 and all(
        re.search(rf"embeddings: {n} of 4 \({n * 25}%\), .* left", said[n - 1]) for n in (1, 2, 3)
    )
    assert said[3].startswith("embeddings: 4 done")


def test_help_groups_every_command_and_cuts_no_sentence(rsprune) -> None:  # type: ignore[no-untyped-def]
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group)
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(group.commands)
    told = " ".join(rsprune("--help").out.split())
    for name, command in group.commands.items():
        assert f" {name} {' '.join((command.help or '').partition(chr(10) * 2)[0].split())}" in told
        arguments = rsprune(name, "--help").out
        for parameter in command.params:
            assert parameter.human_readable_name.upper() not in ("CORPUS",) or "fsspec URLs" in arguments
    assert rsprune("--version").out == f"rsprune {version('rsprune_dagster')}\n"
    alone = rsprune()
    assert alone.code == 2 and alone.err.startswith("Usage: ") and "rsprune: " not in alone.err


def test_explain_says_why_for_every_decision(commanded: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    rows = pq.read_table(commanded / "decisions.parquet").to_pylist()
    for decision in ("kept", "unselected", "duplicate", "low_information", "quarantined"):
        some = [row for row in rows if row["decision"] == decision]
        for row in (some[0], some[-1]):
            ended = rsprune("explain", row["tile_id"], "--out", commanded)
            assert ended.code == 0
            assert row["reason"] in ended.out and decision.replace("_", " ") in ended.out
            assert ("cluster" in ended.out) == (row["cluster_id"] is not None)


def test_explain_of_a_kept_tile_names_its_nearest_kept_tiles(commanded: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    kept = pq.read_table(commanded / "pruned_subset.parquet").to_pylist()
    crowded = next(row for row in kept if sum(each["cluster_id"] == row["cluster_id"] for each in kept) > 1)
    said = rsprune("explain", crowded["tile_id"], "--out", commanded).out
    assert "nearest kept tiles" in said and "cosine" in said


def test_explain_of_an_unknown_tile_suggests_one(commanded: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    known = pq.read_table(commanded / "decisions.parquet").column("tile_id")[0].as_py()
    ended = rsprune("explain", known + "x", "--out", commanded)
    assert ended.code == 2
    assert f"did you mean {known}?" in ended.complaint
    assert rsprune("explain", 'it\'s "odd"', "--out", commanded).code == 2


def test_names_with_escapes_do_not_reach_the_terminal(tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    """Names of a tile, a scene and a broken file that clear the screen, forge a line, turn the direction of writing."""
    odd, names = "\x1b[2J\nrsprune: done\r\u202e", "abc"
    for name in names:
        folder = tmp_path / "corpus" / odd
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 80).save(folder / f"{name}.png")
        for scene, noise in (("=1+1", 80), ("$\\frac$", 20)):
            (tmp_path / "reference" / f"{scene}{odd}").mkdir(parents=True, exist_ok=True)
            Image.effect_noise((64, 64), noise).save(tmp_path / "reference" / f"{scene}{odd}" / f"{name}.png")
    (folder / "broken.png").write_bytes(b"")
    out = tmp_path / "out"
    command = ("prune", tmp_path / "corpus", "--reference", tmp_path / "reference", "--out", out, "--device", "cpu")
    said = [rsprune(*command, "--keep", "1")]
    rows = pq.read_table(out / "decisions.parquet").to_pylist()
    assert {row["tile_id"] for row in rows} == {escaped_name(f"{odd}/{name}.png") for name in (*names, "broken")}
    said += [rsprune("explain", row["tile_id"], "--out", out) for row in rows]
    said += [rsprune("explain", f"{odd}/d.png", "--out", out), rsprune("prune", folder / odd, "--out", out)]
    assert [ended.code for ended in said] == [0] * 5 + [2] * 2
    for ended in said:
        for stream in (ended.out, ended.err):
            assert not any(bad in stream for bad in ("\x1b[2J", "\u202e", "\nrsprune: done"))
    assert r"\x1b[2J\x0arsprune: done\x0d\u202e" in said[1].out
    cells = (out / ".rsprune" / "assets" / "pruned_subset" / "scenes.csv").read_text()
    assert "'=1+1" in cells and '"=1+1' not in cells


def test_questions_before_a_prune_say_what_to_do_first(tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    for question in (["explain", "a.jpg"], ["export", tmp_path / "target"]):
        ended = rsprune(*question, "--out", tmp_path / "nowhere")
        assert ended.code == 2
        assert "rsprune prune" in ended.complaint


@pytest.mark.parametrize("form", ["webdataset", "folder", "list"])
def test_export_writes_every_kept_tile_and_refuses_to_write_twice(
    form: str, commanded: Path, tmp_path: Path, rsprune
) -> None:  # type: ignore[no-untyped-def]
    n_kept = pq.ParquetFile(commanded / "pruned_subset.parquet").metadata.num_rows
    ended = rsprune("export", tmp_path / "target", "--form", form, "--out", commanded)
    assert ended.code == 0
    assert f"{n_kept:,} tiles" in ended.out
    again = rsprune("export", tmp_path / "target", "--form", form, "--out", commanded)
    assert again.code == 2
    assert str(tmp_path / "target") in again.complaint


def test_export_names_the_forms_there_are(commanded: Path, tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    ended = rsprune("export", tmp_path / "target", "--form", "zip", "--out", commanded)
    assert ended.code == 2
    assert "webdataset" in ended.complaint and not (tmp_path / "target").exists()


def test_plan_says_tiles_time_disk_and_memory_and_writes_nothing(
    synthetic: Path, tmp_path: Path, rsprune, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    ended = rsprune("plan", synthetic / "corpus", "--device", "cpu")
    assert ended.code == 0
    for word in ("309 tiles", "time", "disk", "memory", "descriptor"):
        assert word in ended.out
    assert not list(tmp_path.iterdir())


def test_plan_of_nothing_is_one_line(tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    assert rsprune("plan", tmp_path).code == 2
    assert "nowhere" in rsprune("plan", tmp_path / "nowhere").complaint


def test_synth_makes_a_corpus_and_keeps_what_is_not_its_own(tmp_path: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    made = rsprune("synth", tmp_path / "made", "--tiles", "60", "--size", "32", "--seed", "3")
    assert made.code == 0
    assert (tmp_path / "made" / "truth.parquet").is_file()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    refused = rsprune("synth", tmp_path / "taken", "--tiles", "60")
    assert refused.code == 2
    assert "thesis.txt" in refused.complaint
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk]
    mounted = subprocess.run(command, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    # a failed step may still hold a file open
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_one_line_and_the_old_results_stay(small: Path, small_disk: Path, rsprune) -> None:  # type: ignore[no-untyped-def]
    command = ("prune", small / "corpus", "--out", small_disk / "out", "--device", "cpu")
    assert rsprune(*command).code == 0
    before = {name: (small_disk / "out" / name).read_bytes() for name in RESULTS}
    anew = ("--set", "corpus.min_valid_fraction=0.4")  # nothing that is cached fits
    _full_at_each_stage(small_disk, before, lambda: rsprune(*command, "--seed", 1, *anew))


def test_vectors_say_so_when_the_disk_is_full(small_disk: Path) -> None:
    cache, n = EmbeddingCache(small_disk / "cache"), 100_000
    md5 = np.arange(2 * n, dtype=np.uint64).view(DIGEST)
    with pytest.raises(RunError, match="No space left"):
        cache.add(md5, np.zeros((n, 64), np.float16))
    assert not list(cache.folder.iterdir())


def _full_at_each_stage(disk: Path, before: dict[str, bytes], run) -> None:  # type: ignore[no-untyped-def]
    """Runs with more and more room, until one ends well; every one before it ends in a line and leaves the results."""
    filler = disk / "filler"
    for attempt, room in enumerate((0, 16, 128, 512, 2048, 12288)):
        filler.unlink(missing_ok=True)
        status = os.statvfs(disk)
        filler.write_bytes(bytes(max(status.f_bavail * status.f_frsize - room * 1024, 0)))
        ended = run()
        if ended.code == 0:
            assert attempt > 1, "the disk was never full"
            return
        assert ended.code in (1, 2), ended.err
        assert "space" in ended.complaint or "cannot be written" in ended.complaint
        assert {name: (disk / "out" / name).read_bytes() for name in RESULTS} == before
    pytest.fail("the run did not end well with all the room there is")


def test_a_version_without_the_column_of_guesses_is_explained_and_reported(
    commanded: Path, tmp_path: Path, rsprune
) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    shutil.copytree(commanded, out)
    assignment = out / ".rsprune" / "assets" / "scene_clusters" / "assignment.parquet"
    pq.write_table(pq.read_table(assignment).drop_columns(["reference_scene"]), assignment)
    kept = pq.read_table(out / "pruned_subset.parquet").column("tile_id")[0].as_py()
    assert rsprune("explain", kept, "--out", out).out == rsprune("explain", kept, "--out", commanded).out
    assert rsprune("report", "--out", out).code == 0


def test_what_stands_beside_the_results_is_removed_only_where_we_wrote_it(tmp_path: Path) -> None:
    subset, out = tmp_path / "subset", tmp_path / "out"
    for folder in (subset, out / ".rsprune"):
        folder.mkdir(parents=True)

    def publish(content: str) -> list[str]:
        for name in RESULTS:
            (subset / name).write_text(content)
        return cli_out.publish(subset, out)

    publish("first")
    for name in ("report.html", "changed.html"):
        (out / name).write_text("made")
        cli_out.note_beside(out, out / name)
    (out / "changed.html").write_text("mine now")
    (tmp_path / "outside.html").write_text("made")
    beside = out / ".rsprune" / "beside.json"
    noted = json.loads(beside.read_text())
    beside.write_text(json.dumps({**noted, "../outside.html": noted["report.html"]}))
    assert publish("first") == [] and publish("second") == ["report.html"]
    assert (tmp_path / "outside.html").exists() and (out / "changed.html").exists()
    beside.write_text("{")
    assert publish("third") == []
    assert all((out / name).read_text() == "third" for name in RESULTS)


def test_an_experiment_counts_where_the_environment_names_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    params = load(PROJECT / "params.yaml").with_values({"tracking": {"uri": "none"}})
    assert len(without_effect(params, ["tracking.experiment"])) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert without_effect(params, ["tracking.experiment"]) == []
