"""The study: the same denoiser trained on the tiles of each arm, sampled and evaluated at several checkpoints.

Initial weights, data order, noise, timesteps and rotations of every training image, and the initial noise of samples
are equal for all arms and derived from the seed; so are the optimizer and the number of training images. An arm with
fewer tiles repeats each more often. The denoiser is unconditional, so that its samples reflect the distribution of the
training tiles, which is what pruning changes.

    study = Study(training=..., image_size_px=32, checkpoints=(4_000, 16_000), n_samples=1_000, ...)
    for arm in arms:
        run_arm(study, arm, corpus, setup, folder, seed=0, workers=1, device="cpu")
    summarize(read_results(study_folder(folder, study, setup, corpus)), ...)
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from rsprune_dagster.corpus.options import read_options
from rsprune_dagster.diffusion.latents import Space
from rsprune_dagster.diffusion.sampling import grid, sample
from rsprune_dagster.diffusion.tile_set import TileSet, tile_set
from rsprune_dagster.diffusion.training import Trained, TrainingOptions, autocast, train
from rsprune_dagster.evaluation.evaluate import Settings, evaluate
from rsprune_dagster.evaluation.features import FeatureNetwork, Images
from rsprune_dagster.evaluation.image_set import PIXEL_EDGE_PX, ImageSet, image_set_of
from rsprune_dagster.evaluation.leakage import Leak, leaks
from rsprune_dagster.study.arms import Arm, PrunedCorpus, chosen_tiles
from rsprune_dagster.study.results import (
    SHOWN_COLUMNS,
    ArmResult,
    Point,
    read_result,
    result_path,
    write_result,
)
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import Progress, silent

CODE_VERSION: Final = "2"
"""Version of the study code; results of other versions are ignored."""
TILES_PER_READ: Final = 256
SHOWN_SAMPLES: Final = 40
"""Number of samples in the picture stored with a result."""
HARMLESS: Final = ("seed", "n_images", "save_every_images", "micro_batch_size")
"""Training options that are set elsewhere or do not change a result."""


@dataclass(frozen=True)
class Study:
    """Settings shared by all arms. UsageError: checkpoints that are not ascending or no multiples of a batch."""

    training: TrainingOptions
    """Each run sets its own seed and length."""
    image_size_px: int
    checkpoints: tuple[int, ...]
    """Training images after which samples are evaluated; the last is the training length."""
    n_samples: int
    sampler: str
    sample_steps: int
    sample_batch_size: int

    def __post_init__(self) -> None:
        rising = tuple(sorted(set(self.checkpoints)))
        if not rising or rising != self.checkpoints or rising[0] < 1:
            raise UsageError(f"checkpoints are {list(self.checkpoints)}, expected rising numbers of images")
        if off := [n for n in rising if n % self.training.batch_size]:
            raise UsageError(
                f"checkpoints {off} are no multiples of batch_size {self.training.batch_size}: a batch would be cut, "
                "and the training would be another one"
            )

    def options(self, seed: int, n_images: int) -> TrainingOptions:
        """The training options of one run up to a checkpoint."""
        return replace(self.training, seed=seed, n_images=n_images)


@dataclass(frozen=True)
class EvaluationSetup:
    """Held-out tiles, networks and settings of the measurement, equal for all arms."""

    networks: Sequence[FeatureNetwork]
    held_out: ImageSet
    """Real tiles unused by pruning and training, with features of all networks, at the size of the samples."""
    settings: Settings


def study_key(study: Study, setup: EvaluationSetup) -> str:
    """A hash of everything that all results depend on; arms and seeds can be added under the same key."""
    content = {
        **asdict(study),
        "training": training_settings(study.training),
        "networks": [(one.name, one.sha256, one.resize) for one in setup.networks],
        "held_out": setup.held_out.content,
        "settings": asdict(setup.settings),
        "code": CODE_VERSION,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def training_settings(options: TrainingOptions) -> dict[str, Any]:
    """The options that change a result. One that is added later is left out while it has its default."""
    return {
        one.name: getattr(options, one.name)
        for one in fields(options)
        if one.name not in HARMLESS and getattr(options, one.name) != one.default
    }


def study_folder(folder: Path, study: Study, setup: EvaluationSetup, corpus: PrunedCorpus) -> Path:
    """The subfolder of this study's results; other corpora and prunings have others."""
    return folder / corpus.digest[:12] / study_key(study, setup)[:20]


def run_arm(
    study: Study,
    arm: Arm,
    corpus: PrunedCorpus,
    setup: EvaluationSetup,
    folder: Path,
    *,
    seed: int,
    workers: int,
    device: str,
    space: Space | None = None,
    progress: Progress = silent,
) -> ArmResult:
    """Train and evaluate one arm with one seed, resuming earlier work.

    Args:
        folder: folder of all studies; receives `ARM/SEED.json` in `study_folder` after each checkpoint, with a picture.
        space: the latent space of `study.training.autoencoder_digest`; None: pixels.

    Raises:
        UsageError, RunError: as `chosen_tiles`, `training.train` and `evaluate` raise them.
    """
    own = study_folder(folder, study, setup, corpus)
    tiles = arm_tiles(study, arm, corpus, seed=seed, workers=workers)
    result = _begun(own, study_key(study, setup), arm, seed, tiles)
    states = own / "states" / f"{arm.name}-{seed}-{result.tiles[:12]}"
    for n_images in study.checkpoints:
        if n_images <= result.n_images:
            continue
        options = study.options(seed, n_images)
        trained = train(tiles, options, states, device=str(resolve_device(device)), space=space, progress=progress)
        images = samples_of(study, trained, seed=seed, device=device, progress=progress)
        point = Point(n_images, recent_loss(trained.losses), scores_of(images, setup))
        result = replace(result, points=(*result.points, point))
        _keep_picture(own, arm, seed, images)
        write_result(own, result)
    shutil.rmtree(states, ignore_errors=True)
    return result


def arm_tiles(study: Study, arm: Arm, corpus: PrunedCorpus, *, seed: int, workers: int) -> TileSet:
    """The training tiles of an arm, at the study's size."""
    table = chosen_tiles(corpus, arm, seed=seed, workers=workers)
    return tile_set(table, read_options(corpus.layout.folder("raw_corpus")), image_size_px=study.image_size_px)


def samples_of(study: Study, trained: Trained, *, seed: int, device: str, progress: Progress = silent) -> Images:
    """The study's samples (n, s, s, 3), from the noise of the seed, in the precision of the training."""
    kind = str(resolve_device(device))
    with autocast(kind, study.training.precision):
        return sample(
            trained.moved(kind).model,
            np.zeros(study.n_samples, np.int64),
            n_steps=study.sample_steps,
            guidance=1.0,
            seed=seed,
            batch_size=study.sample_batch_size,
            sampler=study.sampler,
            progress=progress,
        )


def recent_loss(losses: Sequence[float]) -> float:
    """The mean loss of the last tenth of the steps, one step at least."""
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def scores_of(images: Images, setup: EvaluationSetup) -> dict[str, float]:
    """Every score of the samples against the held-out tiles. RunError: none can be measured."""
    generated = image_set_of_arrays(images, setup.networks)
    evaluation = evaluate(generated, setup.held_out, None, None, setup.networks, settings=setup.settings)
    scores = {score.name: score.value for score in evaluation.scores}
    if not scores:
        evaluation.score(setup.networks[0].measure("kernel"))  # raises with the reason
    return scores


def image_set_of_arrays(images: Images, networks: Sequence[FeatureNetwork]) -> ImageSet:
    """The image set of images (n, s, s, 3)."""
    parts = (images[start : start + TILES_PER_READ] for start in range(0, len(images), TILES_PER_READ))
    return image_set_of(parts, networks, pixel_edge_px=min(PIXEL_EDGE_PX, images.shape[1]))


def image_set_of_tiles(tiles: TileSet, networks: Sequence[FeatureNetwork], progress: Progress = silent) -> ImageSet:
    """The image set of tiles, preprocessed as in training and named by tile id."""
    names = tiles.table.column("tile_id").to_pylist()
    with progress("tiles seen", len(tiles)) as advance:

        def read() -> Iterator[Images]:
            for start in range(0, len(tiles), TILES_PER_READ):
                rows = range(start, min(start + TILES_PER_READ, len(tiles)))
                yield tiles.images(rows)
                advance(len(rows))

        return image_set_of(read(), networks, pixel_edge_px=min(PIXEL_EDGE_PX, tiles.image_size_px), names=names)


def held_out_leaks(held_out: ImageSet, corpus_tiles: ImageSet, *, correlation: float, workers: int) -> tuple[Leak, ...]:
    """Held-out tiles that are in the corpus or near-duplicates of its tiles; checked once for all arms."""
    return leaks(held_out.identities, corpus_tiles.identities, correlation=correlation, workers=workers)


def _begun(own: Path, key: str, arm: Arm, seed: int, tiles: TileSet) -> ArmResult:
    """The stored partial result; a new one if there is none or the arm's tiles changed."""
    kept = read_result(result_path(own, arm.name, seed))
    print_of_tiles = tiles.fingerprint()
    if kept is not None and (kept.tiles, kept.study) == (print_of_tiles, key):
        return kept
    return ArmResult(arm.name, arm.strategy, arm.keep_fraction, seed, len(tiles), print_of_tiles, key)


def _keep_picture(own: Path, arm: Arm, seed: int, images: Images) -> None:
    """Save a picture of the first samples, which start from the same noise in every arm; replaces the last one."""
    with atomic_write(own / arm.name / f"{seed}.png") as draft:
        grid(images[:SHOWN_SAMPLES], columns=SHOWN_COLUMNS).save(draft, "PNG")
