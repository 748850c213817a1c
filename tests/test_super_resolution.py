"""The super-resolution model: what it starts from, what it draws, its checkpoint in diffusers, and the command."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from diffusion_runs import small_options
from PIL import Image
from test_crops import crops
from test_scene import smooth, write_scene
from typer.testing import CliRunner

from rsprune_dagster.cli.commands import app
from rsprune_dagster.diffusion.checkpoint import SamplingOptions
from rsprune_dagster.diffusion.denoiser import Denoiser, build_denoiser, with_condition, with_new_weights
from rsprune_dagster.diffusion.latents import pixels, unscaled_identity_autoencoder
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import OBJECTIVES, to_tensor
from rsprune_dagster.diffusion.training import Trained, train
from rsprune_dagster.downstream.degradation import N_BACK_PROJECTIONS, consistent, enlarged, reduced
from rsprune_dagster.downstream.fine_tuning import start_of
from rsprune_dagster.downstream.super_resolution import (
    SuperResolution,
    Task,
    card,
    load_super_resolution,
    write_super_resolution,
)
from rsprune_dagster.utils.errors import RunError, UsageError

TASK = Task(scale=4, degradation="bicubic", mean_share=0.2)
SAMPLING = SamplingOptions(n_steps=3, guidance=1.0, sampler="dpm_solver", batch_size=4, seed=0)
runner = CliRunner()


def foundation(kind: str = "unet", objective: str = "flow_matching", *, edge: int = 16) -> Model:
    """Random weights, none of them zero: a DiT's last layer is."""
    denoiser = build_denoiser("tiny", image_size_px=edge, n_scenes=3, seed=0, kind=kind)
    with torch.no_grad():
        for number, weights in enumerate(denoiser.parameters()):
            generator = torch.Generator().manual_seed(number)
            weights.add_(0.02 * torch.randn(weights.shape, generator=generator))
    return Model(denoiser, OBJECTIVES[objective].schedule(pixels(edge)), pixels(edge))


def said(
    denoiser: Denoiser, inputs: torch.Tensor, labels: torch.Tensor | None, timesteps: tuple[int, int] = (700, 20)
) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = denoiser.eval()(inputs, torch.tensor(timesteps), class_labels=labels).sample
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("training")
    tiles = crops(folder / "tiles", edge_px=16)
    options = small_options(n_images=32, objective="flow_matching", scene_dropout=1.0, parent="foundation digest")
    made = train(
        tiles, options, folder / "states", device="cpu", start=lambda: start_of(foundation(), 3, 0, from_random=False)
    )
    return made.moved("cpu")


@pytest.fixture(scope="module")
def checkpoint(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    options = small_options(objective="flow_matching", parent="foundation digest")
    write_super_resolution(folder, trained, TASK, card(trained, TASK, options, "CC0"))
    return folder


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_with_a_condition_it_predicts_what_it_did_without_a_scene(kind: str) -> None:
    model = foundation(kind)
    rng = torch.Generator().manual_seed(1)
    noisy, given = torch.randn((2, 3, 16, 16), generator=rng), torch.randn((2, 3, 16, 16), generator=rng)
    null = torch.full((2,), model.null_class or 0)
    before = said(model.denoiser, noisy, null)
    widened = with_condition(model.denoiser, 3)
    after = said(widened, torch.cat([noisy, given], dim=1), null if kind == "dit" else None)
    assert torch.allclose(before, after, atol=1e-5)
    assert before.std() > 0.01
    first = widened.conv_in.weight if kind == "unet" else widened.pos_embed.proj.weight
    assert (first[:, 3:] == 0).all() and first.shape[1] == 6


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_random_weights_are_of_the_same_architecture_and_of_the_seed(kind: str) -> None:
    denoiser = foundation(kind).denoiser
    made = [with_new_weights(denoiser, seed) for seed in (1, 1, 2)]
    shapes = {name: each.shape for name, each in denoiser.state_dict().items()}
    assert {name: each.shape for name, each in made[0].state_dict().items()} == shapes
    one, same, other = (torch.cat([each.flatten() for each in each.state_dict().values()]) for each in made)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert kind == "unet" or (made[0].proj_out_2.weight == 0).all()


def test_the_identity_of_the_pipeline_is_exact_to_a_hundredth_of_a_grey_level() -> None:
    values = torch.linspace(-1, 1, 48 * 48 * 3).reshape(1, 3, 48, 48)
    decoded = unscaled_identity_autoencoder().decode(values).sample
    assert (decoded - values).abs().max() * 127.5 < 0.01


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_the_mean_is_the_prediction_at_the_last_timestep_without_noise(kind: str) -> None:
    model = foundation(kind)
    widened = replace(model, denoiser=with_condition(model.denoiser, 3))
    low = torch.rand((2, 3, 4, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = SuperResolution(widened, TASK).mean(low)
    given = torch.cat([torch.zeros(2, 3, 16, 16), enlarged(low, 4).clamp(-1, 1)], dim=1)
    null = torch.full((2,), model.null_class or 0) if kind == "dit" else None
    wanted = consistent(-said(widened.denoiser, given, null, (999, 999)), low, 4, N_BACK_PROJECTIONS["bicubic"])
    assert (found - wanted).abs().max() < 1e-4


def test_a_model_that_was_not_taught_the_mean_does_not_guess_it(trained: Trained) -> None:
    with pytest.raises(UsageError, match="was not taught the mean"):
        SuperResolution(trained.model, Task(4, "bicubic")).mean(torch.zeros(1, 3, 4, 4))


def test_the_result_s_reduction_is_the_input_and_of_noisy_inputs_nearer_to_it(trained: Trained) -> None:
    low = torch.rand((2, 3, 4, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    models = {name: SuperResolution(trained.model, Task(4, name)) for name in ("bicubic", "realistic")}
    made = {name: model.sample(low, noise, n_steps=2, sampler="ddim") for name, model in models.items()}
    made["neither"] = models["bicubic"].predicted(low, noise, n_steps=2, sampler="ddim")
    off = {name: float((reduced(high, 4) - low).abs().mean()) for name, high in made.items()}
    assert off["bicubic"] < off["neither"] / 10 < off["realistic"] < off["neither"] / 2


def test_images_do_not_depend_on_the_batch(trained: Trained) -> None:
    model = SuperResolution(trained.model, TASK)
    low = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    means = [model.means(low, batch_size) for batch_size in (5, 2)]
    samples = [model.samples(low, replace(SAMPLING, batch_size=n)) for n in (5, 2)]
    for whole, parts in (means, samples):
        assert whole.shape == (5, 16, 16, 3)
        assert np.abs(whole.astype(int) - parts).max() <= 1
    assert not np.array_equal(model.samples(low, SAMPLING), model.samples(low, replace(SAMPLING, seed=1)))


def test_an_interrupted_fine_tuning_ends_in_the_same_losses(trained: Trained, tmp_path: Path) -> None:
    tiles = crops(tmp_path / "tiles", edge_px=16)
    options = small_options(n_images=32, objective="flow_matching", scene_dropout=1.0, parent="foundation digest")

    def start() -> Denoiser:
        return start_of(foundation(), 3, 0, from_random=False)

    train(tiles, replace(options, n_images=16), tmp_path / "states", device="cpu", start=start)
    again = train(tiles, options, tmp_path / "states", device="cpu", start=lambda: pytest.fail("it starts anew"))
    assert again.losses == trained.losses


def test_what_is_loaded_is_what_was_written(trained: Trained, checkpoint: Path) -> None:
    loaded = load_super_resolution(checkpoint)
    assert loaded.task == TASK
    low = np.full((1, 4, 4, 3), 90, np.uint8)
    assert np.array_equal(loaded.samples(low, SAMPLING), SuperResolution(trained.model, TASK).samples(low, SAMPLING))


def test_diffusers_alone_draws_the_same(trained: Trained, checkpoint: Path) -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import (
        LDMSuperResolutionPipeline,
    )

    pipeline = LDMSuperResolutionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    low = to_tensor(np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8))
    theirs = pipeline(
        enlarged(low, 4).clamp(-1, 1),
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    noise = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(5))
    sampler = "dpm_solver" if pipeline.scheduler.config.solver_order == 2 else "ddim"
    ours = SuperResolution(trained.model, TASK).predicted(low, noise, n_steps=4, sampler=sampler)
    assert (theirs - (ours.clamp(-1, 1) + 1) / 2).abs().max() < 1e-3


def test_the_code_on_the_card_works(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(), re.DOTALL)
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(tmp_path / "low.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("this/folder", str(checkpoint)).replace("steps=20", "steps=2"), names)
    assert names["image"].size == (16, 16)


def test_a_transformer_s_checkpoint_is_loaded_and_its_card_says_what_diffusers_cannot(tmp_path: Path) -> None:
    tiles = crops(tmp_path / "tiles", edge_px=16)
    options = small_options(n_images=8, denoiser="dit", scene_dropout=1.0, parent="foundation digest")
    trained = train(
        tiles,
        options,
        tmp_path / "states",
        device="cpu",
        start=lambda: start_of(foundation("dit", "v_prediction"), 3, 0, from_random=False),
    ).moved("cpu")
    text = card(trained, TASK, options, "")
    assert "diffusers has no pipeline" in text and "LDMSuperResolutionPipeline" not in text
    write_super_resolution(tmp_path / "checkpoint", trained, TASK, text)
    low = np.full((1, 4, 4, 3), 90, np.uint8)
    loaded = load_super_resolution(tmp_path / "checkpoint")
    assert np.array_equal(loaded.samples(low, SAMPLING), SuperResolution(trained.model, TASK).samples(low, SAMPLING))


def test_the_card_tells_task_origin_and_licence(checkpoint: Path) -> None:
    text = (checkpoint / "README.md").read_text()
    for words in ("x4", "undo: bicubic", "foundation weights", "checkpoint digest", "CC0", "16 x 16"):
        assert words in text
    assert not [path for path in checkpoint.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_another_folder_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint of super-resolution"):
        load_super_resolution(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "super_resolution.json").write_text(json.dumps({"size": 4}))
    with pytest.raises(RunError, match="no checkpoint of super-resolution"):
        load_super_resolution(tmp_path / "broken")


def test_the_command_enlarges_a_scene(checkpoint: Path, tmp_path: Path) -> None:
    source = write_scene(tmp_path / "in.tif", smooth(4, 23, 17, "uint16"), nodata=0)
    command = ["super-resolve", str(source), str(tmp_path / "out.tif"), "--checkpoint", str(checkpoint), "--steps", "2"]
    refused = runner.invoke(app, command)
    assert isinstance(refused.exception, UsageError) and "1 band beside red" in str(refused.exception)
    done = runner.invoke(app, [*command, "--other-bands", "bicubic"], catch_exceptions=False)
    assert "enlarged x4, the sample of the model" in done.output and "note: band 4 enlarged" in done.output
    with rasterio.open(tmp_path / "out.tif") as made, rasterio.open(source) as given:
        assert (made.shape, made.dtypes, made.nodata) == ((92, 68), ("uint16",) * 4, 0)
        assert made.bounds == given.bounds and made.crs == given.crs
    runner.invoke(
        app, [*command[:2], str(tmp_path / "mean.tif"), *command[3:5], "--output", "mean", "--other-bands", "bicubic"],
        catch_exceptions=False,
    )  # fmt: skip
    with rasterio.open(tmp_path / "mean.tif") as mean, rasterio.open(tmp_path / "out.tif") as made:
        assert not np.array_equal(mean.read(1), made.read(1)) and np.array_equal(mean.read(4), made.read(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "mean.tif", "out.tif"]
