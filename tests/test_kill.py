"""`kill -9` at ten random moments of a prune, then a rerun: the same bytes, and finished work is not done again."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prune_runs import RESULTS, finished_work

from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus

pytestmark = pytest.mark.slow

N_KILLS = 10


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "made"
    write_corpus(folder, SyntheticPlan(n_tiles=1500, size_px=48))
    return folder


def test_killed_at_ten_random_moments_a_rerun_gives_the_same_bytes(synthetic: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    _finish(synthetic, tmp_path / "undisturbed")
    wall_s = time.monotonic() - started
    rng = random.Random(0)
    out = tmp_path / "killed"
    n_killed = 0
    for attempt in range(N_KILLS):
        # spread over the whole run: early kills find an empty cache, late ones a full one
        if attempt % 3 == 0:
            out = tmp_path / f"killed_{attempt}"
        before = finished_work(_work(out))
        n_killed += _killed_after(synthetic, out, rng.uniform(0.25, 0.95) * wall_s)
        after = finished_work(_work(out))
        assert {name: after.get(name) for name in before} == before, "finished work was done again"
        _check_whole(out)
        if attempt % 3 == 2 or attempt == N_KILLS - 1:
            _finish(synthetic, out)
            finished = finished_work(_work(out))
            assert {name: finished.get(name) for name in after} == after, "finished work was done again"
            assert _hashes(out) == _hashes(tmp_path / "undisturbed")
            assert not _left_over(out)
    assert n_killed >= N_KILLS // 2, f"only {n_killed} of {N_KILLS} runs were still going when they were killed"


def test_killed_over_old_results_these_stay_whole_until_the_new_ones_are(synthetic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    started = time.monotonic()
    _finish(synthetic, out)
    wall_s = time.monotonic() - started
    old = _hashes(out)
    for fraction in (0.3, 0.6, 0.9):
        if _killed_after(synthetic, out, fraction * wall_s * 0.6, "--keep", "0.3"):
            assert _hashes(out) == old
    _finish(synthetic, out, "--keep", "0.3")
    assert _hashes(out) != old
    assert not _left_over(out)


def _start(synthetic: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [Path(sys.executable).with_name("rsprune"), "prune", synthetic / "corpus", "--out", out]
    shards = ("--set", "corpus.shard_size=64", "--device", "cpu", "--reference", str(synthetic / "reference"))
    return subprocess.Popen(
        [*command, *shards, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _finish(synthetic: Path, out: Path, *options: str) -> None:
    process = _start(synthetic, out, *options)
    said = process.communicate()[1]
    assert process.returncode == 0, said.decode()


def _killed_after(synthetic: Path, out: Path, wait_s: float, *options: str) -> bool:
    """Start a prune and kill it after `wait_s`; whether it was still running."""
    process = _start(synthetic, out, *options)
    try:
        process.communicate(timeout=wait_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0
    return False


def _work(out: Path) -> Path:
    """Finished work only: drafts are hidden files, and vanish on the next run."""
    return out / ".rsprune" / "cache" / "work"


def _check_whole(out: Path) -> None:
    """What has its final name is readable to its end."""
    for table in [*(out / name for name in RESULTS), *out.rglob("work/scan/*/*")]:
        if table.is_file() and not table.name.startswith("."):
            pq.read_table(table)


def _left_over(out: Path) -> list[Path]:
    return [*out.rglob(".*.draft"), *out.rglob(".staging/*"), *out.rglob(".probe")]


def _hashes(out: Path) -> dict[str, str]:
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in RESULTS}
