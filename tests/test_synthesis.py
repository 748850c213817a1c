"""The model of semantic synthesis: what it draws, large masks, its checkpoint in diffusers, and the command."""

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
from diffusion_runs import small_options, tiny_autoencoder
from pair_folders import CLASSES, PALETTE, drawn_mask
from PIL import Image
from rasterio.control import GroundControlPoint
from test_super_resolution import SAMPLING, foundation
from typer.testing import CliRunner

from rsprune_dagster.cli.commands import app
from rsprune_dagster.diffusion.denoiser import build_denoiser, with_condition
from rsprune_dagster.diffusion.latents import latents, read_autoencoder
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.training import Trained, train
from rsprune_dagster.downstream.drawing import write_drawing
from rsprune_dagster.downstream.fine_tuning import start_of
from rsprune_dagster.downstream.pairs import Pair, PairSet, class_shares
from rsprune_dagster.downstream.synthesis import Synthesis, Task, card, load_synthesis, write_synthesis
from rsprune_dagster.utils.errors import RunError, UsageError

TASK = Task(CLASSES, crop_px=8)
runner = CliRunner()


def pairs() -> PairSet:
    masks = [drawn_mask(40, 40, seed) for seed in range(8)]
    made = tuple(Pair(str(n), PALETTE.picture(mask), mask) for n, mask in enumerate(masks))
    return PairSet(made, n_classes=3, image_size_px=16, crop_px=8)


def fine_tuned(folder: Path, kind: str = "unet", n_images: int = 16) -> Trained:
    options = small_options(
        n_images=n_images, objective="flow_matching", denoiser=kind, scene_dropout=1.0, condition_dropout=0.1
    )
    return train(
        pairs(), options, folder, device="cpu", start=lambda: start_of(foundation(kind), 3, 0, from_random=False)
    ).moved("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return fine_tuned(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def checkpoint(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    write_synthesis(folder, trained, TASK, card(trained, TASK, small_options(parent="foundation digest")))
    return folder


def shares_of(*masks: np.ndarray) -> np.ndarray:
    return np.stack([class_shares(mask, 3, (16, 16)) for mask in masks])


def test_a_training_teaches_what_the_classes_look_like(tmp_path: Path) -> None:
    """The pairs have one colour for each class, so drawn images have those of their masks."""
    model = Synthesis(fine_tuned(tmp_path, n_images=480).model, TASK)
    masks = [np.full((8, 8), number, np.uint8) for number in range(3)]
    drawn = model.images(shares_of(*masks), replace(SAMPLING, n_steps=6)).mean(axis=(1, 2))
    assert drawn.argmax(axis=1).tolist() == [2, 1, 0]  # water is blue, fields are green, cities are red


def test_images_do_not_depend_on_the_batch_and_differ_by_mask_and_seed(trained: Trained) -> None:
    model = Synthesis(replace(trained.model, denoiser=with_weights_on_masks(trained)), TASK)
    shares = shares_of(*(drawn_mask(8, 8, seed) for seed in range(5)))
    whole, parts = (model.images(shares, replace(SAMPLING, batch_size=n)) for n in (5, 2))
    assert whole.shape == (5, 16, 16, 3) and np.abs(whole.astype(int) - parts).max() <= 1
    assert not np.array_equal(whole, model.images(shares, replace(SAMPLING, seed=1)))
    assert not np.array_equal(whole, model.images(shares[::-1].copy(), SAMPLING))


def with_weights_on_masks(trained: Trained) -> Any:
    """The denoiser, on which masks have a larger effect than after a few steps of training."""
    denoiser = type(trained.denoiser)(**{k: v for k, v in trained.denoiser.config.items() if not k.startswith("_")})
    denoiser.load_state_dict(trained.denoiser.state_dict())
    with torch.no_grad():
        denoiser.conv_in.weight[:, 3:] += 0.5
    return denoiser


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_mask_of_one_window_is_drawn_as_any_image(trained: Trained, guidance: float) -> None:
    model = Synthesis(replace(trained.model, denoiser=with_weights_on_masks(trained)), TASK)
    mask, options = drawn_mask(8, 8, 3), replace(SAMPLING, guidance=guidance, sampler="ddim")
    drawn = model.image_of(mask, options)
    noise = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(options.seed))
    given = torch.from_numpy(shares_of(mask))
    state = noise
    for timestep in (999, 666, 333):  # Euler's steps along straight paths
        with torch.inference_mode():
            led, free = (
                model.model.denoiser(torch.cat([state, each], dim=1), torch.tensor([timestep])).sample
                for each in (given, torch.zeros_like(given))
            )
        state = state - (free + guidance * (led - free)) / 3
    wanted = ((state.clamp(-1, 1) + 1) * 127.5)[0].permute(1, 2, 0).numpy()
    assert np.abs(drawn - wanted).max() < 2.5  # sigma is 0.999 at first, not 1


def test_an_image_has_the_size_of_its_mask_times_the_ratio_and_does_not_depend_on_the_batch(trained: Trained) -> None:
    model = Synthesis(trained.model, TASK)
    drawn = model.image_of(drawn_mask(20, 28), SAMPLING)
    assert drawn.shape == (40, 56, 3)
    alone = model.image_of(drawn_mask(20, 28), replace(SAMPLING, batch_size=1))
    assert np.abs(drawn.astype(int) - alone).max() <= 1
    assert not np.array_equal(drawn, model.image_of(drawn_mask(20, 28), replace(SAMPLING, seed=2)))


def test_images_of_latents_have_the_size_that_the_autoencoder_gives(trained: Trained, tmp_path: Path) -> None:
    space = latents(*read_autoencoder(tiny_autoencoder(tmp_path / "vae")), 16)
    denoiser = with_condition(
        build_denoiser("tiny", image_size_px=space.edge, n_scenes=1, seed=0, channels=space.channels, for_latents=True),
        3,
    )
    model = Synthesis(Model(denoiser, trained.model.schedule, space), TASK)
    assert model.image_of(drawn_mask(20, 28), SAMPLING).shape == (40, 56, 3)
    assert model.images(shares_of(drawn_mask(8, 8)), SAMPLING).shape == (1, 16, 16, 3)


class Plain(torch.nn.Module):
    """A denoiser that predicts the noise less the first three planes of the mask: its image is the mask."""

    device = torch.device("cpu")

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config, self.n_calls, self.largest = config, 0, 0

    def forward(self, inputs: torch.Tensor, timestep: torch.Tensor, class_labels: object = None) -> object:
        self.n_calls, self.largest = self.n_calls + 1, max(self.largest, len(inputs))
        sigma = timestep[0] / 1000
        said = (inputs[:, :3] - (inputs[:, 3:] * 2 - 1)) / sigma
        return type("Said", (), {"sample": said})()


def test_every_pixel_of_a_large_mask_is_drawn_from_the_windows_over_it(trained: Trained) -> None:
    denoiser = Plain(trained.denoiser.config)
    model = Synthesis(replace(trained.model, denoiser=denoiser), TASK)
    mask = drawn_mask(20, 28)
    drawn = model.image_of(mask, replace(SAMPLING, batch_size=5))
    wanted = np.eye(3, dtype=np.uint8)[mask].repeat(2, axis=0).repeat(2, axis=1) * 255
    assert np.abs(drawn.astype(int) - wanted).max() <= 1
    assert denoiser.largest == 5


def test_a_mask_smaller_than_a_crop_is_one_sentence(trained: Trained) -> None:
    with pytest.raises(UsageError, match=r"the mask has 12 x 7 px, expected 8 x 8 or more"):
        Synthesis(trained.model, TASK).image_of(np.zeros((7, 12), np.uint8), SAMPLING)


def test_what_is_loaded_is_what_was_written(trained: Trained, checkpoint: Path) -> None:
    loaded = load_synthesis(checkpoint)
    assert loaded.task == TASK and loaded.palette == PALETTE
    shares = shares_of(drawn_mask(8, 8))
    assert np.array_equal(loaded.images(shares, SAMPLING), Synthesis(trained.model, TASK).images(shares, SAMPLING))


def test_another_folder_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "semantic_synthesis.json").write_text(json.dumps({"crop": 4}))
    for folder in (tmp_path, tmp_path / "broken"):
        with pytest.raises(RunError, match=r"no checkpoint of semantic synthesis .* materialize semantic_synthesis"):
            load_synthesis(folder)


def test_the_code_on_the_card_draws_what_we_draw(checkpoint: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(code.replace("this/folder", str(checkpoint)).replace("timesteps(20)", "timesteps(3)"), names)
    theirs = ((names["image"].clamp(-1, 1) + 1) * 127.5)[0].permute(1, 2, 0).numpy()
    model, mask = load_synthesis(checkpoint), np.zeros((8, 8), np.uint8)
    ours = model.image_of(mask, replace(SAMPLING, n_steps=3, guidance=1.0, seed=0))
    assert np.abs(ours - theirs).max() < 2


def test_a_transformer_s_card_says_what_diffusers_cannot(tmp_path: Path) -> None:
    trained = fine_tuned(tmp_path / "states", "dit")
    text = card(trained, TASK, small_options())
    assert "diffusers has no pipeline" in text and "```" not in text
    write_synthesis(tmp_path / "checkpoint", trained, TASK, text)
    mask = drawn_mask(12, 8)
    loaded = load_synthesis(tmp_path / "checkpoint")
    assert np.array_equal(loaded.image_of(mask, SAMPLING), Synthesis(trained.model, TASK).image_of(mask, SAMPLING))


def test_the_card_tells_classes_origin_and_licence(checkpoint: Path) -> None:
    text = (checkpoint / "README.md").read_text()
    for words in ("water, field, city", "foundation weights", "checkpoint digest", "not stated", "crops of 8 px"):
        assert words in text


def write_mask(path: Path, mask: np.ndarray, **place: Any) -> Path:
    layout = {"driver": "GTiff", "height": mask.shape[0], "width": mask.shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **layout, **place) as raster:
        raster.write(mask, 1)
    return path


def test_the_command_draws_several_images_at_the_place_of_the_mask(checkpoint: Path, tmp_path: Path) -> None:
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(4, 0, 500_000, 0, -4, 5_000_000)}
    mask = write_mask(tmp_path / "mask.tif", drawn_mask(20, 28), **place)
    command = ["synthesize", str(mask), str(tmp_path / "out.tif"), "--checkpoint", str(checkpoint), "--steps", "2"]
    done = runner.invoke(app, [*command, "--seed", "3", "--seed", "4"], catch_exceptions=False)
    assert "out-3.tif" in done.output and "note" not in done.output
    with rasterio.open(tmp_path / "out-3.tif") as made, rasterio.open(mask) as given:
        assert made.shape == (40, 56) and made.count == 3 and made.crs == given.crs
        assert made.bounds == given.bounds and made.res == (2, 2)
        first = made.read()
    with rasterio.open(tmp_path / "out-4.tif") as made:
        assert not np.array_equal(made.read(), first)
    again = runner.invoke(app, [*command, "--seed", "3"], catch_exceptions=False)
    assert "out.tif" in again.output
    with rasterio.open(tmp_path / "out.tif") as made:
        assert np.array_equal(made.read(), first)


def test_a_picture_has_no_place_and_that_is_said(checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(PALETTE.picture(drawn_mask(8, 12))).save(tmp_path / "mask.png")
    command = ["synthesize", str(tmp_path / "mask.png"), "--checkpoint", str(checkpoint), "--steps", "2"]
    done = runner.invoke(app, [*command, str(tmp_path / "out.tif")], catch_exceptions=False)
    assert "mask.png has no georeference, so out.tif has none" in done.output
    runner.invoke(app, [*command, str(tmp_path / "out.png")], catch_exceptions=False)
    with rasterio.open(tmp_path / "out.tif") as made:
        drawn = made.read().transpose(1, 2, 0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), drawn)


@pytest.mark.parametrize(
    ("mask", "target", "words"),
    [
        ("none.png", "out.png", "is no file"),
        ("mask.png", "mask.png", "is the input itself"),
        ("mask.png", "out.jpg", r"ends in \.png, \.tif, \.tiff"),
        ("mask.png", "none/out.png", "there is no folder"),
        ("other.png", "out.png", r"not in the palette: #010203 \(96 pixels\)"),
        ("small.png", "out.png", "expected 8 x 8 or more"),
    ],
)
def test_bad_calls_are_one_sentence_and_write_nothing(
    checkpoint: Path, tmp_path: Path, mask: str, target: str, words: str
) -> None:
    Image.fromarray(PALETTE.picture(drawn_mask(8, 12))).save(tmp_path / "mask.png")
    Image.fromarray(PALETTE.picture(drawn_mask(4, 12))).save(tmp_path / "small.png")
    Image.new("RGB", (12, 8), (1, 2, 3)).save(tmp_path / "other.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = runner.invoke(
        app, ["synthesize", str(tmp_path / mask), str(tmp_path / target), "--checkpoint", str(checkpoint)]
    )
    assert isinstance(done.exception, UsageError)
    assert re.search(words, str(done.exception)) and "\n" not in str(done.exception)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_image_with_other_pixels_covers_the_same_ground(tmp_path: Path) -> None:
    place = {"crs": "EPSG:4326", "transform": rasterio.Affine(0.1, 0, 10, 0, -0.2, 50)}
    mask = write_mask(tmp_path / "mask.tif", drawn_mask(24, 32), **place)
    write_drawing(np.zeros((10, 20, 3), np.uint8), mask, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as made, rasterio.open(mask) as given:
        assert made.bounds == pytest.approx(given.bounds) and made.crs == given.crs


def test_ground_control_points_stay_where_they_are(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, 10 + col, 50 - row) for row, col in ((0, 0), (0, 32), (24, 0))]
    mask = write_mask(tmp_path / "mask.tif", drawn_mask(24, 32), gcps=points, crs="EPSG:4326")
    assert write_drawing(np.zeros((12, 64, 3), np.uint8), mask, tmp_path / "out.tif") == ""
    with rasterio.open(tmp_path / "out.tif") as made:
        found, crs = made.gcps
    assert crs.to_epsg() == 4326
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(0, 0, 10, 50), (0, 64, 42, 50), (12, 0, 10, 26)]


def test_the_start_ignores_the_mask(trained: Trained) -> None:
    denoiser = start_of(foundation(), 3, 0, from_random=False)
    known = with_condition(foundation().denoiser, 3)
    assert denoiser.conv_in.weight.shape[1] == 6 and (denoiser.conv_in.weight[:, 3:] == 0).all()
    assert torch.equal(denoiser.conv_in.weight, known.conv_in.weight)
    other = start_of(foundation(), 3, 1, from_random=True)
    assert not torch.equal(denoiser.conv_in.weight[:, :3], other.conv_in.weight[:, :3])
