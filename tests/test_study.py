"""The study: arms keep what they say, runs resume to the same bytes, equal arms score alike, studies do not mix."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from diffusion_runs import small_tiles
from prune_runs import Outcome, settings
from study_runs import KERNEL, NETWORK, SETTINGS, setup, small_study

from rsprune_dagster.diffusion.denoiser import build_denoiser
from rsprune_dagster.diffusion.model import pixel_model
from rsprune_dagster.diffusion.sampling import sample
from rsprune_dagster.diffusion.training import Trained
from rsprune_dagster.evaluation.image_set import PIXELS, image_set_of
from rsprune_dagster.pruning.ledger import n_to_keep
from rsprune_dagster.study import trainings as study_module
from rsprune_dagster.study.arms import (
    FULL,
    SHARES,
    STRATEGIES,
    Arm,
    PrunedCorpus,
    chosen_tiles,
    parse_arm,
    read_pruned,
)
from rsprune_dagster.study.results import ArmResult, read_result, read_results, result_path, write_result
from rsprune_dagster.study.trainings import (
    EvaluationSetup,
    Study,
    arm_tiles,
    held_out_leaks,
    image_set_of_arrays,
    image_set_of_tiles,
    recent_loss,
    run_arm,
    samples_of,
    study_folder,
    study_key,
)
from rsprune_dagster.utils.errors import RunError, UsageError

RSPRUNE, RANDOM = Arm("rsprune", 0.2), Arm("random", 0.2)


@pytest.fixture(scope="module")
def corpus(pruned: Outcome) -> PrunedCorpus:
    """The synthetic corpus of 300 tiles, pruned."""
    return read_pruned(pruned.layout, settings([], None).selection)


def run(corpus: PrunedCorpus, folder: Path, arm: Arm = RANDOM, study: Study | None = None, seed: int = 0) -> ArmResult:
    return run_arm(study or small_study(), arm, corpus, setup(), folder, seed=seed, workers=1, device="cpu")


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in SHARES])
def test_an_arm_keeps_its_fraction_of_the_readable_tiles_and_only_candidates(
    corpus: PrunedCorpus, strategy: str
) -> None:
    kept = chosen_tiles(corpus, Arm(strategy, 0.2), seed=1, workers=1).column("tile_id").to_pylist()
    candidates = corpus.ranking.filter(corpus.ranking.column("near_copy_of").is_null()).column("tile_id").to_pylist()
    assert len(set(kept)) == len(kept) == n_to_keep(corpus.manifest.num_rows, 0.2)
    assert set(kept) <= set(candidates)


def test_the_full_arm_is_every_readable_tile(corpus: PrunedCorpus) -> None:
    assert chosen_tiles(corpus, Arm(FULL, 1), seed=0, workers=1).num_rows == corpus.manifest.num_rows


def test_the_rsprune_arm_is_the_subset_that_the_pipeline_keeps(corpus: PrunedCorpus) -> None:
    keep = corpus.selection.keep_fraction
    subset = pq.read_table(corpus.layout.file("subset"))
    for seed in (0, 1):
        arm = chosen_tiles(corpus, Arm("rsprune", keep), seed=seed, workers=1)
        assert set(arm.column("tile_id").to_pylist()) == set(subset.column("tile_id").to_pylist())


def test_a_greater_fraction_keeps_all_that_a_smaller_one_does(corpus: PrunedCorpus) -> None:
    for strategy in ("rsprune", "random", "stratified_random"):
        few, many = (
            set(chosen_tiles(corpus, Arm(strategy, keep), seed=3, workers=1).column("tile_id").to_pylist())
            for keep in (0.1, 0.3)
        )
        assert few < many, strategy


def test_stratified_random_gives_each_scene_as_many_tiles_as_rsprune_does(corpus: PrunedCorpus) -> None:
    scene_of = dict(zip(*(corpus.ranking.column(name).to_pylist() for name in ("tile_id", "scene")), strict=True))
    counts = [
        Counter(scene_of[tile] for tile in chosen_tiles(corpus, arm, seed=0, workers=1).column("tile_id").to_pylist())
        for arm in (Arm("stratified_random", 0.2), RSPRUNE)
    ]
    assert counts[0].keys() == counts[1].keys()
    assert all(abs(counts[0][scene] - counts[1][scene]) <= 1 for scene in counts[0])


def test_names_of_arms_are_read_back_and_wrong_ones_told() -> None:
    arms = [Arm(FULL, 1), Arm("none", 0), RSPRUNE, Arm("hierarchical_kmeans", 0.05)]
    assert [parse_arm(arm.name) for arm in arms] == arms
    for wrong, words in {
        "rsprunes-0.1": "did you mean rsprune",
        "random": "keeps less than 1",
        "full-0.5": "full",
        "none-0.1": "expected none, without a share",
        "random-lots": "lots is no number",
        "random-1.5": "expected a share",
        "label_balanced-0.1": "no arm is called",
    }.items():
        with pytest.raises(UsageError, match=words):
            parse_arm(wrong)


def test_an_arm_that_no_tiles_are_left_for_is_told(corpus: PrunedCorpus) -> None:
    with pytest.raises(UsageError, match="the arm none has no tiles"):
        chosen_tiles(corpus, Arm("none", 0), seed=0, workers=1)
    with pytest.raises(UsageError, match="survive"):
        chosen_tiles(corpus, Arm("random", 0.99), seed=0, workers=1)


def test_a_run_measures_at_each_checkpoint_and_is_not_done_twice(
    corpus: PrunedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(corpus, tmp_path)
    assert [point.n_images for point in done.points] == [16, 32]
    assert all(KERNEL in point.scores for point in done.points)
    assert done.n_tiles == n_to_keep(corpus.manifest.num_rows, 0.2)
    assert not list(tmp_path.rglob("state-*"))

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(study_module, "train", refuse)
    assert run(corpus, tmp_path) == done


@pytest.mark.parametrize("killed_in", ["train", "scores_of", "write_result"])
def test_a_run_that_was_killed_anywhere_comes_to_the_same_bytes(
    corpus: PrunedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    run(corpus, tmp_path / "whole")
    calls = Counter[str]()

    def dying(name: str) -> Any:
        own = getattr(study_module, name)

        def called(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            if calls[name] == 2:
                if name == "train":  # in the middle of it: some states are there, the last is not
                    own(args[0], replace(args[1], n_images=24), *args[2:], **options)
                raise KeyboardInterrupt
            return own(*args, **options)

        return called

    with monkeypatch.context() as patched:
        patched.setattr(study_module, killed_in, dying(killed_in))
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "cut")
    run(corpus, tmp_path / "cut")
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_arms_of_the_same_tiles_score_the_same(corpus: PrunedCorpus, tmp_path: Path) -> None:
    """The tiles are all that an arm changes: two fractions that round to one count are one training."""
    one, other = (run(corpus, tmp_path, Arm("rsprune", keep)) for keep in (0.2, 0.2001))
    assert one.arm != other.arm
    assert (one.tiles, one.points) == (other.tiles, other.points)


def test_seeds_and_arms_are_other_runs_of_one_study(corpus: PrunedCorpus, tmp_path: Path) -> None:
    runs = [run(corpus, tmp_path, arm, seed=seed) for arm, seed in ((RSPRUNE, 0), (RSPRUNE, 1), (RANDOM, 0))]
    own = study_folder(tmp_path, small_study(), setup(), corpus)
    assert read_results(own) == tuple(sorted(runs, key=lambda one: (one.arm, one.seed)))
    assert len({str(one.points) for one in runs}) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoints": (16,)},
        {"n_samples": 25},
        {"sample_steps": 3},
        {"image_size_px": 24},
        {"learning_rate": 2e-3},
        {"batch_size": 4},
        {"ema_half_life_images": 17},
    ],
)
def test_a_changed_study_has_another_key(changes: dict[str, Any]) -> None:
    plain = small_study()
    inner = {name: value for name, value in changes.items() if not hasattr(plain, name)}
    outer = {name: value for name, value in changes.items() if name not in inner}
    changed = replace(plain, training=replace(plain.training, **inner), **outer)
    assert study_key(changed, setup()) != study_key(plain, setup())


def test_what_changes_no_result_changes_no_key() -> None:
    plain = small_study()
    same = replace(plain, training=replace(plain.training, seed=9, n_images=80, save_every_images=40))
    assert study_key(same, setup()) == study_key(plain, setup())


def test_a_corpus_that_is_pruned_otherwise_has_a_folder_of_its_own(corpus: PrunedCorpus, tmp_path: Path) -> None:
    others = (
        replace(corpus, selection=corpus.selection.model_copy(update={"scene_exponent": 0.5})),
        replace(corpus, ranking=corpus.ranking.slice(1)),
        replace(corpus, manifest=corpus.manifest.slice(1)),
    )
    folders = {study_folder(tmp_path, small_study(), setup(), one) for one in (corpus, *others)}
    assert len(folders) == 4


def test_another_evaluation_setup_is_another_study() -> None:
    plain = setup()
    others = (
        setup(seed=1),
        EvaluationSetup([replace(NETWORK, sha256="cd" * 32)], plain.held_out, SETTINGS),
        EvaluationSetup([NETWORK], plain.held_out, replace(SETTINGS, n_neighbours=4)),
    )
    keys = {study_key(small_study(), one) for one in (plain, *others)}
    assert len(keys) == 4


def test_a_result_of_other_tiles_is_made_anew(corpus: PrunedCorpus, tmp_path: Path) -> None:
    done = run(corpus, tmp_path)
    own = study_folder(tmp_path, small_study(), setup(), corpus)
    write_result(own, replace(done, tiles="of an older corpus", points=done.points[:1]))
    assert run(corpus, tmp_path) == done


def test_a_damaged_result_is_told(corpus: PrunedCorpus, tmp_path: Path) -> None:
    path = result_path(tmp_path, "random-0.2", 0)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"arm": "random-0.2"}))
    with pytest.raises(RunError, match="remove it"):
        read_result(path)


@pytest.mark.parametrize(
    ("checkpoints", "words"), [((), "rising"), ((32, 16), "rising"), ((16, 16), "rising"), ((16, 20), "multiples")]
)
def test_checkpoints_that_cannot_be_reached_are_refused(checkpoints: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        small_study(checkpoints=checkpoints)


def test_a_run_has_its_own_seed_and_length_and_is_else_the_study_s_training() -> None:
    study = small_study()
    assert study.options(7, 16) == replace(study.training, seed=7, n_images=16)


def test_the_loss_of_a_point_is_the_mean_of_the_last_tenth() -> None:
    assert recent_loss([9.0] * 23 + [1.0, 3.0]) == 2
    assert recent_loss([9.0, 4.0]) == 4


def test_samples_start_from_the_noise_of_the_seed_as_the_study_asks() -> None:
    study = small_study(n_samples=5, sample_steps=3, sample_batch_size=4)
    model = pixel_model(build_denoiser("tiny", image_size_px=16, n_scenes=1, seed=0))
    images = samples_of(study, Trained(model, (), 0, 1), seed=4, device="cpu")
    rest = {"n_steps": 3, "guidance": 1, "batch_size": 4, "sampler": "dpm_solver"}
    assert np.array_equal(images, sample(model, [0] * 5, seed=4, **rest))
    assert not np.array_equal(images, sample(model, [0] * 5, seed=5, **rest))


@pytest.mark.parametrize(("edge", "pixel_edge"), [(8, 8), (16, 16), (32, 16)])
def test_images_are_seen_whole_whatever_is_read_at_once(tmp_path: Path, edge: int, pixel_edge: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, edge, edge, 3)).astype(np.uint8)
    whole = image_set_of([images], [], pixel_edge_px=pixel_edge)
    assert np.array_equal(image_set_of_arrays(images, []).spaces[PIXELS], whole.spaces[PIXELS])
    tiles = small_tiles(tmp_path, image_size_px=edge)
    seen = image_set_of_tiles(tiles, [])
    assert (len(seen), seen.pixel_edge_px) == (24, pixel_edge)
    assert seen.content == image_set_of([tiles.images(range(24))], [], pixel_edge_px=4).content
    assert sorted(seen.identities.names) == tiles.table.column("tile_id").to_pylist()


def test_held_out_tiles_that_are_in_the_corpus_are_found(corpus: PrunedCorpus) -> None:
    tiles = arm_tiles(small_study(image_size_px=32), RSPRUNE, corpus, seed=0, workers=1)
    everything = image_set_of_tiles(tiles, [])
    found = held_out_leaks(everything, everything, correlation=0.94, workers=1)
    assert len(found) == len(tiles) and all(leak.exact for leak in found)
    assert not held_out_leaks(setup().held_out, everything, correlation=0.94, workers=1)
