"""A version can be asked what made it, checked, and brought back, whatever is left of its history."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from lineage_worlds import N_TILES, UPSTREAM, World, new_world

from rsprune_dagster.cli import commands as cli
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.tracking import restore as restoring
from rsprune_dagster.tracking.asset_store import replaced
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.find import find, find_one
from rsprune_dagster.tracking.locks import locks_in_history
from rsprune_dagster.tracking.places import Places, RemoteRecords
from rsprune_dagster.tracking.restore import restore
from rsprune_dagster.tracking.run_log import Record, RunLog, this_process
from rsprune_dagster.tracking.verify import verify
from rsprune_dagster.tracking.version_history import Version, VersionHistory
from rsprune_dagster.utils.errors import RunError, UsageError

SUBSET = "pruned_subset"


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Two committed versions: half of the tiles kept, then a quarter, of the same corpus."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    made = new_world(tmp_path / "project")
    monkeypatch.setenv("RSPRUNE_PROJECT", str(made.root))
    made.materialize("run-first", keep=0.5)
    made.commit("half")
    made.materialize("run-second", keep=0.25)
    made.commit("a quarter")
    yield made


@pytest.fixture
def rsprune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["rsprune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return run


def versions(chain: list[Version]) -> set[tuple[str, str]]:
    return {(version.asset, version.data_version) for version in chain}


def subset_then(world: World) -> str:
    """The hash of the first subset, that of half of the tiles."""
    return find_one(world.history(), f"{SUBSET}@HEAD~1").data_version


def holds_together(world: World) -> bool:
    return not any(verdict.problems for verdict in verify(world.history()))


# --- the chain


@pytest.mark.parametrize("forgotten", [False, True], ids=["run_log", "git alone"])
def test_every_chain_ends_at_the_corpus_and_the_reference(world: World, forgotten: bool) -> None:
    expected = {(asset, hashed) for asset, hashed in world.present().items()}
    if forgotten:
        world.forget()
    history = world.history()
    chain = history.chain(find_one(history, SUBSET))
    assert versions(chain) == expected
    told: set[str] = set()
    for version in reversed(chain):
        assert set(version.inputs) <= told, "each stands before what it was made from"
        told.add(version.asset)
    assert {version.asset for version in chain if not version.inputs} == {"raw_corpus", "reference_scenes"}
    assert find_one(history, SUBSET).params["selection.keep_fraction"] == 0.25


def test_one_version_has_many_names(world: World, tmp_path: Path) -> None:
    history = world.history()
    hashed = world.present()[SUBSET]
    shutil.copytree(world.assets / SUBSET, tmp_path / "checkpoint")
    folder = tmp_path / "checkpoint"
    paths = (folder, folder / "decisions.parquet", world.assets / SUBSET)
    for name in (SUBSET, hashed, hashed[:6], hashed[:10].upper(), f"{SUBSET}@HEAD", *paths):
        assert find_one(history, str(name)).data_version == hashed, name
    assert versions(find(history, "run-sec")) == set(world.present().items())
    # a part that two versions share is told of the first of them
    assert find_one(history, str(folder / "inner")).data_version == subset_then(world)


def test_a_folder_that_was_changed_since_is_told_by_what_it_still_holds(world: World, tmp_path: Path) -> None:
    hashed = find_one(world.history(), f"{SUBSET}@HEAD").data_version
    shutil.copytree(world.assets / SUBSET, tmp_path / "downloaded")
    (tmp_path / "downloaded" / ".gitattributes").write_text("of another place")
    with pytest.raises(UsageError, match=f"2 of its 3 different files are those of {SUBSET} {hashed}"):
        find(world.history(), str(tmp_path / "downloaded"))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "data.txt").write_text("of another place")
    with pytest.raises(UsageError, match=r"no known version.*the paths here$"):
        find(world.history(), str(tmp_path / "strange"))


def test_a_name_of_two_runs_asks_for_more(world: World) -> None:
    history = world.history()
    (world.run_log.root / "records").joinpath("run-second-pruned_subset").rename(world.root / "aside")
    with pytest.raises(UsageError, match="is a run that made"):
        find_one(history, "run-first")
    another = RunLog(world.run_log.root)
    another.write(Record("run-firstly", SUBSET, "FINISHED", 1.0, "x", data_version="ab" * 16 + ".dir"))
    with pytest.raises(UsageError, match="beginning of 2 runs"):
        find(world.history(), "run-first")


@pytest.mark.parametrize(
    "what", ["pruned_subsett", "0123456789", "nowhere/at/all", f"{SUBSET}@nowhere", "raw_corpus@x"]
)
def test_what_is_unknown_is_one_line(world: World, rsprune: Command, what: str) -> None:
    ended = rsprune("lineage", what)
    assert ended.code in (1, 2) and not ended.out
    assert len(ended.err.splitlines()) == 1
    if "@" not in what:
        assert ended.code == 2 and "looked through 4 assets" in ended.err
    if what == "pruned_subsett":
        assert "near: pruned_subset" in ended.err


def test_a_nearly_right_hash_finds_its_neighbour(world: World, rsprune: Command) -> None:
    hashed = world.present()[SUBSET]
    wrong = hashed[:9] + ("0" if hashed[9] != "0" else "1")
    assert f"near: {hashed[:10]}" in rsprune("lineage", wrong).err


def test_what_was_made_again_is_told_once(world: World, rsprune: Command) -> None:
    told = rsprune("lineage", "raw_corpus").out
    assert told.count("made again 1 time since") == 1
    assert "run-first" in told and "run-second" not in told


def test_it_is_readable_and_tells_what_departs(world: World, rsprune: Command) -> None:
    world.materialize("run-third", keep=0.1, departs=True)
    told = rsprune("lineage", SUBSET)
    assert told.code == 0
    assert max(map(len, told.out.splitlines())) <= 100
    assert "\x1b" not in told.out
    assert "selection.keep_fraction 0.1 (params.yaml: 0.5)" in told.out
    assert "dirty" in told.out and "never held it: this run departs" in " ".join(told.out.split())
    assert "http://127.0.0.1:3000/runs/run-third" in told.out
    chain = json.loads(rsprune("lineage", SUBSET, "--json", "--dagster-url", "http://there/").out)
    assert chain[0]["asset"] == SUBSET
    assert {(each["asset"], each["data_version"]) for each in chain} == set(world.present().items())
    assert chain[0]["dagster_link"] == "http://there/runs/run-third"


def test_a_failed_run_is_told_without_a_version(world: World, rsprune: Command) -> None:
    world.run_log.write(Record("run-broken", "entropy_scores", "FAILED", 5.0, "x", message="the disk is full"))
    told = rsprune("lineage", "run-broken").out
    assert "the disk is full" in told and "failed" in told


def test_commits_hold_what_they_held(world: World) -> None:
    locks = locks_in_history(world.root)
    assert len(locks) == 2
    (world.root / "dvc.lock").write_text("<<<<<<< a conflict that was committed\n")
    world.commit("conflict")
    (world.root / "dvc.lock").unlink()
    world.commit("gone")
    assert [dict(lock.stages) for lock in locks_in_history(world.root)][2:] == [{}, {}]
    assert locks_in_history(world.root)[:2] == locks
    assert locks_in_history(world.root.parent) == []


# --- MLflow


def told_elsewhere(world: World, ask: object) -> VersionHistory:
    places = Places.of_project(world.root)
    return VersionHistory.load(
        Places(places.layout, places.project, places.cache, elsewhere=RemoteRecords(ask))  # type: ignore[arg-type]
    )


def test_what_the_run_log_lacks_is_asked_for_elsewhere(world: World) -> None:
    records = world.run_log.records()
    world.forget()
    shutil.rmtree(world.root / ".git")
    (world.root / "dvc.lock").unlink()

    def ask(*, data_version: str = "", run_id: str = "", asset: str = "") -> list[Record]:
        return [
            record
            for record in records
            if record.data_version.startswith(data_version)
            and record.run_id.startswith(run_id)
            and asset in ("", record.asset)
        ]

    history = told_elsewhere(world, ask)
    assert versions(history.chain(find_one(history, SUBSET))) == set(world.present().items())
    assert versions(find(history, "run-second")) == set(world.present().items())
    assert find_one(history, world.present()[SUBSET][:8]).maker is not None


def test_a_store_that_is_down_is_asked_once(world: World) -> None:
    world.forget()
    asked: list[str] = []

    def ask(*, data_version: str = "", run_id: str = "", asset: str = "") -> list[Record]:
        asked.append(asset)
        raise ConnectionError("nobody there")

    history = told_elsewhere(world, ask)
    assert versions(history.chain(find_one(history, SUBSET))) == set(world.present().items())
    assert len(asked) == 1 and history.places.elsewhere.trouble == ["nobody there"]
    assert not any(verdict.problems for verdict in verify(history))


def test_mlflow_that_lacks_what_the_run_log_has_is_named(world: World) -> None:
    history = told_elsewhere(world, lambda **_: [])
    assert all("MLflow has no record" in " ".join(verdict.problems) for verdict in verify(history))


# --- verify


def test_all_agrees_after_a_run(world: World, rsprune: Command) -> None:
    ended = rsprune("lineage", "--verify")
    assert ended.code == 0 and "everything at hand agrees" in ended.out
    assert [line.split()[0] for line in ended.out.splitlines()[1:5]][-1] == SUBSET
    rows = json.loads(rsprune("lineage", "--verify", "--json").out)
    assert {row["asset"]: row["disk"] for row in rows} == {name: hashed[:8] for name, hashed in world.present().items()}


def flip(path: Path) -> None:
    """Change one byte, without a trace in size or time; the file is no longer linked to any other."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("asset", list(UPSTREAM))
def test_a_flipped_byte_in_the_assets_is_named(world: World, rsprune: Command, asset: str) -> None:
    flip(world.assets / asset / "inner" / "data.txt")
    ended = rsprune("lineage", "--verify", asset)
    assert ended.code == 1
    assert "inner/data.txt has changed" in ended.out and "rsprune restore" in ended.out


@pytest.mark.parametrize("asset", list(UPSTREAM))
def test_a_flipped_byte_in_the_cache_is_named_and_mended(world: World, rsprune: Command, asset: str) -> None:
    hashed = world.present()[asset]
    tree = tree_of(world.assets / asset)
    flip(world.cache.path(next(entry.md5 for entry in tree.entries if entry.relpath == "inner/data.txt")))
    ended = rsprune("lineage", "--verify")
    assert ended.code == 1 and "inner/data.txt" in ended.out and "damaged" in ended.out
    assert rsprune("restore", "--only", hashed).code == 0
    assert rsprune("lineage", "--verify").code == 0


def test_a_damaged_or_missing_listing_is_named(world: World, rsprune: Command) -> None:
    flip(world.cache.path(world.present()["raw_corpus"]))
    assert "listing" in rsprune("lineage", "--verify").out
    world.cache.path(world.present()["raw_corpus"]).unlink()
    ended = rsprune("lineage", "--verify", "raw_corpus")
    assert ended.code == 1 and "missing" in ended.out


def test_what_was_made_from_something_else_is_stale(world: World, rsprune: Command) -> None:
    old = world.present()
    world.materialize("run-third", tiles="b")
    shutil.rmtree(world.assets / SUBSET)
    world.cache.place(old[SUBSET], world.assets / SUBSET)
    ended = rsprune("lineage", "--verify", SUBSET)
    assert ended.code == 1 and "stale" in ended.out and f"raw_corpus {old['raw_corpus'][:8]}" in ended.out


def test_the_same_content_made_from_something_newer_is_not_stale(world: World) -> None:
    """dvc.lock of an older commit tells of the older input, that of the newer one of what lies there."""
    with replaced(Layout.of_project(world.root), "entropy_scores") as folder:
        (folder / "data.txt").write_text("newer")
    trees = {asset: tree_of(world.assets / asset) for asset in UPSTREAM}
    world.cache.keep(world.assets / "entropy_scores", trees["entropy_scores"])
    made = {asset: {name: trees[name] for name in UPSTREAM[asset]} for asset in ("entropy_scores", SUBSET)}
    world.dvc.record({asset: world.stage(asset, trees[asset], inputs) for asset, inputs in made.items()}, print)
    world.forget()
    assert holds_together(world)
    world.commit("newer scores")
    assert holds_together(world)


def test_a_run_that_departed_is_no_match(world: World, rsprune: Command) -> None:
    world.materialize("run-third", keep=0.1, departs=True)
    ended = rsprune("lineage", "--verify")
    assert ended.code == 1 and "departs from params.yaml" in ended.out


def test_an_asset_that_is_gone_is_named(world: World, rsprune: Command) -> None:
    shutil.rmtree(world.assets / "raw_corpus")
    ended = rsprune("lineage", "--verify")
    assert ended.code == 1 and "there is no folder" in ended.out
    assert rsprune("lineage", "--verify", "raw_corps").code == 2


# --- restore


def test_restored_it_is_as_it_was(world: World, rsprune: Command) -> None:
    then = subset_then(world)
    lock = world.dvc.lock_at("HEAD~1")
    assert rsprune("restore", then[:8]).code == 0
    assert world.present()[SUBSET] == then
    assert world.dvc.lock() == lock
    assert holds_together(world)


def test_twice_is_once(world: World, rsprune: Command) -> None:
    then = subset_then(world)
    rsprune("restore", then)
    inodes = {path: path.stat().st_ino for path in world.assets.rglob("*")}
    lock = (world.root / "dvc.lock").stat().st_ino
    assert "in place already" in rsprune("restore", then).out
    assert {path: path.stat().st_ino for path in world.assets.rglob("*")} == inodes
    assert (world.root / "dvc.lock").stat().st_ino == lock


@pytest.mark.parametrize("forgotten", [False, True], ids=["run_log", "git alone"])
def test_what_it_was_made_from_comes_with_it(world: World, forgotten: bool) -> None:
    old = world.present()
    world.materialize("run-third", tiles="b")
    world.commit("other tiles")
    if forgotten:
        world.forget()
    history = world.history()
    done = restore(history, find_one(history, old[SUBSET]), only=False, say=print)
    placed = ["raw_corpus", "entropy_scores", SUBSET]
    assert done[:3] == [f"{asset} is {old[asset]} again" for asset in placed]
    assert world.present() == old
    assert holds_together(world)


def test_only_one_leaves_the_others_alone(world: World) -> None:
    old = world.present()
    new = world.materialize("run-third", tiles="b")
    history = world.history()
    restore(history, find_one(history, old[SUBSET]), only=True, say=print)
    assert world.present() == {**new, SUBSET: old[SUBSET]}


def test_a_departed_run_comes_back_with_its_parameters(world: World) -> None:
    departed = world.materialize("run-third", keep=0.1, departs=True)
    world.materialize("run-second", keep=0.25)
    history = world.history()
    restore(history, find_one(history, departed[SUBSET]), only=False, say=print)
    params = world.dvc.lock()[SUBSET]["params"]["params.yaml"]
    assert params["selection"]["keep_fraction"] == 0.1
    assert holds_together(world)


@pytest.mark.parametrize("step", ["ensure_cached", "place", "_write_lock", "_report"])
@pytest.mark.parametrize("after", [0, 1])
def test_killed_anywhere_a_rerun_completes_it(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, after: int
) -> None:
    old = world.present()
    world.materialize("run-third", tiles="b")
    calls: list[str] = []
    whole = getattr(restoring, step)

    def dies(*arguments: object) -> object:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(step)
        return whole(*arguments)

    def bring_back() -> None:
        history = world.history()
        restore(history, find_one(history, old[SUBSET]), only=False, say=print)

    with monkeypatch.context() as patch:
        patch.setattr(restoring, step, dies)
        with suppress(KeyboardInterrupt):
            bring_back()
    bring_back()
    assert world.present() == old
    assert holds_together(world)
    assert not list((world.assets / ".staging").iterdir())


def test_a_run_at_work_is_not_disturbed(world: World, rsprune: Command) -> None:
    then = subset_then(world)
    running = Record("run-now", "raw_corpus", "RUNNING", 5.0, this_process())
    world.run_log.write(running)
    ended = rsprune("restore", then)
    assert ended.code == 1 and "run-now is making raw_corpus" in ended.err
    world.run_log.write(replace(running, process="gone:1:1"))
    assert "keep_fraction 0.5 (there 0.25)" in rsprune("restore", then).out


def test_what_stood_there_unknown_can_be_brought_back(world: World, rsprune: Command) -> None:
    (world.assets / SUBSET / "note.txt").write_text("mine")
    mine = world.present()[SUBSET]
    ended = rsprune("restore", subset_then(world))
    assert f"kept as {mine}" in ended.err
    assert world.cache.tree(mine) is not None


def test_what_cannot_be_had_changes_nothing(world: World, rsprune: Command) -> None:
    then, before = subset_then(world), world.present()
    lock = (world.root / "dvc.lock").read_bytes()
    tree = world.cache.tree(then)
    assert tree is not None
    flip(world.cache.path(next(entry.md5 for entry in tree.entries if entry.relpath == "decisions.parquet")))
    ended = rsprune("restore", then)
    assert ended.code == 1
    assert "It can be made again" in ended.err and "keep_fraction 0.5" in ended.err and "git checkout" in ended.err
    assert world.present() == before and (world.root / "dvc.lock").read_bytes() == lock


def test_a_folder_of_its_own_shares_nothing(world: World, rsprune: Command, tmp_path: Path) -> None:
    then, before = subset_then(world), world.present()
    assert rsprune("restore", then, "--to", tmp_path / "there").code == 0
    assert tree_of(tmp_path / "there").digest == then
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "there").rglob("*") if path.is_file())
    assert world.present() == before
    assert rsprune("restore", then, "--to", tmp_path / "there").code == 2
    assert rsprune("restore", "run-first").code == 2


# --- Dagster


def test_dagster_is_told_once(world: World, rsprune: Command) -> None:
    import dagster as dg

    home = world.root / ".state" / "dagster"
    home.mkdir(parents=True)
    then = subset_then(world)
    for _ in range(2):
        assert rsprune("restore", then).code == 0
    with dg.DagsterInstance.from_config(str(home)) as instance:
        events = instance.fetch_materializations(dg.AssetKey(SUBSET), limit=10).records
        [event] = [record.asset_materialization for record in events]
    assert event is not None and event.tags is not None
    assert event.tags["dagster/data_version"] == then
    assert "restored" in event.metadata
    assert rsprune("lineage", "--verify").code == 0
    world.materialize("run-second", keep=0.25)
    ended = rsprune("lineage", "--verify")
    assert ended.code == 1 and f"Dagster knows {then[:8]}" in ended.out


# --- diff


def test_diff_tells_what_changed_and_why(world: World, rsprune: Command, tmp_path: Path) -> None:
    n_left = N_TILES // 2 - N_TILES // 4
    ended = rsprune("diff", "HEAD~1", "--save", tmp_path / "changes.parquet", "--limit", 2)
    assert ended.code == 0
    assert "selection.keep_fraction  0.5  0.25" in ended.out
    assert f"0 entered, {n_left} left" in ended.out and "ranked below the cut" in ended.out
    assert "  a/05: rank 6 of 5" in ended.out
    assert pq.read_table(tmp_path / "changes.parquet").num_rows == n_left
    back = rsprune("diff", "now", subset_then(world)[:8])
    assert f"{n_left} entered, 0 left" in back.out


def test_diff_reads_the_cache_alone(world: World, rsprune: Command) -> None:
    shutil.rmtree(world.assets)
    ended = rsprune("diff", "HEAD~1", "HEAD", "--markdown")
    assert ended.code == 0 and "| selection.keep_fraction | 0.5 | 0.25 |" in ended.out
    assert rsprune("diff", "HEAD~1", "now").code == 2


@pytest.mark.parametrize("side", ["now", "HEAD", SUBSET])
def test_nothing_differs_from_itself(world: World, rsprune: Command, side: str) -> None:
    ended = rsprune("diff", side, side)
    assert ended.code == 0 and "The same tiles are kept" in ended.out and "Made alike" in ended.out


def test_diff_of_other_tiles_names_the_upstream_version(world: World, rsprune: Command) -> None:
    old = world.present()
    new = world.materialize("run-third", tiles="b", keep=0.25)
    told = rsprune("diff", old[SUBSET]).out
    assert f"raw_corpus, version      {old['raw_corpus'][:8]}  {new['raw_corpus'][:8]}" in told
    assert "not in the corpus any more" in told and "not in the corpus before" in told
    assert "reference_scenes, version" not in told


def test_diff_of_two_prunes(world: World, rsprune: Command, tmp_path: Path) -> None:
    for name, run in (("one", "HEAD~1"), ("two", "HEAD")):
        work = tmp_path / name / ".rsprune"
        shutil.copytree(world.assets, work / "assets")
        shutil.rmtree(work / "assets" / SUBSET)
        rsprune("restore", f"{SUBSET}@{run}", "--to", work / "assets" / SUBSET)
        shutil.copytree(world.run_log.root, work / "lineage")
    told = rsprune("diff", tmp_path / "one", tmp_path / "two").out
    assert "selection.keep_fraction  0.5  0.25" in told and "5 left" in told
    chain = json.loads(rsprune("lineage", SUBSET, "--json", "--out", tmp_path / "one").out)
    assert chain[0]["data_version"] == subset_then(world)
    assert rsprune("lineage", "--verify", "--out", tmp_path / "one").code == 0
    assert rsprune("lineage", SUBSET, "--out", tmp_path).code == 2


@pytest.mark.parametrize("what", ["nowhere", "raw_corpus"])
def test_diff_of_something_else_says_so(world: World, rsprune: Command, what: str) -> None:
    assert rsprune("diff", what).code == 2


# --- a real remote, a real MLflow


@pytest.mark.slow
def test_what_only_git_knows_comes_from_the_remote(
    world: World, dvc: str, rsprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str, folder: Path = world.root) -> None:
        subprocess.run([dvc, *arguments], cwd=folder, check=True, capture_output=True)

    then = subset_then(world)
    world.git("clone", "--quiet", str(world.root), str(tmp_path / "clone"))
    clone = World(tmp_path / "clone")
    for folder in (world.root, clone.root):
        # relative, as people write it; local, since `push --all-commits` takes each commit's own settings
        run("remote", "add", "--local", "--default", "beside", "../remote", folder=folder)
    run("push", "--all-commits")
    monkeypatch.setenv("RSPRUNE_PROJECT", str(clone.root))
    assert rsprune("restore", f"{SUBSET}@HEAD").code == 0
    assert clone.present() == world.present()
    assert rsprune("restore", then).code == 0
    assert clone.present()[SUBSET] == then
    assert holds_together(clone)
    assert not list((clone.root / ".dvc" / "tmp").glob("rsprune-fetch-*"))
    shutil.rmtree(tmp_path / "remote")
    shutil.rmtree(clone.root / ".dvc" / "cache")
    with pytest.raises(RunError, match="nor in a remote"):
        history = clone.history()
        restore(history, find_one(history, f"{SUBSET}@HEAD"), only=False, say=print)


@pytest.mark.slow
def test_a_fresh_clone_hears_the_rest_from_mlflow(
    world: World, rsprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rsprune_dagster.tracking.mlflow_sync import run_link, sync

    uri = f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert sync(world.run_log, uri, "rsprune").n_pending == 0
    assert rsprune("lineage", "--verify").code == 0
    [link] = [run_link(world.run_log, r) for r in world.run_log.records() if r.name == f"run-second-{SUBSET}"]
    assert link in " ".join(rsprune("lineage", SUBSET).out.split())
    world.forget()
    told = rsprune("lineage", SUBSET).out
    assert told.count("http://127.0.0.1:3000/runs/run-") == len(UPSTREAM)
    assert rsprune("lineage", "run-first").code == 0
