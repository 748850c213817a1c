"""The studies of downstream tasks, one arm and seed at a time: super_resolution_study and semantic_synthesis_study.

A foundation is trained on the tiles of an arm, and fine-tuned and measured as the task's checkpoint is. Length, data,
noise and initial weights of the fine-tuning are the same for all arms. The arm `none` starts from random weights.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from rsprune_dagster.config.layout import EXAMPLES, STUDY_SUMMARY, Layout
from rsprune_dagster.config.params import NO_FOUNDATION, Params
from rsprune_dagster.diffusion.checkpoint import Origin, load_checkpoint, write_checkpoint
from rsprune_dagster.diffusion.latents import space_of
from rsprune_dagster.diffusion.training import train
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.intervals import LEVEL
from rsprune_dagster.stages import semantic_synthesis_checkpoint as synthesis
from rsprune_dagster.stages import super_resolution_checkpoint as super_resolution
from rsprune_dagster.stages.diffusion_checkpoint import sampling_options, training_key
from rsprune_dagster.stages.pruning_study import study_of, write_runs
from rsprune_dagster.stages.raw_corpus import Scanner
from rsprune_dagster.study.arms import FULL, Arm, PrunedCorpus, parse_arm, read_pruned
from rsprune_dagster.study.results import ArmResult, Point, read_result, read_results, result_path, write_result
from rsprune_dagster.study.summary import Summary, summarize
from rsprune_dagster.study.trainings import Study, arm_tiles, key_of
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.progress import Progress, silent

CODE_VERSION: Final = "1"
"""Version of the studies of downstream tasks; results of other versions are ignored."""
N_PARTS: Final = 5
"""Square parts of an example, in the checkpoints of both tasks."""
UNUSED: Final = ("sources", "test_sources", "start")
"""Parameters of a task that the arms or the images' content stand for."""

Report = super_resolution.SuperResolutionReport | synthesis.SynthesisReport


@dataclass(frozen=True)
class DownstreamTask:
    """What is done with each foundation."""

    name: str
    """super_resolution or semantic_synthesis, the section of params.yaml."""
    scores: tuple[str, ...]
    """Metrics to compare the arms by."""
    data: str
    """A hash of the images."""
    fine_tune: Callable[[Layout, str, int], Report]
    """Fine-tune from a `start` (foundation or random) with a seed and measure, in the layout's folders."""
    output: int
    """The part of the pictures of examples that shows what the model made."""

    @property
    def asset(self) -> str:
        """The asset of the study."""
        return f"{self.name}_study"

    @property
    def checkpoint(self) -> str:
        """The asset whose folder a fine-tuning fills."""
        return f"{self.name}_checkpoint"


@dataclass(frozen=True)
class Foundation:
    """The trained foundation of an arm."""

    arm: Arm
    folder: Path
    """A checkpoint."""
    n_tiles: int
    """0 for the arm `none`."""
    tiles: str
    """Fingerprint of the training tiles."""


@dataclass(frozen=True)
class DownstreamReport:
    """The result of one arm and seed, and the summaries of all so far."""

    result: ArmResult
    summaries: tuple[Summary, ...]
    """One for each score of the task."""
    n_runs: int

    def figures(self) -> dict[str, Any]:
        """Figures for the web UI."""
        own = {name: getattr(self.result, name) for name in ("arm", "seed", "n_tiles", "n_images")}
        return {**own, "n_runs": self.n_runs, **self.result.points[-1].scores}


def super_resolution_task(
    layout: Layout,
    params: Params,
    sources: super_resolution.ImageSources,
    scanner: Scanner,
    networks: Sequence[FeatureNetwork],
    *,
    device: str,
    progress: Progress = silent,
) -> DownstreamTask:
    """Super-resolution with the parameters of `super_resolution`. The images are read into the study's folder.

    Raises:
        UsageError: there are no test images; as `super_resolution_checkpoint.read_images`.
        RunError: a test image is in the corpus.
    """
    task, training = params.super_resolution, params.training
    if not sources.test:
        raise UsageError(f"the study needs test images. {super_resolution.NOT_MEASURED}")
    folder = layout.folder("super_resolution_study")
    images = super_resolution.read_images(
        layout,
        folder,
        task,
        training,
        sources,
        scanner,
        edge_px=training.image_size_px,
        seen=[read_pruned(layout, params.selection).manifest],
    )

    def fine_tune(into: Layout, start: str, seed: int) -> Report:
        foundation, _ = load_checkpoint(into.folder("diffusion_checkpoint"))
        own = task.model_copy(update={"start": start})
        return super_resolution.fine_tune(
            into, foundation, own, training, images, networks, seed=seed, device=device, progress=progress
        )

    distances = tuple(f"{network.measure('frechet')}_sample" for network in networks)
    return DownstreamTask(
        "super_resolution", ("psnr_mean", "st_lpips_sample", *distances), images.fingerprint(), fine_tune, output=3
    )


def synthesis_task(
    params: Params,
    sources: synthesis.PairSources,
    networks: Sequence[FeatureNetwork],
    *,
    device: str,
    progress: Progress = silent,
) -> DownstreamTask:
    """Semantic image synthesis with the parameters of `semantic_synthesis`.

    Raises:
        UsageError: there are no test pairs; as `semantic_synthesis_checkpoint.read_task_pairs`.
        RunError: a test image is also a training image.
    """
    task, training = params.semantic_synthesis, params.training
    if not sources.test:
        raise UsageError(f"the study needs test pairs. {synthesis.NOT_MEASURED}")
    pairs = synthesis.read_task_pairs(task, sources, image_size_px=training.image_size_px)

    def fine_tune(into: Layout, start: str, seed: int) -> Report:
        foundation, _ = load_checkpoint(into.folder("diffusion_checkpoint"))
        own = task.model_copy(update={"start": start})
        return synthesis.fine_tune(
            into, foundation, own, training, pairs, networks, seed=seed, device=device, progress=progress
        )

    places = ("_same_places", "") if pairs.held_back.n_labelled >= synthesis.LEAST_PAIRS else ("",)
    scores = tuple(f"{measure}{place}" for measure in ("miou_drawn", "miou_gain") for place in places)
    return DownstreamTask("semantic_synthesis", scores, pairs.fingerprint(), fine_tune, output=1)


def study_downstream_arm(
    layout: Layout,
    params: Params,
    task: DownstreamTask,
    networks: Sequence[FeatureNetwork],
    *,
    arm: str,
    seed: int,
    workers: int,
    device: str,
    progress: Progress = silent,
) -> DownstreamReport:
    """Train, fine-tune and measure one arm with one seed, and write all results of the study so far.

    Foundations, states and results lie in the cache: an interrupted run resumes, a finished one is not repeated. The
    foundations are trained as those of the pruning study, up to its last checkpoint.

    Raises:
        UsageError: an unknown arm; as `training.train`.
        RunError: as `training.train`.
    """
    corpus, chosen, study = read_pruned(layout, params.selection), parse_arm(arm), study_of(params)
    key = key_of(study, measured_by(params, task, networks))
    own = layout.cache / "study" / corpus.digest[:12] / key[:20]
    result = read_result(result_path(own, chosen.name, seed))
    if result is None or result.study != key:
        foundation = foundation_of(
            study, chosen, corpus, params, layout.cache, seed=seed, workers=workers, device=device, progress=progress
        )
        result = _fine_tuned(layout, task, foundation, own, seed, key)
    results = read_results(own)
    measured = result.points[-1].scores  # of few images there is no Fréchet distance
    summaries = tuple(summarize(results, score=score, level=LEVEL) for score in task.scores if score in measured)
    folder = layout.folder(task.asset)
    write_runs(folder, own, results)
    told = [summary.as_json() for summary in summaries]
    (folder / STUDY_SUMMARY).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    return DownstreamReport(result, summaries, len(results))


def measured_by(params: Params, task: DownstreamTask, networks: Sequence[FeatureNetwork]) -> Mapping[str, Any]:
    """All that results depend on besides the foundations."""
    section: Mapping[str, Any] = getattr(params, task.name).model_dump(exclude=set(UNUSED))
    return {
        "task": {task.name: section, "data": task.data, "version": CODE_VERSION},
        "sampling": asdict(sampling_options(params.training, 0)),
        "networks": [(one.name, one.sha256, one.resize) for one in networks],
    }


def foundation_of(
    study: Study,
    arm: Arm,
    corpus: PrunedCorpus,
    params: Params,
    cache: Path,
    *,
    seed: int,
    workers: int,
    device: str,
    progress: Progress = silent,
) -> Foundation:
    """Train the foundation of an arm, unless that was done. All tasks share it.

    That of the arm `none` only says what the denoiser is like: it is trained for one batch, and its weights are not
    used.
    """
    is_none = arm.strategy == NO_FOUNDATION
    tiles = arm_tiles(study, Arm(FULL, 1) if is_none else arm, corpus, seed=seed, workers=workers)
    options = study.options(seed, study.training.batch_size if is_none else study.checkpoints[-1])
    home = cache / "study" / "foundations" / training_key(options, tiles)
    checkpoint, draft = home / "checkpoint", home / "draft"
    if not checkpoint.exists():
        space = space_of(params.training)
        trained = train(
            tiles, options, home / "states", device=str(resolve_device(device)), space=space, progress=progress
        )
        shutil.rmtree(draft, ignore_errors=True)  # what a killed run left
        draft.mkdir()
        origin = Origin(len(tiles), "", params.training.data_licence)
        write_checkpoint(draft, trained.moved("cpu"), tiles.scene_names, options, origin)
        draft.rename(checkpoint)
        shutil.rmtree(home / "states")
    return Foundation(arm, checkpoint, 0 if is_none else len(tiles), tiles.fingerprint())


def _fine_tuned(
    layout: Layout, task: DownstreamTask, foundation: Foundation, own: Path, seed: int, key: str
) -> ArmResult:
    """Fine-tune and measure, and keep the result and a picture in `own`."""
    arm = foundation.arm
    draft = own / "drafts" / f"{arm.name}-{seed}"
    shutil.rmtree(draft, ignore_errors=True)  # what a killed run left
    draft.mkdir(parents=True)
    into = layout.with_draft("diffusion_checkpoint", foundation.folder).with_draft(task.checkpoint, draft)
    report = task.fine_tune(into, "random" if arm.strategy == NO_FOUNDATION else "foundation", seed)
    point = Point(report.n_images, report.final_loss, report.metrics)
    result = ArmResult(
        arm.name, arm.strategy, arm.keep_fraction, seed, foundation.n_tiles, foundation.tiles, key, (point,)
    )
    with atomic_write(own / arm.name / f"{seed}.png") as picture:
        _picture(sorted((draft / EXAMPLES).glob("*.png")), task.output).save(picture, "PNG")
    write_result(own, result)
    shutil.rmtree(draft)
    return result


def _picture(examples: Iterable[Path], output: int) -> Image.Image:
    """A row for each example, of three square parts: input, what the model made, truth."""
    rows = []
    for path in examples:
        parts = np.split(np.asarray(Image.open(path)), N_PARTS, axis=1)
        rows.append(np.concatenate([parts[0], parts[output], parts[-1]], axis=1))
    return Image.fromarray(np.concatenate(rows))
