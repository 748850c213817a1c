"""params.yaml, parsed into frozen, validated models: the only place for numbers."""

import difflib
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rsprune_dagster.errors import UsageError

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

NO_TRACKING = "none"
"""In place of MLflow's address."""
NUMBERS_BELOW = 2**63
"""What the libraries that take a parameter keep integers in."""


class Section(BaseModel):
    """A section of params.yaml. Unknown keys are errors: a misspelt parameter must not be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _within_64_bits(cls, value: object) -> object:
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, int | float) and not -NUMBERS_BELOW < each < NUMBERS_BELOW:
                raise ValueError("expected a finite number that fits 64 bits")
        return value


SectionType = TypeVar("SectionType", bound=Section)


class CorpusParams(Section):
    sources: tuple[str, ...] = Field(
        description="Folders, tars, Parquet files or GeoTIFF scenes; `synthetic`: a procedural corpus"
    )
    tile_size_px: int = Field(ge=8, le=8192, description="Edge of the windows that scenes are cut into, pixels")
    overlap_px: Count = Field(description="Pixels that neighbouring windows share")
    min_valid_fraction: Fraction = Field(description="Windows with a smaller share of valid pixels are quarantined")
    bands: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        description="Bands seen as red, green, blue; empty: automatic"
    )
    value_range: tuple[float, ...] = Field(
        description="[low, high] for 16-bit and float; empty: measured per scene file"
    )
    max_tile_pixels: int = Field(ge=64, description="Larger tiles are refused before they are decoded")
    image_columns: tuple[str, ...] = Field(
        description="Parquet columns of image bytes; the first that a file has is read; empty: automatic"
    )
    patch_grid: int = Field(ge=1, le=16, description="Patches along an edge for the mean patch entropy")
    shard_size: int = Field(ge=1, description="Tiles worked on together")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.overlap_px >= self.tile_size_px:
            raise ValueError(f"overlap_px {self.overlap_px} must be less than tile_size_px {self.tile_size_px}")
        if len(self.bands) not in (0, 1, 3):
            raise ValueError(f"bands must name 1 or 3 bands, not {len(self.bands)}")
        if self.value_range and not (len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]):
            raise ValueError(f"value_range must be [low, high] with low < high, not {list(self.value_range)}")
        return self


class ReferenceParams(Section):
    sources: tuple[str, ...] = Field(description="Labelled scene sets, a folder per scene; empty: none, one stratum")


class EntropyParams(Section):
    threshold_from: Literal["reference", "bits", "quantile"] = Field(description="How the threshold is found")
    threshold_bits: float = Field(ge=0, le=8, description="Threshold in bits; also where there is no reference")
    threshold_quantile: Fraction = Field(description="Share of tiles below the threshold, for `quantile`")
    max_scene_loss: Fraction = Field(description="Largest share of a reference scene below the threshold")
    max_threshold_bits: float = Field(ge=0, le=8, description="A calibrated threshold never exceeds this")


class EmbeddingParams(Section):
    backbone: str = Field(description="descriptor (no download) or a torchvision model")
    weights: str = Field(description="A local weights file; empty: the published weights")
    weights_sha256: str = Field(description="Expected sha256 of the weights file; empty: not checked")
    image_size_px: int = Field(ge=16, le=1024, description="Edge that tiles are resized to for the encoder")
    descriptor_weight: float = Field(
        ge=0, le=100, description="How much the descriptor counts beside a network; 0: not at all"
    )
    batch_size: int = Field(ge=1, description="Tiles per forward pass")
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="Arithmetic of the encoder")


class ClusteringParams(Section):
    n_clusters: Count = Field(description="Clusters; 0: chosen on the reference among the candidates")
    candidates: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, description="Numbers of clusters tried")
    sample_per_scene: int = Field(ge=1, description="Tiles of each scene that train the centroids")
    n_iterations: int = Field(ge=1, description="Iterations of k-means")
    recluster: Literal["auto", "always", "never"] = Field(
        description="auto: with automation on, new tiles go to the last version's centroids until they drift"
    )
    max_far_fraction: Fraction = Field(description="Of new tiles: lie outside what the centroids know")
    max_cluster_shift: float = Field(ge=0, description="Population stability index of the clusters' shares")
    max_growth: float = Field(ge=0, description="New tiles over those that trained the centroids")


class SelectionParams(Section):
    keep_fraction: float = Field(gt=0, le=1, description="Share of the readable tiles that is kept")
    scene_exponent: Fraction = Field(description="Quotas over scenes: 1 proportional, 0 uniform")
    cluster_exponent: Fraction = Field(description="Quotas over a scene's clusters: 1 proportional, 0 uniform")
    cluster_half_size: Count = Field(description="Tiles of a cluster that claims half as much as a large one; 0: none")
    near_duplicate_correlation: Fraction = Field(description="Thumbnails that correlate more are one picture")
    strategy: str = Field(description="rsprune, or a baseline")


class TrainingParams(Section):
    denoiser: Literal["unet", "dit"] = Field(description="Network: a UNet, or a diffusion transformer")
    preset: Literal["tiny", "small", "base", "xl"] = Field(description="Size of the denoiser")
    objective: Literal["v_prediction", "flow_matching"] = Field(description="What the denoiser learns to say")
    autoencoder: str = Field(description="Folder of a diffusers autoencoder whose latents are learned; empty: pixels")
    image_size_px: int = Field(ge=8, le=1024, description="Edge that tiles are resized to for training")
    n_images: int = Field(ge=1, description="Training length in images; an image seen twice counts twice")
    batch_size: int = Field(ge=1, description="Images per step, over all processes")
    micro_batch_size: int = Field(ge=1, description="Images worked on at a time: less memory, the same result")
    gradient_checkpointing: bool = Field(description="Activations are computed twice: less memory, the same result")
    learning_rate: float = Field(gt=0, description="Of Adam, after the warm-up")
    warmup_images: Count = Field(description="Images over which the learning rate rises")
    ema_half_life_images: int = Field(ge=1, description="The averaged weights forget half in so many images")
    scene_dropout: Fraction = Field(description="Share of images that train without their scene, for guidance")
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="Arithmetic of the denoiser")
    save_every_images: int = Field(ge=1, description="A killed training loses at most so many images")
    on_changed_tile: Literal["fail", "skip"] = Field(description="A tile that is not what was pruned: fail, or skip")
    sampler: Literal["ddim", "dpm_solver"] = Field(description="How noise becomes an image, step by step")
    sample_steps: int = Field(ge=1, description="Steps of the sampler")
    guidance: float = Field(ge=1, description="1: as learned; more: further towards the scene")
    data_licence: str = Field(description="Licence of the images, for the model card")


class EvaluationParams(Section):
    sources: tuple[str, ...] = Field(
        description="Labelled images that nothing was trained on, a folder per scene; `synthetic`; empty: none"
    )
    networks: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(=.+)?$")], ...] = Field(
        min_length=1, description="Where distances are measured: inception, descriptor, a torchvision model; NAME=FILE"
    )
    network_size_px: int = Field(ge=16, le=1024, description="Edge of images for networks other than Inception")
    n_samples: int = Field(ge=16, description="Images that are sampled from the checkpoint")
    scenes: Literal["balanced", "subset"] = Field(description="Samples: as many of each scene, or as the subset has")
    sampler: Literal["ddim", "dpm_solver"] = Field(description="How noise becomes an image, step by step")
    sample_steps: int = Field(ge=1, description="Steps of the sampler")
    guidance: float = Field(ge=1, description="1: as learned; more: further towards the scene")
    batch_size: int = Field(ge=1, description="Images sampled at a time")
    max_tiles: int = Field(ge=100, description="Of a larger training or held-out set so many tiles are drawn")
    level: float = Field(gt=0, lt=1, description="Share of the intervals that hold")
    n_resamples: int = Field(ge=2, description="Random halves of the samples that an interval comes from")
    n_neighbours: int = Field(ge=1, description="Reach of an image's ball, for precision, recall, density, coverage")
    min_per_scene: int = Field(ge=4, description="A scene with fewer images on either side gets no distance of its own")
    copies_in: str = Field(description="pixels, or also one of the networks: where copies of training tiles are sought")
    pixel_edge_px: int = Field(ge=4, le=64, description="Edge of the small pictures that copies are sought in")
    held_out_quantile: float = Field(
        gt=0, lt=1, description="A sample nearer than this share of held-out tiles is near"
    )
    copy_neighbours: int = Field(ge=1, description="Next training tiles that the nearest is set in relation to")
    near_duplicate_correlation: Fraction = Field(description="From here on a held-out tile is one that was trained on")
    on_leak: Literal["refuse", "report"] = Field(description="Held-out tiles in the training set: refuse, or report")
    champion_score: str = Field(description="The score by which a checkpoint becomes the champion; empty: none does")
    champion_margin: float = Field(ge=0, description="How much better it has to be, beyond the interval")
    champion_max_copies: Fraction = Field(description="With more samples singled out near one tile it never does")


class StudyParams(Section):
    arms: tuple[Annotated[str, Field(pattern=r"^[a-z_]+(-[0-9.]+)?$")], ...] = Field(
        min_length=1, description="What is trained on: full, or a strategy and its share, as rsprune-0.15"
    )
    seeds: tuple[Count, ...] = Field(min_length=1, description="Each arm is trained once for each")
    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="Training images after which samples are measured; the last ends the training"
    )
    n_samples: int = Field(ge=16, description="Images sampled at each checkpoint")
    score: str = Field(description="The score that curves and sentences are about")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("arms", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must differ, not {list(getattr(self, name))}")
        return self


class ReportParams(Section):
    keep_fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        description="Keep fractions that the report compares, besides the one in effect"
    )
    n_other_seeds: Count = Field(description="Other seeds the candidates are ranked with again; 0: none")
    seed_sample_tiles: int = Field(ge=2, description="At most so many candidates, evenly drawn, are ranked again")


class RepruningParams(Section):
    max_exchanged_fraction: Fraction = Field(description="Share of the kept tiles that a re-pruning may exchange")


class ComputeParams(Section):
    workers: Count = Field(description="Processes over shards; 0: one per core")
    device: str = Field(description="auto, cpu, cuda or cuda:N")
    seed: Count = Field(description="Every draw comes from this")


class TrackingParams(Section):
    uri: str = Field(description="MLflow's server or store; empty: SQLite in .state/mlflow; none: nothing is tracked")
    experiment: str = Field(min_length=1, description="The MLflow experiment that holds the runs")

    @property
    def uri_in_effect(self) -> str:
        """MLFLOW_TRACKING_URI, else `uri`; NO_TRACKING: nothing is tracked."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.uri


class CheckParams(Section):
    max_quarantined_fraction: Fraction = Field(description="More unusable tiles are taken for a broken source")
    max_shrink_fraction: Fraction = Field(description="A corpus that lost more is taken for a missing source; blocks")
    norm_tolerance: float = Field(gt=0, description="How far the length of a vector may be from 1")
    max_cluster_fraction: Fraction = Field(description="Largest share of the tiles that one cluster may hold")
    min_nmi: Fraction = Field(description="Normalized mutual information of the clusters with the reference's scenes")
    max_near_duplicate_fraction: Fraction = Field(description="Kept tiles that may nearly be another kept tile")
    max_scene_shift: float = Field(ge=0, description="How far a scene's share may move between versions, of itself")
    max_age_days: float = Field(gt=0, description="An older subset is stale")
    max_fid_loss: float = Field(
        ge=0, description="How much worse than the champion a distance may be, of itself; blocks"
    )


class AutomationParams(Section):
    enabled: bool = Field(description="Schedule, sensors and declarative automation run; false: nothing starts unasked")
    schedule: str = Field(description="When the weekly refresh starts, as cron: minute hour day month weekday")
    timezone: str = Field(description="Of the schedule, such as Europe/Berlin")
    look_every_s: int = Field(ge=1, description="How often the sources are listed for new tiles")
    webhook: str = Field(description="Where failures are posted as JSON; RSPRUNE_WEBHOOK goes before; empty: nowhere")
    ui_url: str = Field(description="Where people reach the web UI, for links in messages")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.schedule.split()) != 5:
            raise ValueError(f"schedule is {self.schedule!r}: expected five fields, such as '0 3 * * 1'")
        return self


class Params(Section):
    """All of params.yaml."""

    corpus: CorpusParams
    reference: ReferenceParams
    entropy: EntropyParams
    embedding: EmbeddingParams
    clustering: ClusteringParams
    selection: SelectionParams
    training: TrainingParams
    evaluation: EvaluationParams
    study: StudyParams
    report: ReportParams
    repruning: RepruningParams
    compute: ComputeParams
    tracking: TrackingParams
    checks: CheckParams
    automation: AutomationParams

    def with_values(self, changes: Mapping[str, Mapping[str, Any]]) -> "Params":
        """A copy with some values replaced, validated anew.

        Raises:
            UsageError: a value is out of its range.
        """
        raw = self.model_dump()
        for section, values in changes.items():
            raw[section] = {**raw[section], **values}
        return parse(raw, source="the parameters given")


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """`{"section": {"key": value}}` as `{"section.key": value}`."""
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def parse(raw: object, *, source: str) -> Params:
    """Validate a parsed params.yaml.

    Raises:
        UsageError: names each offending key, what came and what was expected.
    """
    return _validated(Params, raw, source)


def parse_section(section: type[SectionType], raw: object) -> SectionType:
    """Validate one section, as it comes from Dagster's launchpad.

    Raises:
        UsageError: as `parse`.
    """
    return _validated(section, raw, "the run's configuration")


def _validated(model: type[SectionType], raw: object, source: str) -> SectionType:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        sentences = "; ".join(_sentence(problem, model) for problem in error.errors())
        raise UsageError(f"{source}: {sentences}") from None


def load(path: Path) -> Params:
    """Read a params.yaml.

    Raises:
        UsageError: the file is missing, is not YAML, or holds a bad value.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"no parameters at {path}: run inside the project, or set RSPRUNE_PROJECT to its folder"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    return parse(raw, source=str(path))


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds. Raises ValueError where it holds none, or one that is nested too deeply."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def project_root() -> Path:
    """The folder of params.yaml: RSPRUNE_PROJECT, else the working folder, else where the package lies."""
    if named := os.environ.get("RSPRUNE_PROJECT"):
        return Path(named).resolve()
    package = Path(__file__).resolve().parent
    candidates = (Path.cwd(), package.parent)
    return next((folder for folder in candidates if _is_project(folder)), package)


def _is_project(folder: Path) -> bool:
    return (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file()


def suggest(name: str, known: tuple[str, ...]) -> str:
    """A hint for a misspelt name: ` (did you mean X?)`, or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "the section"
    if problem["type"] == "extra_forbidden":
        return f"{key} is not a parameter{suggest(location[-1], _known_keys(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    hint = (
        f"; give {problem['input'] / 100:g} to keep {problem['input']:g} %" if _is_percentage(location, problem) else ""
    )
    value = "" if isinstance(problem["input"], Mapping) else f" is {_SHORT.repr(problem['input'])}"
    return f"{key}{value}: {message[0].lower()}{message[1:]}{hint}"


def _is_percentage(location: Sequence[str], problem: Any) -> bool:
    return (
        location[-1:] == ["keep_fraction"] and isinstance(problem["input"], int | float) and 1 < problem["input"] <= 100
    )


def _known_keys(model: type[BaseModel], location: Sequence[str]) -> tuple[str, ...]:
    for part in location:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return tuple(model.model_fields)
