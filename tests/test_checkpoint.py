"""The checkpoint as a folder: what is in it, what its card says, what a resumed asset gives."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from diffusion_runs import small_options, small_tiles
from PIL import Image
from prune_runs import Outcome, settings
from safetensors.numpy import load_file
from typer.testing import CliRunner

from rsprune_dagster.cli.commands import app
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import TrainingParams
from rsprune_dagster.diffusion.checkpoint import (
    Origin,
    SamplingOptions,
    load_checkpoint,
    sample_grid,
    write_checkpoint,
)
from rsprune_dagster.diffusion.state import HARMLESS, training_key
from rsprune_dagster.diffusion.training import Trained, train
from rsprune_dagster.stages.diffusion_checkpoint import train_checkpoint
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.utils.errors import RunError, UsageError

runner = CliRunner()
SAMPLING = SamplingOptions(n_steps=2, guidance=1.5, sampler="ddim", batch_size=8, seed=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("training")
    return train(small_tiles(folder / "tiles"), small_options(n_images=16), folder / "states", device="cpu").moved(
        "cpu"
    )


@pytest.fixture(scope="module")
def checkpoint(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, trained, ["field", "sea"], small_options(), Origin(24, "abc.dir", "CC-BY-4.0"))
    return folder


def test_it_holds_no_pickle(checkpoint: Path) -> None:
    suffixes = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".csv", ".md"}


def test_the_same_training_gives_the_same_folder(trained: Trained, checkpoint: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, trained, ["field", "sea"], small_options(), Origin(24, "abc.dir", "CC-BY-4.0"))
    assert tree_of(tmp_path).digest == tree_of(checkpoint).digest


def test_what_is_loaded_is_what_was_written(trained: Trained, checkpoint: Path) -> None:
    model, names = load_checkpoint(checkpoint)
    assert names == ("field", "sea")
    numbered = dict(enumerate(names))
    written = sample_grid(trained.model, numbered, n_per_scene=2, options=SAMPLING)
    read = sample_grid(model, numbered, n_per_scene=2, options=SAMPLING)
    assert all(np.array_equal(written[name], read[name]) for name in names)


def test_the_card_tells_data_licence_and_options(checkpoint: Path) -> None:
    card = (checkpoint / "README.md").read_text()
    for said in ("24 tiles", "abc.dir", "CC-BY-4.0", "field, sea", "Computed on: ", "`learning_rate`: 0.001"):
        assert said in card


def test_a_truncated_or_foreign_checkpoint_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no checkpoint that can be loaded"):
        load_checkpoint(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    config = json.loads((copy / "unet" / "config.json").read_text())
    config["block_out_channels"] = [16, 16, 16]
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="is no checkpoint that can be loaded"):
        load_checkpoint(copy)


def test_the_step_trains_on_a_pruned_corpus(pruned: Outcome, tmp_path: Path) -> None:
    params = settings([], None).training.model_copy(
        update={"n_images": 64, "batch_size": 16, "image_size_px": 16, "save_every_images": 32, "sample_steps": 2}
    )

    def run(name: str, changed: TrainingParams = params) -> Path:
        (tmp_path / name).mkdir()
        report = train_checkpoint(
            Layout(pruned.assets, tmp_path, {"diffusion_checkpoint": tmp_path / name}),
            changed,
            subset_version="v",
            seed=0,
            device="cpu",
        )
        samples = sorted((tmp_path / name / "samples").iterdir())
        assert report.n_images == 64 and [int(path.stem) for path in samples] == [32, 64]
        assert Image.open(samples[-1]).size == (16 * report.n_scenes, 16)
        return tmp_path / name

    first = run("first")
    assert tree_of(run("again")).digest == tree_of(first).digest  # from its last state
    (tmp_path / "cache").rename(tmp_path / "aside")
    assert tree_of(run("anew")).digest == tree_of(first).digest  # from nothing


def test_a_training_without_a_condition_has_the_key_that_it_had_before_there_were_any(tmp_path: Path) -> None:
    tiles, options = small_tiles(tmp_path), small_options()
    of_a_condition = ("condition", "condition_dropout", "mean_share", "parent")
    fixed = {name: value for name, value in asdict(options).items() if name not in (*HARMLESS, *of_a_condition)}
    before = hashlib.sha256(json.dumps([fixed, tiles.fingerprint()]).encode()).hexdigest()[:20]
    assert training_key(options, tiles) == before
    changed = [
        replace(options, **{name: value}) for name, value in zip(of_a_condition, ("x4", 0.1, 0.2, "p"), strict=True)
    ]
    assert len({training_key(each, tiles) for each in (options, *changed)}) == 5


def test_sample_draws_a_grid_of_the_scene_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "grid.png"
    arguments = ["--scene", "sea", "-n", "3", "--checkpoint", str(checkpoint), "--steps", "2", "--out", str(target)]
    said = runner.invoke(app, ["sample", *arguments, "--device", "cpu"], catch_exceptions=False).output
    assert "3 images of sea" in said
    assert Image.open(target).size == (48, 16)


def test_an_unknown_scene_is_a_usage_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no scene is called see \(did you mean sea\?\); the checkpoint knows field, sea"
    ):
        runner.invoke(
            app,
            ["sample", "--scene", "see", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "grid.png")],
            catch_exceptions=False,
        )


@pytest.mark.slow
def test_two_processes_train_what_one_does(synthetic: Path, pruned: Outcome, tmp_path: Path) -> None:
    params = settings(
        synthetic / "corpus",
        synthetic / "reference",
        # in bfloat16 the shares' own roundings would be seen
        training={
            "n_images": 96,
            "batch_size": 16,
            "micro_batch_size": 16,
            "image_size_px": 16,
            "precision": "float32",
        },
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    losses = {}
    for n in (1, 2):
        # accelerate launches several processes on GPUs only; torch's own launcher sets the same environment on a CPU
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        command = ["-m", "rsprune_dagster.diffusion.launch", "--params", str(tmp_path / "params.yaml")]
        where = ["--assets", str(pruned.assets), "--out", str(tmp_path / f"by{n}")]
        done = subprocess.run([*launcher, *command, *where], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        report = json.loads((tmp_path / f"by{n}.states" / "launch.json").read_text())
        assert report["n_processes"] == n
        losses[n] = report["losses"]
    # the same draws; sums of gradients in another order
    assert np.allclose(losses[1], losses[2], rtol=1e-3) and len(losses[1]) == 6
    one, two = (load_file(tmp_path / f"by{n}" / "unet" / "diffusion_pytorch_model.safetensors") for n in (1, 2))
    assert all(np.allclose(one[name], two[name], atol=1e-3) for name in one)
