"""Trainings of every kind, cut short in every way: they go on to the same losses, and bad input is told in a line."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusion_runs import OPTIONS, small_options, small_tiles, tiny_autoencoder, write_tiles
from PIL import Image

from rsprune_dagster.diffusion.checkpoint import load_checkpoint
from rsprune_dagster.diffusion.denoiser import N_LABELS, build_denoiser
from rsprune_dagster.diffusion.interruption import deferred
from rsprune_dagster.diffusion.model import Model
from rsprune_dagster.diffusion.spaces import Space, latents, read_autoencoder
from rsprune_dagster.diffusion.state import states
from rsprune_dagster.diffusion.tiles import tile_set
from rsprune_dagster.diffusion.training import Trained, TrainingOptions, is_due, train
from rsprune_dagster.errors import RunError, UsageError

N_KILLS = 5

# a training in a process of its own, which can be killed; it tells its losses in a file at the end
TRAINING = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from diffusion_runs import small_options, small_tiles
from rsprune_dagster.diffusion.training import train
folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
trained = train(small_tiles(folder.parent / "tiles"), small_options(**changes), folder, device="cpu")
(folder / "losses.json").write_text(json.dumps(trained.losses))
"""


def weights(trained: Trained) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in trained.denoiser.parameters()])


SEEN = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
"""Where that process finds the tests' helpers."""


def start(folder: Path, **changes: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(folder), json.dumps(changes)],
        env={**os.environ, "PYTHONPATH": SEEN},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "losses.json").read_text())  # type: ignore[no-any-return]


def wait_for_states(folder: Path, process: subprocess.Popen[str], n: int = 1) -> None:
    while process.poll() is None and len(states(folder)) < n:
        time.sleep(0.02)


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


def test_sigterm_saves_a_state_first_and_the_training_goes_on_from_it(tmp_path: Path) -> None:
    small_tiles(tmp_path / "tiles")
    rest = {"n_images": 4000, "save_every_images": 4000}
    process = start(tmp_path / "cut", **rest)
    # it is in its loop once it has a handler of its own
    while process.poll() is None and not caught(process.pid, signal.SIGTERM):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == -signal.SIGTERM
    saved = states(tmp_path / "cut")
    assert len(saved) == 1 and not (tmp_path / "cut" / "losses.json").exists()
    n_images = int(saved[0].name.removeprefix("state-"))
    assert 8 <= n_images < 4000
    ends = small_options(n_images=n_images + 32, save_every_images=4000)
    tiles = small_tiles(tmp_path / "tiles")
    resumed = train(tiles, ends, tmp_path / "cut", device="cpu")
    assert resumed.losses == train(tiles, ends, tmp_path / "whole", device="cpu").losses


def caught(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, as Linux tells it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(line for line in lines if line.startswith("SigCgt")).split()[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_signal_is_handed_on_to_who_handled_it_before() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), deferred() as interruption:
            signal.raise_signal(signal.SIGTERM)
            assert interruption.came == signal.SIGTERM and heard == []
            interruption.end(interruption.came)
        assert heard == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt), deferred():
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
@pytest.mark.parametrize("denoiser", ["unet", "dit"])
def test_killed_at_five_random_moments_it_ends_with_the_same_losses(tmp_path: Path, denoiser: str) -> None:
    small_tiles(tmp_path / "tiles")
    rest = {"n_images": 400, "save_every_images": 16, "denoiser": denoiser}
    assert start(tmp_path / "whole", **rest).wait() == 0
    rng, n_killed = np.random.default_rng(0), 0
    for _ in range(N_KILLS):
        process = start(tmp_path / "killed", **rest)
        wait_for_states(tmp_path / "killed", process, n=1)
        time.sleep(float(rng.uniform(0.1, 1)))
        n_killed += process.poll() is None
        process.kill()
        process.wait()
    assert n_killed >= 3, "the training was too short to be killed"
    assert start(tmp_path / "killed", **rest).wait() == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 50


def test_tiles_of_other_sizes_bands_and_depths_train_together(tmp_path: Path) -> None:
    table = write_tiles(tmp_path / "tiles", n=8)
    rng = np.random.default_rng(0)
    odd = {
        "000.png": Image.fromarray(rng.integers(0, 255, (31, 18)).astype(np.uint8)),
        "001.png": Image.fromarray(rng.integers(0, 60_000, (20, 20)).astype(np.uint16)),
        "002.png": Image.fromarray(rng.integers(0, 255, (9, 12, 3)).astype(np.uint8)),
        "003.png": Image.fromarray(rng.integers(0, 255, (90, 40, 4)).astype(np.uint8)),
    }
    for name, image in odd.items():
        image.save(tmp_path / "tiles" / name)
    hashes = [hashlib.md5(Path(uri).read_bytes()).hexdigest() for uri in table.column("uri").to_pylist()]
    at = table.column_names.index("content_md5")
    table = table.set_column(at, "content_md5", pa.array(hashes))
    tiles = tile_set(table, OPTIONS, image_size_px=16)
    assert tiles.images(range(8)).shape == (8, 16, 16, 3)
    assert len(train(tiles, small_options(n_images=16), tmp_path / "s", device="cpu").losses) == 2


def test_a_full_disk_is_said_and_the_last_state_stays(tmp_path: Path) -> None:
    small_tiles(tmp_path / "tiles")
    assert start(tmp_path / "s", n_images=16).wait() == 0
    code = TRAINING.replace("import torch\n", "import torch, resource\n").replace(
        "folder, changes", "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)\nfolder, changes"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s"), "{}"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SEEN},
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # that of the other process alone
    assert "RunError: cannot write" in done.stderr and "free some space, then run again" in done.stderr
    assert [path.name for path in states(tmp_path / "s")] == ["state-000000000016"]
    assert not [path for path in (tmp_path / "s").iterdir() if path.name.startswith(".")]


def test_autoencoders_that_do_not_serve_are_told(tmp_path: Path) -> None:
    good = tiny_autoencoder(tmp_path / "vae")
    module, digest = read_autoencoder(good)
    with pytest.raises(UsageError, match=r"has no config\.json and no diffusion_pytorch_model\.safetensors"):
        read_autoencoder(tmp_path)
    with pytest.raises(UsageError, match=r"turns an image of 15 px into one of \(3, 14, 14\): give"):
        latents(module, digest, 15)
    config = json.loads((good / "config.json").read_text())
    for change, said in (
        ({"_class_name": "VQModel"}, "is of kind 'VQModel', expected AutoencoderKL or AutoencoderTiny"),
        ({"latent_channels": 8}, "cannot be read"),
    ):
        (good / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UsageError, match=said):
            read_autoencoder(good)
    (good / "config.json").write_text(json.dumps({**config, "shift_factor": 0.1}))
    shifted = read_autoencoder(good)
    assert shifted[1] != digest
    with pytest.raises(UsageError, match="shifts its latents"):
        latents(*shifted, 16)


def test_truncated_weights_of_an_autoencoder_are_told(tmp_path: Path) -> None:
    folder = tiny_autoencoder(tmp_path / "vae")
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UsageError, match="cannot be read"):
        read_autoencoder(folder)


def test_combinations_that_no_pipeline_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1,001 scenes are more than the 1,000 .* use training.denoiser unet"):
        build_denoiser("tiny", image_size_px=16, n_scenes=N_LABELS + 1, seed=0, kind="dit")
    with pytest.raises(UsageError, match="needs an image size that 4 divides, not 18 px"):
        build_denoiser("tiny", image_size_px=18, n_scenes=2, seed=0, kind="dit")
    with pytest.raises(UsageError, match=r"no denoiser is called dot \(did you mean dit\?\)"):
        build_denoiser("tiny", image_size_px=16, n_scenes=2, seed=0, kind="dot")
    options = small_options(objective="flow")
    with pytest.raises(UsageError, match="no objective is called flow"):
        train(small_tiles(tmp_path / "tiles"), options, tmp_path / "s", device="cpu")


def test_options_of_old_callers_mean_what_they_meant() -> None:
    old = TrainingOptions("tiny", 8, 8, 8, 1e-3, 0, 8, 0.1, "float32", 0, 8)
    assert (old.denoiser, old.objective, old.autoencoder_digest) == ("unet", "v_prediction", "")


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no checkpoint that can be loaded"):
        load_checkpoint(tmp_path)
