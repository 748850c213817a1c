"""One step of a training: the learning rate, the clipped gradient, micro-batches, precision, and the weight average."""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from diffusion_runs import small_options, small_tiles

from rsprune_dagster.config.params import load
from rsprune_dagster.diffusion import training
from rsprune_dagster.diffusion.denoiser import read_denoiser
from rsprune_dagster.diffusion.distributed import SINGLE_PROCESS, ProcessGroup
from rsprune_dagster.diffusion.latents import pixels
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.objective import OBJECTIVES, NoisyBatch, noised
from rsprune_dagster.diffusion.state import TrainingState, states
from rsprune_dagster.diffusion.tile_set import Batch
from rsprune_dagster.diffusion.training import (
    TrainingOptions,
    autocast,
    bfloat16_is_faster,
    learning_rate_at,
    share_of,
    step,
    train,
    training_options,
)
from rsprune_dagster.utils.errors import RunError


class Scaled(torch.nn.Module):
    """A denoiser of one weight: it predicts the noisy image times the weight."""

    def __init__(self, weight: float = 0.0, *, n_classes: int | None = None) -> None:
        super().__init__()
        self.config = FrozenDict({"num_class_embeds": n_classes})
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.in_bfloat16: list[bool] = []

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, class_labels: None) -> object:
        self.in_bfloat16.append(torch.is_autocast_enabled("cpu"))
        return SimpleNamespace(sample=self.weight * noisy)


def share(targets: list[float]) -> NoisyBatch:
    """Images of ones. With weight 0 the loss is the mean of target², its gradient -2 times the mean target."""
    n = len(targets)
    target = torch.tensor(targets)[:, None, None, None].expand(n, 3, 2, 2)
    return NoisyBatch(torch.ones(n, 3, 2, 2), torch.zeros(n, dtype=torch.int64), torch.zeros(n), target)


def stepped(targets: list[float], *, n_images: int = 10**6, **changes: Any) -> tuple[float, TrainingState]:
    """The loss and the state after one step from weight 0."""
    state = TrainingState.new(Scaled())
    state.n_images = n_images
    options = small_options(batch_size=len(targets), **changes)
    loss = step(state.denoiser, state, share(targets), len(targets), options, "cpu", SINGLE_PROCESS)
    return loss, state


def gradient(state: TrainingState) -> float:
    """The gradient that Adam received: its first mean is a tenth of it."""
    return 10 * float(state.optimizer.state[state.denoiser.weight]["exp_avg"])


def test_the_learning_rate_rises_linearly_and_stays() -> None:
    options = small_options(learning_rate=0.1, batch_size=8, warmup_images=32)
    assert [learning_rate_at(n, options) for n in (0, 8, 16, 24, 32, 10**6)] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    )
    assert learning_rate_at(0, small_options(learning_rate=0.1, warmup_images=0)) == 0.1


@pytest.mark.parametrize(("n_images", "moved"), [(0, 0.025), (2, 0.05), (100, 0.1)])
def test_a_step_moves_by_the_learning_rate_of_its_image_number(n_images: int, moved: float) -> None:
    _, state = stepped([0.25, 0.25], n_images=n_images, learning_rate=0.1, warmup_images=8)
    assert state.denoiser.weight.item() == pytest.approx(moved, rel=1e-5)  # Adam's first step is one learning rate
    assert state.denoiser.weight.grad is None


@pytest.mark.parametrize(("target", "expected"), [(0.25, -0.5), (-0.25, 0.5), (0.75, -1.0), (50.0, -1.0)])
def test_gradients_longer_than_1_are_shortened_to_1(target: float, expected: float) -> None:
    loss, state = stepped([target, target])
    assert loss == pytest.approx(target**2)
    assert gradient(state) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 5])
def test_micro_batches_add_up_to_the_mean_over_the_batch(micro_batch_size: int) -> None:
    targets = [0.1, 0.2, 0.3, 0.1, 0.2]
    loss, state = stepped(targets, micro_batch_size=micro_batch_size)
    assert loss == pytest.approx(sum(target**2 for target in targets) / 5)
    assert gradient(state) == pytest.approx(-2 * sum(targets) / 5)
    assert len(state.denoiser.in_bfloat16) == -(-5 // micro_batch_size)


@pytest.mark.parametrize("ranks", [SINGLE_PROCESS, ProcessGroup(1, 3)])
def test_the_share_of_a_batch_has_the_seed_the_dropout_and_the_null_class_of_the_training(ranks: ProcessGroup) -> None:
    batch, space = Batch(8, np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 4), pixels(4)
    objective, options = OBJECTIVES["flow_matching"], small_options(seed=3, scene_dropout=0.5)
    drawn = objective, objective.schedule(space), space
    found = share_of(batch, *drawn, TrainingState.new(Scaled(n_classes=5)), options, ranks)
    wanted = noised(batch, *drawn, null_class=4, scene_dropout=0.5, seed=3, rows=ranks.rows(8))
    for name in ("inputs", "timesteps", "scenes", "target"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    whole = share_of(batch, *drawn, TrainingState.new(Scaled(n_classes=5)), options, SINGLE_PROCESS)
    assert 4 in whole.scenes


def test_a_loss_that_is_no_number_leaves_the_weights_as_they_were() -> None:
    with pytest.raises(RunError, match="the loss is nan after 1,000,000 images"):
        stepped([float("nan"), 0.0])
    state = TrainingState.new(Scaled(0.5))
    with pytest.raises(RunError, match="the loss is inf"):
        step(state.denoiser, state, share([float("inf")]), 1, small_options(), "cpu", SINGLE_PROCESS)
    assert state.denoiser.weight.item() == 0.5


@pytest.mark.parametrize(("precision", "expected"), [("bfloat16", True), ("float32", False)])
def test_a_step_computes_in_the_precision_asked_for(precision: str, expected: bool) -> None:
    _, state = stepped([0.5], precision=precision)
    assert state.denoiser.in_bfloat16 == [expected]


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bfloat16_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": fast, "avx512_bf16": True})
    assert bfloat16_is_faster("cpu") == fast
    assert bfloat16_is_faster("cuda") and not bfloat16_is_faster("mps")
    monkeypatch.setattr(training, "bfloat16_is_faster", {"cpu": fast}.__getitem__)
    with autocast("cpu:0", "auto"):
        assert torch.is_autocast_enabled("cpu") == fast


@pytest.mark.parametrize(
    ("seen", "n", "half_life", "expected"),
    [
        (10**6, 8, 8, 0.5),  # a step of a half-life halves what was
        (10**6, 8, 16, 1 - 0.5**0.5),
        (10**6, 8, 0, 1.0),  # no average
        (0, 8, 10**9, 10 / 11),  # early: the average of the steps so far
        (32, 8, 10**9, 1 - 40 / 120),
    ],
)
def test_the_average_moves_by_its_half_life_and_faster_at_first(
    seen: int, n: int, half_life: int, expected: float
) -> None:
    state = TrainingState.new(Scaled(0.0))
    with torch.no_grad():
        state.denoiser.weight.fill_(1.0)
    state.n_images = seen
    state.after(0.125, n=n, half_life_images=half_life)
    assert state.averaged.weight.item() == pytest.approx(expected, rel=1e-5)
    assert state.denoiser.weight.item() == 1.0 and not state.averaged.weight.requires_grad
    assert (state.n_images, state.losses) == (seen + n, [0.125])


def test_options_are_those_of_the_parameters() -> None:
    params = load(Path(__file__).parents[1] / "params.yaml").training
    options = training_options(params, 5)
    assert (options.seed, options.autoencoder_digest, options.scene_dropout) == (5, "", 0.1)
    unconditional = {"condition": "", "condition_dropout": 0.0, "mean_share": 0.0, "parent": ""}
    assert {name: getattr(options, name) for name in unconditional} == unconditional
    own = {each.name for each in fields(TrainingOptions)} - {"seed", "autoencoder_digest", "scene_dropout"}
    own -= unconditional.keys()
    assert {name: getattr(options, name) for name in own} == params.model_dump(include=own)


def test_what_a_training_gives_and_shows_are_the_averaged_weights(tmp_path: Path) -> None:
    tiles, shown = small_tiles(tmp_path / "tiles"), []

    def on_state(model: Model, n_images: int) -> None:
        shown.append((n_images, model.denoiser.conv_in.weight.sum().item()))

    options = small_options(n_images=16, save_every_images=8)
    trained = train(tiles, options, tmp_path / "s", device="cpu", on_state=on_state)
    saved = states(tmp_path / "s")
    assert [path.name for path in saved] == ["state-000000000008", "state-000000000016"]
    averages = [read_denoiser(path / "averaged").conv_in.weight.sum().item() for path in saved]
    assert shown == [(8, averages[0]), (16, averages[1])]
    assert trained.denoiser.conv_in.weight.sum().item() == averages[1]
    assert read_denoiser(saved[1] / "denoiser").conv_in.weight.sum().item() != averages[1]
    assert isinstance(trained.losses, tuple) and (len(trained.losses), trained.n_images) == (2, 16)


def test_tiles_are_told_apart_by_content_scene_and_size(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path, n=4)
    others = (
        replace(tiles, image_size_px=32),
        replace(tiles, scene_ids=tiles.scene_ids[::-1]),
        replace(tiles, scene_names=("field", "town")),
        replace(tiles, table=tiles.table.slice(0, 3), scene_ids=tiles.scene_ids[:3]),
        replace(tiles, table=tiles.table.take([1, 0, 2, 3])),
    )
    assert len({each.fingerprint() for each in (tiles, *others)}) == 6
    assert replace(tiles).fingerprint() == tiles.fingerprint()
