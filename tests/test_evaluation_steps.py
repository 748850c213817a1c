"""The evaluation on folders: what the asset evaluation_metrics leaves for a checkpoint, and what it refuses."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from diffusion_runs import OPTIONS, small_options, small_tiles, tiny_autoencoder, write_tiles
from PIL import Image
from prune_runs import PROJECT

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import EvaluationParams, load
from rsprune_dagster.corpus.shards import ShardCache
from rsprune_dagster.diffusion.checkpoint import Origin, write_checkpoint
from rsprune_dagster.diffusion.latents import latents, read_autoencoder
from rsprune_dagster.diffusion.tile_set import TileSet
from rsprune_dagster.diffusion.training import train
from rsprune_dagster.evaluation.sample_cache import key_of
from rsprune_dagster.stages import evaluation_metrics as steps
from rsprune_dagster.stages.evaluation_metrics import EvaluationReport, evaluate_checkpoint
from rsprune_dagster.stages.raw_corpus import Scanner
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.utils.errors import RunError, UsageError
from rsprune_dagster.utils.progress import silent

VERSION = "0" * 32 + ".dir"
SAMPLED_OTHERWISE = {"sampler": "ddim", "sample_steps": 3, "guidance": 1.5, "batch_size": 7}


@dataclass(frozen=True)
class World:
    """A subset, a checkpoint that was trained on it, and held-out tiles, one folder for each of two scenes."""

    root: Path
    checkpoint: Path
    subset_version: str = VERSION

    @property
    def held_out(self) -> Path:
        return self.root / "held_out"

    def params(self, **changes: Any) -> EvaluationParams:
        values = {
            "n_samples": 60,
            "sample_steps": 2,
            "network_size_px": 32,
        }
        return load(PROJECT / "params.yaml").evaluation.model_copy(update={**values, **changes})

    def evaluate(
        self,
        folder: Path,
        *,
        sources: tuple[Path, ...] | None = None,
        seed: int = 0,
        work: Path | None = None,
        **changes: Any,
    ) -> EvaluationReport:
        folder.mkdir()
        named = (self.held_out,) if sources is None else sources
        drafts = {"diffusion_checkpoint": self.checkpoint, "evaluation_metrics": folder}
        return evaluate_checkpoint(
            Layout(self.root, work or self.root / "work", drafts),
            [str(source) for source in named],
            self.params(**changes),
            Scanner(OPTIONS, 64, ShardCache(self.root / "cache"), 1, silent),
            subset_version=self.subset_version,
            seed=seed,
            device="cpu",
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("evaluation")
    tiles = small_tiles(root / "tiles", n=80, patchy=True)
    (root / "raw_corpus").mkdir()
    (root / "raw_corpus" / "corpus.json").write_text(json.dumps({"read_options": OPTIONS.values()}))
    (root / "pruned_subset").mkdir()
    pq.write_table(tiles.table, root / "pruned_subset" / "pruned_subset.parquet")
    _held_out(root / "held_out", 120, seed=7)
    return World(root, _checkpoint(root, tiles, "checkpoint"))


@pytest.fixture(scope="module")
def evaluated(world: World) -> tuple[Path, EvaluationReport]:
    folder = world.root / "evaluated"
    return folder, world.evaluate(folder)


def test_every_score_has_its_interval_and_its_protocol(evaluated: tuple[Path, EvaluationReport]) -> None:
    folder, report = evaluated
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = json.loads((folder / "protocols.json").read_text())["scores"]
    assert metrics == report.metrics and metrics["n_samples"] == 60 and metrics["n_held_out"] == 120
    assert {"kernel_descriptor", "coverage_descriptor", "kernel_descriptor/field"} <= set(scores)
    for name, score in scores.items():
        assert score["low"] <= score["value"] <= score["high"], name
        assert score["protocol"]["n_generated"] > 0 and score["protocol"]["resize"], name
        assert metrics[name] == score["value"]


def test_samples_are_kept_apart_by_all_that_they_depend_on(world: World) -> None:
    scenes = np.array([0, 1])

    def key(*, seed: int = 0, asked_for: np.ndarray = scenes, **changes: Any) -> str:
        return key_of(*steps._drawn_alike(world.params(**changes), asked_for, seed, "cpu"))

    others = [key(**{name: value}) for name, value in SAMPLED_OTHERWISE.items()]
    assert len({key(), key(seed=1), key(asked_for=scenes[::-1]), *others}) == 3 + len(SAMPLED_OTHERWISE)
    assert key(champion_margin=0.5, network_size_px=64) == key()


def test_scores_of_ddim_are_not_compared_with_those_of_its_uneven_steps(world: World, tmp_path: Path) -> None:
    report = world.evaluate(tmp_path / "out", sampler="ddim")
    drawn = {dict(score.protocol.parameters)["samples"] for score in report.scores}
    assert drawn == {"balanced scenes, ddim to each next timestep, 2 steps, guidance 1"}


def test_nothing_is_called_fid_without_the_inception_network(evaluated: tuple[Path, EvaluationReport]) -> None:
    folder, report = evaluated
    assert not {"fid", "kid"} & {name.partition("/")[0] for name in (*report.metrics, *report.left_out)}
    assert not {"fid", "kid"} & set((folder / "scenes.csv").read_text().lower().replace(",", " ").split())


def test_what_too_few_images_cannot_tell_is_named_with_the_number_needed(
    evaluated: tuple[Path, EvaluationReport],
) -> None:
    _, report = evaluated
    assert "frechet_descriptor" not in report.metrics
    assert "280" in report.left_out["frechet_descriptor"]  # one more than the descriptor's 279 numbers


def test_the_same_seed_gives_the_same_bytes_and_another_other_samples(
    world: World, evaluated: tuple[Path, EvaluationReport], tmp_path: Path
) -> None:
    folder, report = evaluated
    world.evaluate(tmp_path / "again")
    assert tree_of(tmp_path / "again").digest == tree_of(folder).digest
    other = world.evaluate(tmp_path / "other", seed=1)
    assert other.metrics["kernel_descriptor"] != report.metrics["kernel_descriptor"]


def test_a_planted_copy_is_found_though_it_is_turned(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = small_tiles(world.root / "tiles", n=80, patchy=True)
    copied = np.rot90(kept.images(range(80))[11])

    def copies(*arguments: object) -> np.ndarray:
        return np.stack([copied] * 60)

    monkeypatch.setattr(steps, "_samples", copies)
    report = world.evaluate(tmp_path / "copies", work=tmp_path / "work")
    rows = pq.read_table(tmp_path / "copies" / "samples.parquet").to_pylist()
    assert {row["nearest_tile_id"] for row in rows} == {"011.png"}
    assert all(row["distance"] == pytest.approx(0, abs=1e-6) and row["turn"] != 0 for row in rows)
    assert report.metrics["singled_out_pixels"] == 1.0


def test_samples_and_their_features_are_made_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, draw = tmp_path / "work", steps._samples
    drawn: list[str] = []

    def counted(*arguments: Any) -> np.ndarray:
        drawn.append("samples")
        return draw(*arguments)

    monkeypatch.setattr(steps, "_samples", counted)
    world.evaluate(tmp_path / "first", work=work)
    assert len(drawn) == 1

    def redrawn(name: str, **changes: Any) -> int:
        before = len(drawn)
        world.evaluate(tmp_path / name, work=work, **changes)
        return len(drawn) - before

    assert redrawn("same") == redrawn("other-measure", network_size_px=48, champion_margin=0.5) == 0
    assert tree_of(tmp_path / "same").digest == tree_of(tmp_path / "first").digest
    assert redrawn("steps", sample_steps=3) == 1
    for file in work.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert redrawn("damaged") == 1
    assert tree_of(tmp_path / "damaged").digest == tree_of(tmp_path / "first").digest


@pytest.mark.parametrize("turned", [False, True])
def test_held_out_tiles_that_were_trained_on_stop_it_or_are_reported(
    world: World, tmp_path: Path, turned: bool
) -> None:
    leaking = tmp_path / "leaking"
    shutil.copytree(world.held_out, leaking)
    trained_on = Image.open(world.root / "tiles" / "011.png")
    (trained_on.transpose(Image.Transpose.ROTATE_90) if turned else trained_on).save(leaking / "sea" / "leak.png")
    with pytest.raises(RunError, match=r"leak\.png"):
        world.evaluate(tmp_path / "refused", sources=(leaking,))
    report = world.evaluate(tmp_path / "told", sources=(leaking,), on_leak="report")
    assert len(report.leaks) == 1 and "leak.png" in report.leaks[0]


def test_content_that_was_trained_on_is_found_among_tiles_that_were_not_drawn(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking = tmp_path / "leaking"
    shutil.copytree(world.held_out, leaking)
    for name in ("003.png", "011.png"):
        shutil.copy(world.root / "tiles" / name, leaking / "sea" / f"leak-{name}")
    monkeypatch.setattr(steps, "MAX_TILES", 20)
    with pytest.raises(RunError, match=r"2 held-out tiles have the content of training tiles: .*leak-003\.png"):
        world.evaluate(tmp_path / "refused", sources=(leaking,))
    report = world.evaluate(tmp_path / "told", sources=(leaking,), on_leak="report")
    assert report.metrics["n_leaked_contents"] == 2 and "leak-011.png" in report.leaks[0]


def test_without_held_out_tiles_nothing_is_said_of_quality(world: World, tmp_path: Path) -> None:
    report = world.evaluate(tmp_path / "alone", sources=())
    assert report.scores == () and "evaluation.sources" in report.left_out["kernel_descriptor"]
    assert {row["nearest_tile_id"] for row in pq.read_table(tmp_path / "alone" / "samples.parquet").to_pylist()}


def test_a_checkpoint_of_another_subset_is_refused(world: World, tmp_path: Path) -> None:
    other = World(world.root, world.checkpoint, subset_version="1" * 32 + ".dir")
    with pytest.raises(RunError, match="trained on pruned_subset 0000"):
        other.evaluate(tmp_path / "mixed")


def test_too_few_held_out_tiles_for_any_distance_end_it(world: World, tmp_path: Path) -> None:
    _held_out(tmp_path / "few", 2, seed=3)
    with pytest.raises(RunError, match="2 held-out tiles are too few"):
        world.evaluate(tmp_path / "out", sources=(tmp_path / "few",))


def test_an_unknown_network_is_named_with_the_likely_one(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="descriptor"):
        world.evaluate(tmp_path / "out", networks=("descripter",))


@pytest.mark.parametrize("scenes", ["balanced", "subset"])
def test_samples_are_of_the_scenes_asked_for(world: World, tmp_path: Path, scenes: str) -> None:
    world.evaluate(tmp_path / "out", scenes=scenes)
    drawn = pq.read_table(tmp_path / "out" / "samples.parquet").column("scene").to_pylist()
    assert [drawn.count(name) for name in ("field", "sea")] == [30, 30]


def test_every_kind_of_checkpoint_is_evaluated_at_the_size_of_its_images(world: World, tmp_path: Path) -> None:
    tiles = small_tiles(world.root / "tiles", n=80, patchy=True)
    autoencoder, digest = read_autoencoder(tiny_autoencoder(tmp_path / "autoencoder"))
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "dit": ({"denoiser": "dit"}, {}),
        "flow": ({"objective": "flow_matching"}, {}),
        "latent": ({"autoencoder_digest": digest}, {"space": latents(autoencoder, digest, 16)}),
    }
    for name, (changes, space) in kinds.items():
        made = World(world.root, _checkpoint(tmp_path, tiles, name, space=space, **changes))
        report = made.evaluate(tmp_path / f"{name}-evaluated")
        assert report.metrics["image_size_px"] == 16, name
        assert "kernel_descriptor" in report.metrics, name


def _checkpoint(root: Path, tiles: TileSet, name: str, *, space: dict[str, Any] | None = None, **changes: Any) -> Path:
    options = small_options(n_images=16, **changes)
    trained = train(tiles, options, root / f"{name}-states", device="cpu", **(space or {})).moved("cpu")
    folder = root / name
    folder.mkdir()
    write_checkpoint(folder, trained, ["field", "sea"], options, Origin(len(tiles), VERSION, ""))
    return folder


def _held_out(folder: Path, n: int, *, seed: int) -> None:
    """Tiles of the two scenes with noise of their own."""
    for row in write_tiles(folder.with_name(folder.name + "-all"), n, seed=seed, patchy=True).to_pylist():
        (folder / row["scene"]).mkdir(parents=True, exist_ok=True)
        shutil.move(row["uri"], folder / row["scene"] / row["tile_id"])
