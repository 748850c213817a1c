"""A prune run again, elsewhere, otherwise, or with more tiles: the same bytes, and only what is new is computed."""

import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prune_runs import Outcome, finished_work, materialize_prune, prune, settings
from safetensors.numpy import load_file

from rsprune_dagster.config.layout import PRUNING
from rsprune_dagster.corpus import storage
from rsprune_dagster.corpus.decode import TileReader
from rsprune_dagster.corpus.options import ReadOptions, read_options
from rsprune_dagster.corpus.shards import ShardCache
from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus
from rsprune_dagster.stages.raw_corpus import Scanner, scan
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.utils.progress import silent


def test_the_same_bytes_from_a_dagster_run(synthetic: Path, pruned: Outcome, tmp_path: Path) -> None:
    """In every table of every stage."""
    run = materialize_prune(settings(synthetic / "corpus", synthetic / "reference"), tmp_path)
    for stage in PRUNING:
        assert tree_of(run.assets / stage).digest == tree_of(pruned.assets / stage).digest, stage


@pytest.fixture(scope="module")
def small_pruned(small: Path, made_once: Callable[..., Path]) -> Outcome:
    params = settings(small / "corpus", small / "reference")
    return Outcome(made_once("small_pruned", lambda folder: prune(params, folder)))


@pytest.mark.parametrize(
    "changes",
    [
        {"compute": {"workers": 2}, "corpus": {"shard_size": 16}, "embedding": {"batch_size": 16}},
        {"corpus": {"shard_size": 7}, "embedding": {"batch_size": 5}},
    ],
    ids=["2 workers, shards and batches of 16", "shards of 7, batches of 5"],
)
def test_the_same_bytes_from_other_workers_shards_and_batches(
    changes: dict[str, dict[str, int]], small: Path, small_pruned: Outcome, tmp_path: Path
) -> None:
    """Each in a folder of its own with nothing cached, so each is a second run too."""
    again = prune(settings(small / "corpus", small / "reference", **changes), tmp_path)
    assert again.hashes() == small_pruned.hashes()


def test_the_same_bytes_from_files_listed_in_another_order(
    small: Path, small_pruned: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even were the listing not sorted at all."""
    sorted_entries = storage.entries
    rng = random.Random(0)
    monkeypatch.setattr(storage, "entries", lambda uri: rng.sample(found := sorted_entries(uri), len(found)))
    again = prune(settings(small / "corpus", small / "reference"), tmp_path)
    assert again.hashes() == small_pruned.hashes()


def test_the_same_bytes_from_sources_and_references_in_another_order(
    small: Path, small_pruned: Outcome, tmp_path: Path
) -> None:
    """The parts of a corpus as sources have the ids that they have in the whole."""
    parts = sorted((small / "corpus").iterdir())
    references = sorted((small / "reference").iterdir())
    for scene in references:
        (tmp_path / scene.name).mkdir()
        (tmp_path / scene.name / scene.name).symlink_to(scene)
    wrapped = [tmp_path / scene.name for scene in references]
    again = prune(settings(parts[::-1], wrapped[::-1]), tmp_path / "work")
    assert again.kept_content() == small_pruned.kept_content()
    assert again.hashes() == small_pruned.hashes()


def test_unpacked_tars_give_the_same_contents_in_the_same_order(
    small: Path, small_pruned: Outcome, tmp_path: Path
) -> None:
    corpus = tmp_path / "unpacked"
    shutil.copytree(small / "corpus", corpus)
    for archive in corpus.glob("*.tar"):
        with tarfile.open(archive) as tar:
            tar.extractall(corpus / f"from_{archive.stem}", filter="data")
        archive.unlink()
    unpacked = prune(settings(corpus, small / "reference"), tmp_path / "work")
    assert unpacked.kept_content() == small_pruned.kept_content()
    assert set(unpacked.decisions()) != set(small_pruned.decisions())


def test_a_project_elsewhere_has_the_same_tables_and_finds_its_tiles(synthetic: Path, tmp_path: Path) -> None:
    here, there = (_scanned_project(synthetic, tmp_path / name) for name in ("here", "there's another"))
    assert tree_of(here).digest == tree_of(there).digest
    (tmp_path / "here" / "data").rename(tmp_path / "gone")
    rows = pq.read_table(there / "manifest.parquet").to_pylist()
    assert {row["kind"] for row in rows} == {"file", "tar", "parquet", "window"}
    assert not [row["uri"] for row in rows if not row["uri"].startswith("data/")]
    with TileReader(read_options(there)) as reader:
        assert [reader.read_md5(row) for row in rows] == [row["content_md5"] for row in rows]


def test_a_second_run_recomputes_nothing_and_appended_tiles_cost_only_themselves(
    small: Path, small_pruned: Outcome, tmp_path: Path
) -> None:
    corpus, work = tmp_path / "corpus", tmp_path / "work"
    shutil.copytree(small / "corpus", corpus)
    params = settings(corpus, small / "reference", corpus={"shard_size": 64})
    assert prune(params, work).hashes().keys() == small_pruned.hashes().keys()
    before = finished_work(work / "cache" / "work")
    new = _more_tiles(tmp_path / "more", corpus / "appended", n_tiles=40)
    grown = prune(params, work)
    after = finished_work(work / "cache" / "work")
    assert {name: after[name] for name in before} == before
    added = sorted(set(after) - set(before))
    assert [name.split("/")[0] for name in added] == ["embeddings", "scan"]
    assert {row["tile_id"] for row in grown.rows("decisions")} >= new
    n_computed = load_file(work / "cache" / "work" / added[0])["md5"].shape[0]
    fresh = {row["content_md5"] for row in grown.rows("index", "embeddings") if row["tile_id"] in new}
    assert n_computed == len(fresh) > 0


def test_grown_in_steps_or_at_once_the_bytes_are_the_same(small: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(small / "corpus" / "part_0000", corpus / "part_0000")
    params = settings(corpus, small / "reference")
    prune(params, tmp_path / "steps")
    _more_tiles(tmp_path / "more", corpus / "appended", n_tiles=40)
    (corpus / "part_0000" / "000300.jpg").unlink(missing_ok=True)
    assert prune(params, tmp_path / "steps").hashes() == prune(params, tmp_path / "at_once").hashes()


def test_a_changed_threshold_embeds_only_what_it_lets_in(small: Path, tmp_path: Path) -> None:
    strict = settings(small / "corpus", None, entropy={"threshold_from": "bits", "threshold_bits": 5.5})
    first = prune(strict, tmp_path)
    before = finished_work(tmp_path / "cache" / "work")
    known = {row["content_md5"] for row in first.rows("index", "embeddings")}
    lenient = settings(small / "corpus", None, entropy={"threshold_from": "bits", "threshold_bits": 2.0})
    second = prune(lenient, tmp_path)
    after = finished_work(tmp_path / "cache" / "work")
    assert {name: after[name] for name in before} == before
    blocks = [load_file(tmp_path / "cache" / "work" / name) for name in set(after) - set(before)]
    let_in = {row["content_md5"] for row in second.rows("index", "embeddings")} - known
    assert sum(len(block["md5"]) for block in blocks) == len(let_in) > 0


def _more_tiles(made: Path, target: Path, *, n_tiles: int) -> set[str]:
    """Loose tiles of another seed in the folder `target`; their ids."""
    write_corpus(
        made,
        SyntheticPlan(
            n_tiles=n_tiles * 2,
            imbalance=1.0,
            n_scene_files=0,
            n_broken=0,
            n_reference_per_scene=1,
            n_held_out_per_scene=0,
            seed=1,
        ),
    )
    target.mkdir()
    for tile in sorted((made / "corpus" / "part_0000").iterdir())[:n_tiles]:
        shutil.copy(tile, target)
    return {f"{target.name}/{tile.name}" for tile in target.iterdir()}


def _scanned_project(synthetic: Path, root: Path) -> Path:
    """A project with the corpus in it, scanned; the folder of its tables."""
    shutil.copytree(synthetic / "corpus", root / "data")
    (root / "dvc.yaml").touch()
    folder = root / "assets" / "raw_corpus"
    folder.mkdir(parents=True)
    scanner = Scanner(ReadOptions(), 64, ShardCache(root / "cache"), 1, silent, home=root)
    scan([str(root / "data")], folder, scanner, labelled=False, label="raw_corpus")
    return folder
