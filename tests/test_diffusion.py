"""Training and sampling: an order that resumes exactly, states that are whole, images that follow their seed."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusion_runs import OPTIONS, SCENES, small_options, small_tiles, write_tiles
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsprune_dagster.config.params import TrainingParams
from rsprune_dagster.diffusion.denoiser import DIT_PRESETS, KINDS, PRESETS, build_denoiser
from rsprune_dagster.diffusion.distributed import ProcessGroup
from rsprune_dagster.diffusion.latents import pixels
from rsprune_dagster.diffusion.objective import OBJECTIVES, NoisyBatch, noised, to_images, to_tensor
from rsprune_dagster.diffusion.sampling import sample
from rsprune_dagster.diffusion.schedule import N_TIMESTEPS, SAMPLERS, noise_schedule
from rsprune_dagster.diffusion.state import latest_state, states
from rsprune_dagster.diffusion.tile_set import Batch, epoch_order, squared, tile_set, turned
from rsprune_dagster.diffusion.training import Trained, train
from rsprune_dagster.utils.errors import RunError, UsageError


class Cut(BaseException):
    """Ends a training in its middle, as a kill does."""


def cut_after(n_images: int) -> Any:
    """A progress that raises once so many images were seen."""

    @contextmanager
    def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
        seen = 0

        def advance(n: int) -> None:
            nonlocal seen
            seen += n
            if label == "training" and seen >= n_images:
                raise Cut

        yield advance

    return bar


def weights(trained: Trained) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in trained.denoiser.parameters()])


@given(st.integers(1, 50), st.integers(0, 200), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_the_order_does_not_depend_on_how_it_is_cut(n_tiles: int, start: int, lengths: list[int]) -> None:
    total = sum(lengths)
    whole = epoch_order(np.arange(start, start + total), n_tiles=n_tiles, seed=3)
    starts = np.cumsum([start, *lengths])
    parts = [epoch_order(np.arange(a, b), n_tiles=n_tiles, seed=3) for a, b in pairwise(starts)]
    assert np.array_equal(whole, np.concatenate(parts))


@given(st.integers(1, 50), st.integers(0, 5))
def test_every_epoch_sees_every_tile_once(n_tiles: int, epoch: int) -> None:
    positions = np.arange(epoch * n_tiles, (epoch + 1) * n_tiles)
    assert sorted(epoch_order(positions, n_tiles=n_tiles, seed=1)) == list(range(n_tiles))


def test_the_eight_turns_are_eight_pictures_of_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 255, (1, 5, 5, 3)).astype(np.uint8)
    seen = {turned(image, np.array([turn])).tobytes() for turn in range(8)}
    assert len(seen) == 8
    assert {bytes(sorted(each)) for each in seen} == {bytes(sorted(image.tobytes()))}


def test_images_become_tensors_and_come_back() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    assert np.array_equal(to_images(to_tensor(images)), images)


def test_tiles_of_other_sizes_are_squared() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (squared(wide, 10) == 200).all()
    assert squared(wide, 16).shape == (16, 16, 3)


def test_a_batch_is_the_tiles_that_its_numbers_name(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path)
    one = list(tiles.batches(start=0, end=40, batch_size=8, seed=0))
    assert [batch.first for batch in one] == [0, 8, 16, 24, 32]
    late = next(tiles.batches(start=16, end=40, batch_size=8, seed=0))
    assert np.array_equal(late.images, one[2].images) and np.array_equal(late.scenes, one[2].scenes)
    assert {tiles.scene_names[scene] for scene in one[0].scenes} <= set(SCENES)


def draw(
    batch: Batch, *, seed: int = 0, scene_dropout: float = 0, rows: slice = slice(None), **rest: Any
) -> NoisyBatch:
    """A batch noised for v-prediction in pixels."""
    space, v = pixels(batch.images.shape[1]), OBJECTIVES["v_prediction"]
    return noised(
        batch, v, v.schedule(space), space, null_class=2, scene_dropout=scene_dropout, seed=seed, rows=rows, **rest
    )


def test_the_noise_at_the_last_timestep_is_all_noise() -> None:
    schedule = noise_schedule()
    assert float(schedule.alphas_cumprod[N_TIMESTEPS - 1]) == 0
    seen = draw(Batch(0, np.full((64, 8, 8, 3), 255, np.uint8), np.zeros(64, np.int64)))
    # of the noisy image and v the clean one can be had back
    alpha = schedule.alphas_cumprod[seen.timesteps].sqrt()[:, None, None, None]
    sigma = (1 - alpha**2).sqrt()
    assert torch.allclose(alpha * seen.inputs - sigma * seen.target, torch.ones(()), atol=1e-5)


def test_draws_depend_on_seed_and_number_only() -> None:
    def target(seed: int, first: int) -> torch.Tensor:
        batch = Batch(first, np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64))
        return draw(batch, seed=seed, scene_dropout=0.5).target

    assert torch.equal(target(1, 8), target(1, 8))
    assert not torch.equal(target(1, 8), target(2, 8))
    assert not torch.equal(target(1, 8), target(1, 16))


def test_a_training_that_was_cut_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    tiles, options = small_tiles(tmp_path / "tiles"), small_options()
    whole = train(tiles, options, tmp_path / "whole", device="cpu")
    for moment in (8, 17, 33, 40):
        with pytest.raises(Cut):
            train(tiles, options, tmp_path / "cut", device="cpu", progress=cut_after(moment))
    resumed = train(tiles, options, tmp_path / "cut", device="cpu")
    assert resumed.losses == whole.losses and len(whole.losses) == 6
    assert torch.equal(weights(resumed), weights(whole))
    assert [path.name for path in states(tmp_path / "cut")] == ["state-000000000032", "state-000000000048"]


def test_a_longer_training_starts_where_the_shorter_ended(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    whole = train(tiles, small_options(), tmp_path / "whole", device="cpu")
    train(tiles, small_options(n_images=32), tmp_path / "parts", device="cpu")
    assert train(tiles, small_options(), tmp_path / "parts", device="cpu").losses == whole.losses


def test_micro_batches_give_the_same_training(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    whole = train(tiles, small_options(), tmp_path / "whole", device="cpu")
    parts = train(tiles, small_options(micro_batch_size=3), tmp_path / "parts", device="cpu")
    assert np.allclose(parts.losses, whole.losses, rtol=1e-4)


def test_the_loss_falls(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    losses = train(tiles, small_options(n_images=320, save_every_images=320), tmp_path / "s", device="cpu").losses
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])


def test_shares_of_a_batch_are_the_whole(tmp_path: Path) -> None:
    batch = next(small_tiles(tmp_path).batches(start=0, end=8, batch_size=8, seed=0))
    whole = draw(batch)
    shares = [draw(batch, rows=ProcessGroup(number, 3).rows(8)) for number in range(3)]
    assert sorted(torch.cat([share.timesteps for share in shares])) == sorted(whole.timesteps)
    assert sum(len(share.inputs) for share in shares) == 8


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 10))
def test_every_row_of_a_batch_weighs_the_same_whatever_the_processes(n_rows: int, n: int, at_once: int) -> None:
    weights = np.zeros(n_rows)
    for ranks in (ProcessGroup(number, n) for number in range(n)):
        own = np.arange(n_rows)[ranks.rows(n_rows)]
        assert len(own)  # every process has a pass, and averages gradients once
        for part in np.split(own, range(at_once, len(own), at_once)):
            weights[part] += ranks.weight(len(part), n_rows) / len(part) / n  # a mean over rows, one over processes
    assert np.allclose(weights, 1 / n_rows)


def test_another_training_s_state_is_refused_with_the_difference(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    train(tiles, small_options(n_images=16), tmp_path / "s", device="cpu")
    with pytest.raises(UsageError, match=r"learning_rate was 0.001 and is 0.01"):
        train(tiles, small_options(learning_rate=0.01), tmp_path / "s", device="cpu")
    with pytest.raises(UsageError, match="the tiles are others"):
        train(small_tiles(tmp_path / "tiles", n=22), small_options(), tmp_path / "s", device="cpu")
    with pytest.raises(UsageError, match="has seen 16 images already, more than the 8 asked"):
        train(tiles, small_options(n_images=8), tmp_path / "s", device="cpu")


def test_truncated_weights_are_named(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    train(tiles, small_options(n_images=16), tmp_path / "s", device="cpu")
    file = next((tmp_path / "s").glob("*/denoiser/*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"the training state .*state-000000000016 cannot be read"):
        train(tiles, small_options(), tmp_path / "s", device="cpu")


def test_no_pickle_in_a_state(tmp_path: Path) -> None:
    train(small_tiles(tmp_path / "tiles"), small_options(n_images=16), tmp_path / "s", device="cpu")
    suffixes = {path.suffix for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    train(tiles, small_options(n_images=16), tmp_path / "s", device="cpu")
    about = states(tmp_path / "s")[-1] / "state.json"
    values = json.loads(about.read_text())
    values["options"]["learning_rate"] = 1e30
    about.write_text(json.dumps(values))
    with pytest.raises(RunError, match=r"the loss is \w+ after \d+ images: lower training.learning_rate"):
        train(tiles, small_options(learning_rate=1e30, save_every_images=1000), tmp_path / "s", device="cpu")
    assert [path.name for path in states(tmp_path / "s")] == ["state-000000000016"]


def test_too_few_tiles_and_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    with pytest.raises(UsageError, match="24 tiles are fewer than one batch of 64: keep more tiles"):
        train(tiles, small_options(batch_size=64), tmp_path / "s", device="cpu")
    with pytest.raises(UsageError, match="the subset is empty"):
        tile_set(write_tiles(tmp_path / "tiles").slice(0, 0), OPTIONS, image_size_px=16)
    with pytest.raises(UsageError, match="needs an image size that 4 divides, not 18 px"):
        build_denoiser("tiny", image_size_px=18, n_scenes=2, seed=0)
    with pytest.raises(UsageError, match=r"no denoiser is called tinny \(did you mean tiny\?\)"):
        build_denoiser("tinny", image_size_px=16, n_scenes=2, seed=0)


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_tile_that_changed_since_pruning_fails_or_is_passed_over(tmp_path: Path, change: str) -> None:
    table = write_tiles(tmp_path)
    path = tmp_path / "003.png"
    if change == "gone":
        path.unlink()
    else:
        Image.new("RGB", (20, 20)).save(path)
    strict = tile_set(table, OPTIONS, image_size_px=16)
    with pytest.raises(RunError, match=r"003.png is not the tile that was pruned \((vanished|changed)"):
        strict.images([3])
    lenient = tile_set(table, OPTIONS, image_size_px=16, on_changed="skip")
    assert np.array_equal(lenient.images([3]), lenient.images([4]))


def test_every_image_has_the_scene_that_it_shows_though_tiles_are_gone(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path, on_changed="skip")
    for uri in tiles.table.column("uri").to_pylist()[1::2]:
        Path(uri).unlink()  # all of the sea
    for batch in tiles.batches(start=0, end=48, batch_size=8, seed=0):
        green, blue = (batch.images[..., band].mean(axis=(1, 2)) for band in (1, 2))
        assert [tiles.scene_names[scene] for scene in batch.scenes] == ["field"] * 8
        assert (green > blue).all()


def test_when_all_tiles_are_gone_it_says_so(tmp_path: Path) -> None:
    lenient = small_tiles(tmp_path / "tiles", on_changed="skip")
    shutil.rmtree(tmp_path / "tiles")
    with pytest.raises(RunError, match="none of the 24 tiles can be read"):
        lenient.images([0])


def test_samples_depend_on_seed_and_place_and_not_on_the_batch() -> None:
    denoiser = build_denoiser("tiny", image_size_px=16, n_scenes=2, seed=0)
    rest = {"n_steps": 2, "guidance": 1.5}
    whole = sample(denoiser, [0, 1, 0, 1], seed=5, batch_size=4, **rest)
    parts = sample(denoiser, [0, 1, 0, 1], seed=5, batch_size=1, **rest)
    assert whole.shape == (4, 16, 16, 3) and whole.dtype == np.uint8
    assert np.abs(whole.astype(int) - parts).max() <= 1  # float32 sums of another batch shape
    assert not np.array_equal(whole, sample(denoiser, [0, 1, 0, 1], seed=6, batch_size=4, **rest))


@pytest.mark.slow
def test_a_scene_asked_for_is_the_scene_that_comes(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    trained = train(
        tiles, small_options(n_images=960, save_every_images=960, learning_rate=2e-3), tmp_path / "s", device="cpu"
    )
    for sampler in ("ddim", "dpm_solver"):
        images = sample(
            trained.denoiser, [0, 0, 0, 1, 1, 1], n_steps=8, guidance=1.5, seed=0, batch_size=6, sampler=sampler
        ).astype(float)
        green_minus_blue = (images[..., 1] - images[..., 2]).mean(axis=(1, 2))
        assert (green_minus_blue[:3] > 0).all() and (green_minus_blue[3:] < 0).all(), sampler


def test_without_scenes_the_denoiser_is_unconditional(tmp_path: Path) -> None:
    table = write_tiles(tmp_path / "tiles").drop_columns(["scene"])
    tiles = tile_set(table.append_column("scene", [[None] * 24]), OPTIONS, image_size_px=16)
    trained = train(tiles, small_options(n_images=16), tmp_path / "s", device="cpu")
    assert trained.denoiser.config.num_class_embeds is None
    assert sample(trained.denoiser, [0, 0], n_steps=2, guidance=2, seed=0, batch_size=2).shape == (2, 16, 16, 3)


def test_params_name_the_presets_and_samplers_there_are() -> None:
    fields = TrainingParams.model_fields
    assert get_args(fields["preset"].annotation) == tuple(PRESETS) == tuple(DIT_PRESETS)
    assert get_args(fields["denoiser"].annotation) == KINDS
    assert get_args(fields["objective"].annotation) == tuple(OBJECTIVES)
    assert get_args(fields["sampler"].annotation) == tuple(SAMPLERS)


def test_the_state_of_no_training_is_none(tmp_path: Path) -> None:
    assert latest_state(tmp_path, small_options(), small_tiles(tmp_path / "tiles")) is None
