"""Trainings of every kind, cut short in every way: they go on to the same losses, and bad input is told in a line."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_runs import losses_of_processes, small_options, small_tiles, start, tiny_autoencoder

from rsprune_dagster.diffusion.latents import Space, latents, read_autoencoder
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.signals import deferred_signals
from rsprune_dagster.diffusion.state import states
from rsprune_dagster.diffusion.threads import resume_threads, torch_threads
from rsprune_dagster.diffusion.training import Trained, is_due, train
from rsprune_dagster.stages.diffusion_checkpoint import commonest_scenes
from rsprune_dagster.utils.errors import UsageError

N_KILLS = 5


def weights(trained: Trained) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in trained.denoiser.parameters()])


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "losses.json").read_text())  # type: ignore[no-any-return]


def newest_state(folder: Path) -> int:
    """The images that the newest state has seen; 0 where there is none."""
    return max((int(path.name.partition("-")[2]) for path in states(folder)), default=0)


def latent_space(folder: Path) -> Space:
    return latents(*read_autoencoder(tiny_autoencoder(folder)), 16)


@pytest.mark.parametrize(
    ("denoiser", "objective", "in_latents"),
    [("dit", "v_prediction", False), ("dit", "flow_matching", True), ("unet", "flow_matching", True)],
)
def test_each_kind_goes_on_to_the_same_weights(tmp_path: Path, denoiser: str, objective: str, in_latents: bool) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    space = latent_space(tmp_path / "vae") if in_latents else None
    digest = space.digest if space else ""
    options = small_options(n_images=32, denoiser=denoiser, objective=objective, autoencoder_digest=digest)
    whole = train(tiles, options, tmp_path / "whole", device="cpu", space=space)

    def cut(model: Model, n_images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiles, options, tmp_path / "cut", device="cpu", space=space, on_state=cut)
    resumed = train(tiles, options, tmp_path / "cut", device="cpu", space=space)
    assert resumed.losses == whole.losses and len(whole.losses) == 4
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("denoiser", ["unet", "dit"])
def test_gradient_checkpointing_gives_the_same_training(tmp_path: Path, denoiser: str) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    plain = train(tiles, small_options(n_images=32, denoiser=denoiser), tmp_path / "plain", device="cpu")
    options = small_options(n_images=32, denoiser=denoiser, gradient_checkpointing=True)
    again = train(tiles, options, tmp_path / "again", device="cpu")
    assert np.allclose(plain.losses, again.losses, rtol=1e-5)  # the same sums; their order may differ


def test_a_dit_learns(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path / "tiles")
    options = small_options(n_images=320, save_every_images=320, denoiser="dit", objective="flow_matching")
    fallen = train(tiles, options, tmp_path / "s", device="cpu").losses
    assert np.mean(fallen[-10:]) < 0.6 * np.mean(fallen[:3])


def test_latents_of_another_autoencoder_are_another_training(tmp_path: Path) -> None:
    tiles, space = small_tiles(tmp_path / "tiles"), latent_space(tmp_path / "vae")
    options = small_options(n_images=16, autoencoder_digest=space.digest)
    train(tiles, options, tmp_path / "s", device="cpu", space=space)
    with pytest.raises(UsageError, match=r"autoencoder_digest was '.*' and is ''"):
        train(tiles, small_options(n_images=16), tmp_path / "s", device="cpu")
    with pytest.raises(UsageError, match="denoiser was 'unet' and is 'dit'"):
        train(tiles, small_options(n_images=16, denoiser="dit"), tmp_path / "s", device="cpu")


def test_saves_do_not_depend_on_where_a_training_was_interrupted() -> None:
    options = small_options(save_every_images=20, n_images=100)
    due = [n for n in range(8, 105, 8) if is_due(n, 8, options)]
    assert due == [24, 40, 64, 80, 104]


@pytest.mark.slow
def test_sigterm_saves_a_state_first_and_the_training_goes_on_from_it(tmp_path: Path) -> None:
    small_tiles(tmp_path / "tiles")
    rest = {"n_images": 4000, "save_every_images": 4000}
    process = start(tmp_path / "cut", **rest)
    # it is in its loop once it has a handler of its own
    while process.is_alive() and not caught(process.pid, signal.SIGTERM):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM, process.said()
    saved = states(tmp_path / "cut")
    assert len(saved) == 1 and not (tmp_path / "cut" / "losses.json").exists()
    n_images = int(saved[0].name.removeprefix("state-"))
    assert 8 <= n_images < 4000
    ends = small_options(n_images=n_images + 32, save_every_images=4000)
    tiles = small_tiles(tmp_path / "tiles")
    resumed = train(tiles, ends, tmp_path / "cut", device="cpu")
    assert resumed.n_threads == 1  # that of the process that began
    with torch_threads(1):
        assert resumed.losses == train(tiles, ends, tmp_path / "whole", device="cpu").losses


def test_a_training_goes_on_with_the_threads_that_it_began_with(tmp_path: Path) -> None:
    tiles, options = small_tiles(tmp_path / "tiles"), small_options(n_images=32)
    with torch_threads(1):
        whole = train(tiles, options, tmp_path / "whole", device="cpu")
        train(tiles, replace(options, n_images=16), tmp_path / "cut", device="cpu")
    with torch_threads(2):
        resumed = train(tiles, options, tmp_path / "cut", device="cpu")
        assert torch.get_num_threads() == 2
    assert (resumed.n_threads, resumed.losses) == (1, whole.losses)


def test_more_threads_than_cores_are_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    with torch_threads(2):
        assert [resume_threads(n) for n in (0, 1, 2, 8, 9, 64)] == [2, 1, 2, 8, 2, 2]
        assert [resume_threads(n, n_processes=2) for n in (1, 4, 5)] == [1, 4, 2]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with torch_threads(4):  # as OMP_NUM_THREADS may ask
        assert [resume_threads(n) for n in (1, 4, 5)] == [1, 4, 4]


def caught(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, as Linux tells it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(line for line in lines if line.startswith("SigCgt")).split()[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_signal_is_handed_on_to_who_handled_it_before() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), deferred_signals() as interruption:
            signal.raise_signal(signal.SIGTERM)
            assert interruption.came == signal.SIGTERM and heard == []
            interruption.end(interruption.came)
        assert heard == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt), deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # impatience
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, former)


def test_dagster_s_terminate_saves_a_state_and_cancels_the_run(tmp_path: Path) -> None:
    import dagster as dg

    @contextmanager
    def terminated(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda n: os.kill(os.getpid(), signal.SIGTERM) if n else None

    @dg.asset
    def trained(context: dg.AssetExecutionContext) -> None:
        context.instance.report_run_canceling(context.run)  # as "Terminate" does, before it sends the signal
        train(small_tiles(tmp_path / "tiles"), small_options(), tmp_path / "s", device="cpu", progress=terminated)

    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            dg.materialize([trained], instance=instance)
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.CANCELED]
    assert [path.name for path in states(tmp_path / "s")] == ["state-000000000008"]


@pytest.mark.slow
def test_processes_with_unequal_shares_train_what_one_does(tmp_path: Path) -> None:
    unequal: list[tuple[int, dict[str, Any]]] = [
        (2, {"n_images": 17}),  # the last batch has a row for one of them
        (2, {"n_images": 19, "micro_batch_size": 1}),  # its shares take two passes and one
        (2, {"n_images": 19, "batch_size": 7}),
        (3, {"n_images": 19, "micro_batch_size": 2}),
        (2, {"n_images": 24, "denoiser": "dit"}),
    ]
    tiles = small_tiles(tmp_path / "tiles")
    found = losses_of_processes(tmp_path / "processes", unequal)
    for case, ((_, changes), losses) in enumerate(zip(unequal, found, strict=True)):
        alone = train(tiles, small_options(**changes), tmp_path / f"alone-{case}", device="cpu").losses
        # the same draws; sums over rows in another order
        assert np.allclose(losses, alone, rtol=1e-4) and len(losses) == len(alone)


@pytest.mark.slow
def test_killed_at_five_random_moments_it_ends_with_the_same_losses(tmp_path: Path) -> None:
    small_tiles(tmp_path / "tiles")
    rest = {"n_images": 400, "save_every_images": 16}
    assert start(tmp_path / "whole", **rest).wait() == 0
    rng, n_killed = np.random.default_rng(0), 0
    for n_images in sorted(rng.integers(1, 300, N_KILLS)):
        process = start(tmp_path / "killed", **rest)
        while process.is_alive() and newest_state(tmp_path / "killed") < n_images:
            time.sleep(0.02)
        n_killed += process.is_alive()
        process.kill()
    assert n_killed >= 3, "the training was too short to be killed"
    assert start(tmp_path / "killed", **rest).wait() == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 50


def test_samples_along_the_way_are_of_the_scenes_with_most_tiles(tmp_path: Path) -> None:
    tiles = small_tiles(tmp_path)
    many = replace(
        tiles, scene_ids=np.repeat(np.arange(20), np.arange(20) % 7 + 1), scene_names=tuple("abcdefghijklmnopqrst")
    )
    rare = {0, 7, 14}  # one tile each; of those with two, the last goes
    assert list(commonest_scenes(many)) == [n for n in range(20) if n not in rare | {15}]
    few = replace(tiles, scene_ids=np.array([1, 1, 0]), scene_names=("sea", "field"))
    assert commonest_scenes(few) == {0: "sea", 1: "field"}
