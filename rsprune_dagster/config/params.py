"""params.yaml, parsed into frozen, validated models: the only place for numbers."""

import difflib
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rsprune_dagster.utils.errors import UsageError

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

NO_TRACKING = "none"
"""Value of `tracking.uri` that turns MLflow off."""
NUMBERS_BELOW = 2**63
"""The libraries that receive parameters store integers in signed 64 bits."""


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
        description="Bands used as red, green and blue; empty: automatic"
    )
    value_range: tuple[float, ...] = Field(
        description="[low, high] that 16-bit and float values are scaled from; empty: measured per scene file"
    )
    max_tile_pixels: int = Field(ge=64, description="Larger tiles are refused before they are decoded")
    image_columns: tuple[str, ...] = Field(
        description="Parquet columns with image bytes; the first one present in a file is read; empty: automatic"
    )
    patch_grid: int = Field(ge=1, le=16, description="Patches along each edge of a tile, for the mean patch entropy")
    shard_size: int = Field(ge=1, description="Tiles processed and cached together")

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
    threshold_from: Literal["reference", "bits", "quantile"] = Field(
        description="How the entropy threshold is determined"
    )
    threshold_bits: float = Field(ge=0, le=8, description="Threshold in bits; also used when there is no reference")
    threshold_quantile: Fraction = Field(description="Share of tiles below the threshold, for `quantile`")
    max_scene_loss: Fraction = Field(
        description="Largest share of any reference scene that may fall below the threshold"
    )
    max_threshold_bits: float = Field(ge=0, le=8, description="Upper limit of the calibrated threshold, in bits")


class EmbeddingParams(Section):
    backbone: str = Field(description="descriptor (no download) or a torchvision model")
    weights: str = Field(description="A local weights file; empty: the published weights")
    weights_sha256: str = Field(description="Expected sha256 of the weights file; empty: not checked")
    image_size_px: int = Field(ge=16, le=1024, description="Edge that tiles are resized to for the encoder")
    descriptor_weight: float = Field(
        ge=0, le=100, description="Weight of the descriptor relative to the network's embedding; 0: unused"
    )
    batch_size: int = Field(ge=1, description="Tiles per forward pass")
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="Floating-point precision of the encoder")


class ClusteringParams(Section):
    n_clusters: Count = Field(description="Number of clusters; 0: chosen among the candidates on the reference")
    candidates: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, description="Numbers of clusters to try")
    sample_per_scene: int = Field(ge=1, description="Tiles of each scene that train the centroids")
    n_iterations: int = Field(ge=1, description="Iterations of k-means")
    recluster: Literal["auto", "always", "never"] = Field(
        description="auto: with automation on, reuse the last version's centroids until the pool has drifted"
    )
    max_far_fraction: Fraction = Field(
        description="Largest share of new tiles beyond the 99th percentile of the training distances"
    )
    max_cluster_shift: float = Field(ge=0, description="Largest population stability index of the cluster sizes")
    max_growth: float = Field(ge=0, description="Largest ratio of new tiles to the tiles that trained the centroids")


class SelectionParams(Section):
    keep_fraction: float = Field(gt=0, le=1, description="Share of the readable tiles that is kept")
    scene_exponent: Fraction = Field(description="Scene quotas: 1 proportional to size, 0 uniform")
    cluster_exponent: Fraction = Field(description="Cluster quotas in a scene: 1 proportional to size, 0 uniform")
    cluster_half_size: Count = Field(
        description="Cluster size at which the quota weight is half of a large cluster's; 0: off"
    )
    near_duplicate_correlation: Fraction = Field(
        description="Correlation of detail from which two tiles are near-duplicates"
    )
    strategy: str = Field(description="Selection strategy: rsprune or a baseline")


class TrainingParams(Section):
    denoiser: Literal["unet", "dit"] = Field(description="Architecture: UNet or diffusion transformer")
    preset: Literal["tiny", "small", "base", "xl"] = Field(description="Size of the denoiser")
    objective: Literal["v_prediction", "flow_matching"] = Field(
        description="Training objective, which fixes the noise schedule"
    )
    autoencoder: str = Field(description="Folder of a diffusers autoencoder for latent diffusion; empty: pixels")
    image_size_px: int = Field(ge=8, le=1024, description="Edge that tiles are resized to for training")
    n_images: int = Field(ge=1, description="Training length in images; an image seen twice counts twice")
    batch_size: int = Field(ge=1, description="Images per step, over all processes")
    micro_batch_size: int = Field(ge=1, description="Images per forward pass; smaller: less memory, same result")
    gradient_checkpointing: bool = Field(description="Recompute activations: less memory, slower, same result")
    learning_rate: float = Field(gt=0, description="Learning rate of Adam after the warm-up")
    warmup_images: Count = Field(description="Images over which the learning rate rises linearly")
    ema_half_life_images: int = Field(ge=1, description="Half-life of the weight average (EMA), in images")
    scene_dropout: Fraction = Field(
        description="Share of images trained without a scene label, for classifier-free guidance"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="Floating-point precision of the denoiser")
    save_every_images: int = Field(ge=1, description="Images between two saved states")
    on_changed_tile: Literal["fail", "skip"] = Field(description="If a tile changed since pruning: fail or skip it")
    sampler: Literal["ddim", "dpm_solver"] = Field(description="How noise becomes an image, step by step")
    sample_steps: int = Field(ge=1, description="Steps of the sampler")
    guidance: float = Field(ge=1, description="1: as learned; more: further towards the scene")
    data_licence: str = Field(description="Licence of the images, for the model card")


class EvaluationParams(Section):
    sources: tuple[str, ...] = Field(
        description="Labelled images unused by pruning and training, one folder per scene; `synthetic`; empty: none"
    )
    networks: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(=.+)?$")], ...] = Field(
        min_length=1, description="Feature networks: inception, descriptor or a torchvision model; NAME=FILE"
    )
    network_size_px: int = Field(
        ge=16, le=1024, description="Edge that images are resized to for networks other than Inception"
    )
    n_samples: int = Field(ge=16, description="Images sampled from the checkpoint")
    scenes: Literal["balanced", "subset"] = Field(description="Samples per scene: equal, or proportional to the subset")
    sampler: Literal["ddim", "dpm_solver"] = Field(description="How noise becomes an image, step by step")
    sample_steps: int = Field(ge=1, description="Steps of the sampler")
    guidance: float = Field(ge=1, description="1: as learned; more: further towards the scene")
    batch_size: int = Field(ge=1, description="Images per sampling batch")
    max_tiles: int = Field(
        ge=100, description="Largest number of training or held-out tiles compared; larger sets are subsampled"
    )
    level: float = Field(gt=0, lt=1, description="Confidence level of the intervals")
    n_resamples: int = Field(ge=2, description="Random halves of the samples per interval")
    n_neighbours: int = Field(
        ge=1, description="k of the k-nearest-neighbour balls for precision, recall, density and coverage"
    )
    min_per_scene: int = Field(ge=4, description="Fewest generated and reference images for a distance per scene")
    copies_in: str = Field(description="Where copies are searched: pixels, or also in the features of a network")
    pixel_edge_px: int = Field(ge=4, le=64, description="Edge of the downscaled images that copies are searched in")
    held_out_quantile: float = Field(
        gt=0, lt=1, description="Quantile of the held-out tiles' distances below which a sample is close"
    )
    copy_neighbours: int = Field(ge=1, description="Further training tiles that the nearest distance is divided by")
    near_duplicate_correlation: Fraction = Field(
        description="Correlation from which a held-out tile counts as a training tile"
    )
    on_leak: Literal["refuse", "report"] = Field(
        description="If held-out tiles are in the training set: refuse or report"
    )
    champion_score: str = Field(description="Score that decides which checkpoint is the champion; empty: none")
    champion_margin: float = Field(ge=0, description="Improvement required beyond the confidence interval")
    champion_max_copies: Fraction = Field(
        description="A checkpoint with a larger share of memorized samples is never promoted"
    )


class StudyParams(Section):
    arms: tuple[Annotated[str, Field(pattern=r"^[a-z_]+(-[0-9.]+)?$")], ...] = Field(
        min_length=1, description="Training sets to compare: full, or strategy-fraction such as rsprune-0.15"
    )
    seeds: tuple[Count, ...] = Field(min_length=1, description="Seeds; each arm is trained once per seed")
    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="Training images after which samples are evaluated; training ends at the last"
    )
    n_samples: int = Field(ge=16, description="Images sampled at each checkpoint")
    score: str = Field(description="Score that the study compares")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("arms", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must differ, not {list(getattr(self, name))}")
        return self


class ReportParams(Section):
    keep_fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        description="Additional keep fractions that the report compares"
    )
    n_other_seeds: Count = Field(description="Number of other seeds that candidates are ranked with; 0: none")
    seed_sample_tiles: int = Field(ge=2, description="Largest number of candidates ranked with other seeds")


class RepruningParams(Section):
    max_exchanged_fraction: Fraction = Field(
        description="Largest share of the kept tiles that a re-pruning may replace"
    )


class ComputeParams(Section):
    workers: Count = Field(description="Parallel workers over shards; 0: one per core")
    device: str = Field(description="auto, cpu, cuda or cuda:N")
    seed: Count = Field(description="Random seed")


class TrackingParams(Section):
    uri: str = Field(description="MLflow tracking URI; empty: SQLite in .state/mlflow; none: MLflow is off")
    experiment: str = Field(min_length=1, description="MLflow experiment of the runs")

    @property
    def uri_in_effect(self) -> str:
        """MLFLOW_TRACKING_URI, else `uri`; NO_TRACKING: MLflow is off."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.uri


class CheckParams(Section):
    max_quarantined_fraction: Fraction = Field(description="Largest share of unusable tiles; a larger share warns")
    max_shrink_fraction: Fraction = Field(description="Largest share of the corpus that may disappear; more blocks")
    norm_tolerance: float = Field(gt=0, description="Largest deviation of a vector's length from 1")
    max_cluster_fraction: Fraction = Field(description="Largest share of the tiles in one cluster")
    min_nmi: Fraction = Field(description="Smallest normalized mutual information of clusters and reference scenes")
    max_near_duplicate_fraction: Fraction = Field(
        description="Largest share of kept tiles that are near-duplicates of another"
    )
    max_scene_shift: float = Field(ge=0, description="Largest relative change of a scene's share between versions")
    max_age_days: float = Field(gt=0, description="Age in days from which the subset is stale")
    max_fid_loss: float = Field(
        ge=0, description="Largest relative increase of a Fréchet distance over the champion's; more blocks"
    )


class AutomationParams(Section):
    enabled: bool = Field(description="Start schedule, sensors and declarative automation; false: only manual runs")
    schedule: str = Field(description="Cron expression of the weekly refresh: minute hour day month weekday")
    timezone: str = Field(description="Time zone of the schedule, such as Europe/Berlin")
    look_every_s: int = Field(ge=1, description="Seconds between two listings of the sources")
    webhook: str = Field(
        description="URL that failures are posted to as JSON; RSPRUNE_WEBHOOK overrides it; empty: none"
    )
    ui_url: str = Field(description="Address of the web UI, for links in messages")

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
        """A validated copy with some values replaced.

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
    """Parse a YAML text. Raises ValueError if it is invalid or nested too deeply."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def project_root() -> Path:
    """The folder of params.yaml: RSPRUNE_PROJECT, else the working folder, else the package's parent folder."""
    if named := os.environ.get("RSPRUNE_PROJECT"):
        return Path(named).resolve()
    package = Path(__file__).resolve().parents[1]
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
