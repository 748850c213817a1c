"""A section of params.yaml as Dagster config: each value with description and default in the launchpad."""

from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin

import dagster as dg
from dagster._config.errors import PostProcessingError

from rsprune_dagster.config.effects import without_effect
from rsprune_dagster.config.params import Params, ReferenceParams, Section, descriptions, parse_section, project_root
from rsprune_dagster.utils.errors import UsageError

Check = Callable[[Any], object]
SectionType = TypeVar("SectionType", bound=Section)


class CheckedShape(dg.Shape):
    """A section as Dagster config. A value out of range is rejected at launch, before any step runs."""

    def __new__(cls, defaults: Section, check: "Check") -> "CheckedShape":
        """Create one per section: Dagster caches a single Shape for equal fields, without the validation."""
        made: CheckedShape = object.__new__(cls)
        made._initialized = False
        return made

    def __init__(self, defaults: Section, check: "Check") -> None:
        about = _descriptions(type(defaults))
        annotations = {name: field.annotation for name, field in type(defaults).model_fields.items()}
        fields = {
            name: dg.Field(_dagster_type(annotations[name]), _plain(value), description=about.get(name))
            for name, value in defaults
        }
        super().__init__(fields)  # type: ignore[no-untyped-call]
        self._section, self._check = type(defaults), check

    def post_process(self, value: Any) -> Any:
        """Validate the config of a run; Dagster calls this with the defaults filled in."""
        try:
            self._check(parse_section(self._section, value))
        except UsageError as error:
            raise PostProcessingError(str(error)) from None
        return value


def schema(defaults: SectionType, check: Callable[[SectionType], object] = lambda _: None) -> CheckedShape:
    """The config schema of an asset, from a section of params.yaml.

    Args:
        check: raises UsageError for values that are in range but invalid, such as an unknown name.
    """
    return CheckedShape(defaults, check)


def run_params(context: dg.AssetExecutionContext) -> dict[str, Any]:
    """The asset's parameters in this run, before validation, for the run record."""
    return dict(context.op_execution_context.op_config)


def validated_params(
    context: dg.AssetExecutionContext, defaults: SectionType, others: Params | None = None
) -> SectionType:
    """The asset's validated parameters in this run; changes from params.yaml are logged.

    Args:
        others: all of params.yaml, to warn of a change that has no effect with the other values.

    Raises:
        UsageError: a value is out of range.
    """
    params = parse_section(type(defaults), run_params(context))
    for name, value in params:
        if value != getattr(defaults, name):
            context.log.info(f"{name} is {value!r} in this run; params.yaml says {getattr(defaults, name)!r}")
    if others is not None:
        for sentence in _without_effect(context, defaults, params, others):
            context.log.warning(sentence)
    return params


def _without_effect(context: dg.AssetExecutionContext, defaults: Section, params: Section, others: Params) -> list[str]:
    """A sentence for each launchpad change without effect."""
    [section] = [name for name in Params.model_fields if getattr(others, name) is defaults]
    run_config: Any = context.run.run_config
    reference = run_config.get("ops", {}).get("reference_scenes", {}).get("config", {})
    whole = others.model_copy(
        update={"reference": ReferenceParams.model_validate({**others.reference.model_dump(), **reference})}
    ).model_copy(update={section: params})
    changed = [f"{section}.{name}" for name, value in params if value != getattr(defaults, name)]
    return without_effect(whole, changed)


def _descriptions(section: type[Section]) -> dict[str, str]:
    """The comments of the project's params.yaml, by key; none where it has none."""
    path = project_root() / "params.yaml"
    [name] = [name for name, field in Params.model_fields.items() if field.annotation is section]
    return descriptions(path.read_text(encoding="utf-8")).get(name, {}) if path.is_file() else {}


def _dagster_type(annotation: Any) -> Any:
    if get_origin(annotation) is tuple:
        return dg.Array(_dagster_type(get_args(annotation)[0]))
    if annotation in (int, float, str, bool):
        return annotation
    inner = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    return _dagster_type(inner[0]) if isinstance(inner[0], type) else type(inner[0])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
