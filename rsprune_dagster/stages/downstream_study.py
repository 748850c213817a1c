"""The studies of downstream tasks, one arm and seed at a time: super_resolution_study and semantic_synthesis_study.

A foundation is trained on the tiles of an arm, and fine-tuned and measured as the task's checkpoint is. Length, data,
noise and initial weights of the fine-tuning are the same for all arms. The arm `none` starts from random weights.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from rsprune_dagster.config.layout import EXAMPLES, STUDY_SUMMARY, Layout
from rsprune_dagster.config.params import (
    NO_FOUNDATION,
    Params,
    SemanticSynthesisParams,
    SuperResolutionParams,
    TrainingParams,
)
from rsprune_dagster.diffusion.checkpoint import Origin, load_checkpoint, write_checkpoint
from rsprune_dagster.diffusion.latents import space_of
from rsprune_dagster.diffusion.state import training_key
from rsprune_dagster.diffusion.tile_set import TileSet
from rsprune_dagster.diffusion.training import TrainingOptions, train
from rsprune_dagster.downstream.synthesis_measures import ENDS, LEAST_PAIRS, OTHER, SAME
from rsprune_dagster.evaluation.features import FeatureNetwork
from rsprune_dagster.evaluation.intervals import LEVEL
from rsprune_dagster.stages import semantic_synthesis_checkpoint as synthesis
from rsprune_dagster.stages import super_resolution_checkpoint as super_resolution
from rsprune_dagster.stages.pruning_study import study_of, write_runs
from rsprune_dagster.stages.raw_corpus import Scanner
from rsprune_dagster.study.arms import FULL, Arm, PrunedCorpus, parse_arm, read_pruned
from rsprune_dagster.study.results import ArmResult, Point, read_result, read_results, result_path, write_result
from rsprune_dagster.study.summary import Summary, summarize
from rsprune_dagster.study.trainings import CODE_VERSION as FOUNDATION_VERSION
from rsprune_dagster.study.trainings import Study, arm_tiles, training_settings
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.device import resolve_device
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.file_lock import held
from rsprune_dagster.utils.progress import Progress, silent
from rsprune_dagster.utils.terminal import warn

CODE_VERSIONS: Final = {"super_resolution": "1", "semantic_synthesis": "2"}
"""Versions of the studies by task; results of other versions are ignored."""
DRAFT: Final = "draft"
N_PARTS: Final = 5
"""Square parts of an example, in the checkpoints of both tasks."""
UNUSED: Final = ("sources", "test_sources", "start", "save_every_images")
"""Parameters of a task that change no result, or that the arms or the images' content stand for."""

Report = super_resolution.SuperResolutionReport | synthesis.SynthesisReport


@dataclass(frozen=True)
class DownstreamTask:
    """A task that foundations are fine-tuned for and measured by."""

    name: str
    """super_resolution or semantic_synthesis, the section of params.yaml."""
    params: SuperResolutionParams | SemanticSynthesisParams
    """That section."""
    scores: tuple[str, ...]
    """Metrics to compare the arms by."""
    data: str
    """A hash of the images, with the options that they are read with."""
    fine_tune: Callable[..., Report]
    """Fine-tune and measure: `fine_tune` of the task's checkpoint, with its images."""
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
) -> DownstreamTask:
    """Super-resolution with the parameters of `super_resolution`. The images are read into the study's folder.

    Without sources all arms are fine-tuned on the whole corpus: the kept tiles are those that one arm's foundation saw.

    Raises:
        UsageError: there are no test images; as `super_resolution_checkpoint.read_images`.
        RunError: a test image is in the corpus.
    """
    task = params.super_resolution
    if not sources.test:
        raise UsageError(f"the study needs test images. {super_resolution.NOT_MEASURED}")
    folder, corpus = layout.folder("super_resolution_study"), pq.read_table(layout.file("manifest"))
    images = super_resolution.read_images(
        layout, folder, task, params.training, sources, scanner, edge_px=params.training.image_size_px, tiles=corpus
    )
    fine_tune = partial(super_resolution.fine_tune, images=images)
    scores = ("psnr_mean", "st_lpips_sample", *(f"{network.measure('frechet')}_sample" for network in networks))
    data = f"{images.fingerprint()} {scanner.options.values()}"
    return DownstreamTask("super_resolution", task, scores, data, fine_tune, output=3)


def synthesis_task(
    params: Params, sources: synthesis.PairSources, networks: Sequence[FeatureNetwork]
) -> DownstreamTask:
    """Semantic image synthesis with the parameters of `semantic_synthesis`.

    Raises:
        UsageError: there are no test pairs; as `semantic_synthesis_checkpoint.read_task_pairs`.
        RunError: a test image is also a training image.
    """
    task = params.semantic_synthesis
    if not sources.test:
        raise UsageError(f"the study needs test pairs. {synthesis.NOT_MEASURED}")
    pairs = synthesis.read_task_pairs(task, sources, image_size_px=params.training.image_size_px)
    fine_tune = partial(synthesis.fine_tune, pairs=pairs)
    places = [SAME, OTHER] if pairs.held_back.n_labelled >= LEAST_PAIRS else [OTHER]
    distances = [f"{network.measure('frechet')}_drawn" for network in networks]
    scores = tuple(f"{one}{ENDS[place]}" for one in ("miou_drawn", *distances, "miou_gain") for place in places)
    return DownstreamTask("semantic_synthesis", task, scores, pairs.fingerprint(), fine_tune, output=1)


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
    is_none = chosen.strategy == NO_FOUNDATION
    tiles = arm_tiles(study, Arm(FULL, 1) if is_none else chosen, corpus, seed=seed, workers=workers)
    content = tiles.fingerprint()
    key, foundations = result_key(study, params, task, networks), foundations_folder(layout, corpus)
    own = foundations.parent / key[:20]
    work = own / "work" / f"{chosen.name}-{seed}"
    result = read_result(result_path(own, chosen.name, seed))
    if result is None or (result.study, result.tiles) != (key, content):
        # With no foundation one says what the denoiser is like: a batch is enough, as its weights are not used.
        options = study.options(seed, study.training.batch_size if is_none else study.checkpoints[-1])
        foundation = foundation_of(tiles, options, foundations, params.training, device=device, progress=progress)
        report = _fine_tuned(
            layout,
            task,
            foundation,
            work,
            start="random" if is_none else "foundation",
            training=params.training,
            networks=networks,
            seed=seed,
            device=device,
            progress=progress,
        )
        point = Point(report.n_images, report.final_loss, report.metrics)
        n_tiles = 0 if is_none else len(tiles)
        result = ArmResult(chosen.name, chosen.strategy, chosen.keep_fraction, seed, n_tiles, content, key, (point,))
        with atomic_write(own / chosen.name / f"{seed}.png") as picture:
            _picture(sorted((work / DRAFT / EXAMPLES).glob("*.png")), task.output).save(picture, "PNG")
        write_result(own, result)
    shutil.rmtree(work, ignore_errors=True)
    results = read_results(own)
    measured = result.points[-1].scores  # of few images there is no Fréchet distance
    summaries = tuple(summarize(results, score=score, level=LEVEL) for score in task.scores if score in measured)
    folder = layout.folder(task.asset)
    write_runs(folder, own, results)
    told = [summary.as_json() for summary in summaries]
    (folder / STUDY_SUMMARY).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    return DownstreamReport(result, summaries, len(results))


def result_key(study: Study, params: Params, task: DownstreamTask, networks: Sequence[FeatureNetwork]) -> str:
    """A hash of all that results depend on besides the corpus; arms and seeds can be added under the same key."""
    content = {
        "foundation": [training_settings(study.training), study.image_size_px, study.checkpoints[-1]],
        task.name: task.params.model_dump(exclude=set(UNUSED)),
        "data": task.data,
        "sampling": [params.training.sampler, params.training.sample_steps],
        "networks": [(one.name, one.sha256, one.resize) for one in networks],
        "code": [FOUNDATION_VERSION, CODE_VERSIONS[task.name]],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def foundations_folder(layout: Layout, corpus: PrunedCorpus) -> Path:
    """Where the foundations of a corpus lie; results lie beside it."""
    return layout.cache / "study" / corpus.digest[:12] / "foundations"


def foundation_of(
    tiles: TileSet,
    options: TrainingOptions,
    folder: Path,
    params: TrainingParams,
    *,
    device: str,
    progress: Progress = silent,
) -> Path:
    """The checkpoint of a training on these tiles, below `folder`; trained unless that was done.

    All tasks share it. A process waits for another one that trains the same.

    Raises:
        UsageError, RunError: as `training.train`.
    """
    home = folder / f"{training_key(options, tiles)}-{FOUNDATION_VERSION}"
    checkpoint, draft = home / "checkpoint", home / DRAFT
    with held(home / "lock", f"{home / 'lock'}, as it trains there", warn):
        if not checkpoint.exists():
            on, space = str(resolve_device(device)), space_of(params)
            trained = train(tiles, options, home / "states", device=on, space=space, progress=progress)
            shutil.rmtree(draft, ignore_errors=True)  # what a killed run left
            draft.mkdir()
            origin = Origin(len(tiles), "", params.data_licence)
            write_checkpoint(draft, trained.moved("cpu"), tiles.scene_names, options, origin)
            draft.rename(checkpoint)
        shutil.rmtree(home / "states", ignore_errors=True)
    return checkpoint


def _fine_tuned(
    layout: Layout, task: DownstreamTask, foundation: Path, work: Path, *, start: str, **how: Any
) -> Report:
    """Fine-tune and measure, with states and checkpoint below `work`; `how`: other arguments of `task.fine_tune`."""
    shutil.rmtree(work / DRAFT, ignore_errors=True)  # what a killed run left
    (work / DRAFT).mkdir(parents=True)
    into = replace(layout, state=work).with_draft("diffusion_checkpoint", foundation)
    into = into.with_draft(task.checkpoint, work / DRAFT)
    model, _ = load_checkpoint(foundation)
    return task.fine_tune(into, model, task.params.model_copy(update={"start": start}), **how)


def _picture(examples: Iterable[Path], output: int) -> Image.Image:
    """A row for each example, of three square parts: input, what the model made, truth."""
    rows = []
    for path in examples:
        parts = np.split(np.asarray(Image.open(path)), N_PARTS, axis=1)
        rows.append(np.concatenate([parts[0], parts[output], parts[-1]], axis=1))
    return Image.fromarray(np.concatenate(rows))
