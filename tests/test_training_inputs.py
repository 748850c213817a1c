"""Bad input to a training is told in a line, before anything was computed where that can be."""

import hashlib
import json
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rsprune_command
from diffusion_runs import (
    OPTIONS,
    TRAINING,
    small_options,
    small_tiles,
    tiny_autoencoder,
    write_tiles,
)
from PIL import Image
from prune_runs import settings

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.dagster.assets import build_assets
from rsprune_dagster.dagster.materialize import materialize
from rsprune_dagster.diffusion.checkpoint import load_checkpoint
from rsprune_dagster.diffusion.denoiser import N_LABELS, build_denoiser
from rsprune_dagster.diffusion.latents import latents, read_autoencoder
from rsprune_dagster.diffusion.state import states
from rsprune_dagster.diffusion.tile_set import tile_set
from rsprune_dagster.diffusion.training import TrainingOptions, train
from rsprune_dagster.tracking.run_recorder import folder_recorder
from rsprune_dagster.utils.errors import RunError, UsageError


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


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_last_state_stays(tmp_path: Path) -> None:
    train(small_tiles(tmp_path / "tiles"), small_options(n_images=16), tmp_path / "s", device="cpu")
    code = TRAINING.replace("import torch\n", "import torch, resource\n").replace(
        "folder, changes", "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)\nfolder, changes"
    )
    stopped = rsprune_command.start_script(code, [tmp_path / "s", "{}"])
    assert stopped.wait() == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # that of the other process alone
    said = stopped.said()
    assert "RunError: cannot write" in said and "free some space, then run again" in said
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
    assert old.gradient_checkpointing is False


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no checkpoint that can be loaded"):
        load_checkpoint(tmp_path)


def test_an_autoencoder_that_is_not_there_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    small_tiles(tmp_path / "tiles")
    params = settings(tmp_path / "tiles", None, training={"autoencoder": str(tmp_path / "none")})
    layout = Layout(tmp_path / "a", tmp_path)
    recorder = folder_recorder(layout, params.tracking)
    with pytest.raises(UsageError, match=r"training\.autoencoder .*none has no config\.json"):
        materialize(build_assets(params), params, layout, recorder=recorder)
    assert not (tmp_path / "a").exists()
