"""`kill -9` at ten random moments of a prune, then a rerun: the same bytes, and finished work is not done again."""

import hashlib
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import rsprune_command
from prune_runs import RESULTS, finished_work

from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus

pytestmark = pytest.mark.slow

N_KILLS = 10


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "made"
    write_corpus(folder, SyntheticPlan(n_tiles=300, size_px=32, n_scene_files=1, n_reference_per_scene=10))
    return folder


@pytest.fixture(scope="module")
def undisturbed(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a prune that ran to its end."""
    out = tmp_path_factory.mktemp("kill") / "undisturbed"
    _finish(synthetic, out)
    return out


def test_killed_at_ten_random_moments_a_rerun_gives_the_same_bytes(
    synthetic: Path, undisturbed: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)
    n_files = len(_files(undisturbed))
    out = tmp_path / "killed"
    n_killed = 0
    for attempt in range(N_KILLS):
        # spread over the whole run: early kills find an empty cache, late ones a full one
        if attempt % 3 == 0:
            out = tmp_path / f"killed_{attempt}"
        before = finished_work(_work(out))
        n_killed += _killed_after(synthetic, out, n_files=rng.randrange(n_files - len(before)))
        after = finished_work(_work(out))
        assert {name: after.get(name) for name in before} == before, "finished work was done again"
        _check_whole(out)
        if attempt % 3 == 2 or attempt == N_KILLS - 1:
            _finish(synthetic, out)
            finished = finished_work(_work(out))
            assert {name: finished.get(name) for name in after} == after, "finished work was done again"
            assert _hashes(out) == _hashes(undisturbed)
            assert not _left_over(out)
    assert n_killed >= N_KILLS // 2, f"only {n_killed} of {N_KILLS} runs were still going when they were killed"


def test_killed_over_old_results_these_stay_whole_until_the_new_ones_are(synthetic: Path, undisturbed: Path) -> None:
    out, old = undisturbed, _hashes(undisturbed)
    moments = (0, 20, len(_files(out)) - len(finished_work(_work(out))) - 8)
    n_killed = 0
    for n_files in moments:
        if _killed_after(synthetic, out, "--keep", "0.3", n_files=n_files):
            n_killed += 1
            assert _hashes(out) == old
    assert n_killed > 0, "no run was still going when it was killed"
    _finish(synthetic, out, "--keep", "0.3")
    assert _hashes(out) != old
    assert not _left_over(out)


def _start(synthetic: Path, out: Path, *options: str) -> rsprune_command.Running:
    command = ["prune", synthetic / "corpus", "--out", out]
    shards = ("--set", "corpus.shard_size=32", "--device", "cpu", "--reference", str(synthetic / "reference"))
    return rsprune_command.start([*command, *shards, *options], cwd=synthetic, environment=os.environ)


def _finish(synthetic: Path, out: Path, *options: str) -> None:
    process = _start(synthetic, out, *options)
    assert process.wait() == 0, process.said()


def _killed_after(synthetic: Path, out: Path, *options: str, n_files: int) -> bool:
    """Start a prune and kill it once it has written more than `n_files`; whether it was still running."""
    before = _files(out)
    process = _start(synthetic, out, *options)
    while process.is_alive() and len(_files(out) - before) <= n_files:
        time.sleep(0.02)
    process.kill()
    code = process.wait()
    assert code in (0, -signal.SIGKILL), process.said()
    return code != 0


def _files(out: Path) -> set[tuple[Path, int]]:
    """What has its final name, with the time at which it was written: a number that grows from step to step."""
    found = set()
    for folder, _, names in os.walk(out):  # it passes over a folder that is replaced meanwhile
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            with suppress(FileNotFoundError):  # a draft that got its final name
                found.add((path, path.stat().st_mtime_ns))
    return found


def _work(out: Path) -> Path:
    """Finished work only: drafts are hidden files, and vanish on the next run."""
    return out / ".rsprune" / "cache" / "work"


def _check_whole(out: Path) -> None:
    """What has its final name is readable to its end."""
    for table in [*(out / name for name in RESULTS), *out.rglob("work/scan/*/*")]:
        if table.is_file() and not table.name.startswith("."):
            pq.read_table(table)


def _left_over(out: Path) -> list[Path]:
    """Drafts of results and of cached work; the draft of a killed run's record stays beside that record."""
    drafts = [path for path in out.rglob(".*.draft") if "lineage" not in path.parts]
    return [*drafts, *out.rglob(".staging/*"), *out.rglob(".probe")]


def _hashes(out: Path) -> dict[str, str]:
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in RESULTS}
