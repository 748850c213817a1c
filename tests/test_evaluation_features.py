"""Feature networks: features depend on the image alone, and a network is called what it is."""

import hashlib
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import cleanfid.resize
import numpy as np
import pytest
import torch

from rsprune_dagster.evaluation import features
from rsprune_dagster.evaluation.features import FeatureNetwork, encoder, inception
from rsprune_dagster.utils.errors import RunError, UsageError

MOBILENET = "mobilenet_v2_tfqat_rot180-4ec30254.pth"


def noise(n: int, side: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


class Layers(torch.nn.Module):
    """As many features as Inception, from one filter bank."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = torch.nn.Conv2d(3, 2048, 5, stride=120)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2] == 299 and images.shape[3] == 299
        return self.filters(images).amax((2, 3), keepdim=True)


class Stub(torch.nn.Module):
    """The shape of clean-fid's TorchScript file, which is not at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@pytest.fixture(scope="module")
def stub_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.pt"
    torch.manual_seed(0)
    torch.jit.script(Stub()).save(path)
    return path


@pytest.fixture
def stub(stub_file: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureNetwork:
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(stub_file.read_bytes()).hexdigest())
    return inception(stub_file, device="cpu")


def test_inception_is_fed_as_clean_fid_feeds_it(stub: FeatureNetwork, stub_file: Path) -> None:
    from cleanfid.inception_torchscript import InceptionV3W

    images = noise(3)
    resize = cleanfid.resize.build_resizer("clean")
    batch = torch.from_numpy(np.stack([resize(image) for image in images])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = InceptionV3W(str(stub_file.parent), download=False)(batch).numpy()
    assert stub.extract([images]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_names_of_distances() -> None:
    def named(name: str) -> FeatureNetwork:
        return FeatureNetwork(name, "", "none", 8, 2, lambda images: np.zeros((len(images), 2), np.float32))

    assert [named("inception").measure(kind) for kind in ("frechet", "kernel")] == ["fid", "kid"]
    assert named("mobilenet_v2").measure("frechet") == "frechet_mobilenet_v2"
    assert named("mobilenet_v2").measure("kernel") == "kernel_mobilenet_v2"


def check_batches_and_order(network: FeatureNetwork) -> None:
    images = noise(70)
    whole = network.extract([images])
    assert whole.shape == (70, network.dimension) and whole.dtype == np.float32
    assert np.array_equal(network.extract(iter([images[:3], images[3:3], images[3:68], images[68:]])), whole)
    assert np.array_equal(network.extract([images[::-1]]), whole[::-1])
    assert len(np.unique(whole, axis=0)) == 70


def test_features_depend_on_the_image_alone(stub: FeatureNetwork) -> None:
    check_batches_and_order(stub)
    check_batches_and_order(encoder("descriptor", "", 64, device="cpu"))


def test_mobilenet_has_its_name_and_the_hash_of_its_weights(shared_data: Path) -> None:
    network = encoder("mobilenet_v2", str(shared_data / "weights" / MOBILENET), 64, device="cpu")
    check_batches_and_order(network)
    assert network.name == "mobilenet_v2" and network.sha256.startswith("4ec30254")
    assert network.measure("frechet") == "frechet_mobilenet_v2"
    assert not np.allclose(np.linalg.norm(network.extract([noise(4)]), axis=1), 1)


def test_no_images_give_no_features() -> None:
    assert encoder("descriptor", "", 64, device="cpu").extract([]).shape[0] == 0


@pytest.mark.parametrize(
    "batch", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)]
)
def test_other_arrays_are_refused(batch: np.ndarray) -> None:
    with pytest.raises(RunError, match=r"expected uint8 \(B, H, W, 3\)"):
        encoder("descriptor", "", 64, device="cpu").extract([batch])


def test_features_that_are_not_finite_are_refused() -> None:
    broken = FeatureNetwork("broken", "", "none", 8, 2, lambda images: np.full((len(images), 2), np.nan, np.float32))
    with pytest.raises(RunError, match="not finite"):
        broken.extract([noise(2)])


def test_another_file_is_not_run_and_not_called_inception(stub_file: Path) -> None:
    with pytest.raises(RunError, match="other networks give no FID"):
        inception(stub_file, device="cpu")
    with pytest.raises(RunError, match="do not exist"):
        inception(stub_file.with_name("absent.pt"), device="cpu")


def test_without_weights_and_internet_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_internet(*_args: object, **_named: object) -> NoReturn:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(features.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(features, "urlopen", no_internet)
    with pytest.raises(RunError, match=r"no route.*give its path.*no FID.*`descriptor` needs no weights"):
        inception(None, device="cpu")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_download_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stub_file: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(features.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(stub_file.read_bytes()).hexdigest())
    monkeypatch.setattr(features, "urlopen", lambda *_args, **_named: stub_file.open("rb"))
    downloaded = inception(None, device="cpu")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["inception-2015-12-05.pt"]
    monkeypatch.delattr(features, "urlopen")
    assert np.array_equal(inception(None, device="cpu").extract([noise(2)]), downloaded.extract([noise(2)]))


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown backbone 'inception'"):
        encoder("inception", "", 299, device="cpu")
