"""params.yaml, parsed into frozen, validated models. The file has the values and their descriptions."""

import difflib
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rsprune_dagster.config.layout import DOWNSTREAM_STUDIES
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
    sources: tuple[str, ...]
    tile_size_px: int = Field(ge=8, le=8192)
    overlap_px: Count
    min_valid_fraction: Fraction
    bands: tuple[Annotated[int, Field(ge=1)], ...]
    value_range: tuple[float, ...]
    image_columns: tuple[str, ...]
    shard_size: int = Field(ge=1)

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
    sources: tuple[str, ...]


class EntropyParams(Section):
    threshold_from: Literal["reference", "bits", "quantile"]
    threshold_bits: float = Field(ge=0, le=8)
    threshold_quantile: Fraction


class EmbeddingParams(Section):
    backbone: str
    weights: str
    weights_sha256: str
    image_size_px: int = Field(ge=16, le=1024)
    descriptor_weight: float = Field(ge=0, le=100)
    batch_size: int = Field(ge=1)
    precision: Literal["auto", "float32", "bfloat16"]


class ClusteringParams(Section):
    n_clusters: Count
    candidates: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    recluster: Literal["auto", "always", "never"]


class SelectionParams(Section):
    keep_fraction: float = Field(gt=0, le=1)
    scene_exponent: Fraction
    cluster_exponent: Fraction
    near_duplicate_correlation: Fraction
    strategy: str


class TrainingParams(Section):
    denoiser: Literal["unet", "dit"]
    preset: Literal["tiny", "small", "base", "xl"]
    objective: Literal["v_prediction", "flow_matching"]
    autoencoder: str
    image_size_px: int = Field(ge=8, le=1024)
    n_images: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    gradient_checkpointing: bool
    learning_rate: float = Field(gt=0)
    warmup_images: Count
    ema_half_life_images: int = Field(ge=1)
    precision: Literal["auto", "float32", "bfloat16"]
    save_every_images: int = Field(ge=1)
    on_changed_tile: Literal["fail", "skip"]
    sampler: Literal["ddim", "dpm_solver"]
    sample_steps: int = Field(ge=1)
    guidance: float = Field(ge=1)
    data_licence: str


class EvaluationParams(Section):
    sources: tuple[str, ...]
    networks: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(=.+)?$")], ...] = Field(min_length=1)
    network_size_px: int = Field(ge=16, le=1024)
    n_samples: int = Field(ge=16)
    scenes: Literal["balanced", "subset"]
    sampler: Literal["ddim", "dpm_solver"]
    sample_steps: int = Field(ge=1)
    guidance: float = Field(ge=1)
    batch_size: int = Field(ge=1)
    copies_in: str
    on_leak: Literal["refuse", "report"]
    champion_score: str
    champion_margin: float = Field(ge=0)
    champion_max_copies: Fraction


class SuperResolutionParams(Section):
    sources: tuple[str, ...]
    test_sources: tuple[str, ...]
    scale: Literal[2, 3, 4, 8]
    degradation: Literal["bicubic", "realistic"]
    start: Literal["foundation", "random"]
    n_images: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_images: Count
    ema_half_life_images: int = Field(ge=1)
    save_every_images: int = Field(ge=1)
    n_test_images: int = Field(ge=2)


class SemanticSynthesisParams(Section):
    sources: tuple[str, ...]
    test_sources: tuple[str, ...]
    classes: tuple[str, ...]
    crop_px: int = Field(ge=8)
    start: Literal["foundation", "random"]
    n_images: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_images: Count
    ema_half_life_images: int = Field(ge=1)
    save_every_images: int = Field(ge=1)
    guidance: float = Field(ge=1)
    n_test_images: int = Field(ge=2)
    n_drawn_images: int = Field(ge=2)
    n_segmenter_images: int = Field(ge=1)
    n_segmenters: int = Field(ge=1)


NO_FOUNDATION = "none"
"""Random weights instead of a foundation, an arm of the studies of downstream tasks."""


class StudyParams(Section):
    arms: tuple[Annotated[str, Field(pattern=r"^[a-z_]+(-[0-9.]+)?$")], ...] = Field(min_length=1)
    seeds: tuple[Count, ...] = Field(min_length=1)
    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    score: str

    @model_validator(mode="after")
    def _known_apart(self) -> Self:
        for name in ("arms", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must differ, not {list(getattr(self, name))}")
        if NO_FOUNDATION in self.arms:
            raise ValueError(f"take {NO_FOUNDATION} out of arms: the studies of downstream tasks have it by themselves")
        return self

    def arms_of(self, study: str) -> tuple[str, ...]:
        """The arms of a study; those of downstream tasks also start from random weights."""
        return (*self.arms, NO_FOUNDATION) if study in DOWNSTREAM_STUDIES else self.arms


class ReportParams(Section):
    keep_fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...]
    n_other_seeds: Count


class RepruningParams(Section):
    max_exchanged_fraction: Fraction


class ComputeParams(Section):
    workers: Count
    device: str
    seed: Count


class TrackingParams(Section):
    uri: str
    experiment: str = Field(min_length=1)

    @property
    def uri_in_effect(self) -> str:
        """MLFLOW_TRACKING_URI, else `uri`; NO_TRACKING: MLflow is off."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.uri


class CheckParams(Section):
    max_quarantined_fraction: Fraction
    max_shrink_fraction: Fraction
    norm_tolerance: float = Field(gt=0)
    min_nmi: Fraction
    max_scene_shift: float = Field(ge=0)
    max_age_days: float = Field(gt=0)
    max_fid_loss: float = Field(ge=0)


class AutomationParams(Section):
    enabled: bool
    schedule: str
    timezone: str
    look_every_s: int = Field(ge=1)
    webhook: str
    ui_url: str

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
    super_resolution: SuperResolutionParams
    semantic_synthesis: SemanticSynthesisParams
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


def descriptions(text: str) -> dict[str, dict[str, str]]:
    """The comment above each parameter of a params.yaml, by section and key."""
    section, comment, found = "", list[str](), dict[str, dict[str, str]]()
    for line in text.splitlines():
        if line.startswith("  #"):
            comment.append(line.strip(" #"))
            continue
        name, colon, _ = line.partition(":")
        if colon and not line.startswith((" ", "#")):
            section = name
        elif colon and comment:
            found.setdefault(section, {})[name.strip()] = " ".join(comment)
        comment = []
    return found


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
