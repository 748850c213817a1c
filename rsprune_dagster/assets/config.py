"""A section of params.yaml as the launchpad shows it: every value with its meaning and its default."""

from typing import Any, TypeVar, get_args, get_origin

import dagster as dg

from rsprune_dagster.params import Section, parse_section

SectionType = TypeVar("SectionType", bound=Section)


def schema(defaults: Section) -> dict[str, Any]:
    """The config schema of an asset, from a section of params.yaml."""
    return {
        name: dg.Field(
            _dagster_type(field.annotation),
            default_value=_plain(getattr(defaults, name)),
            description=field.description,
        )
        for name, field in type(defaults).model_fields.items()
    }


def given(context: dg.AssetExecutionContext) -> dict[str, Any]:
    """The asset's parameters as the run has them, not validated yet: what its record begins with."""
    return dict(context.op_execution_context.op_config)


def in_effect(context: dg.AssetExecutionContext, defaults: SectionType) -> SectionType:
    """The asset's parameters for this run: params.yaml, with what the launchpad changed, which is logged.

    Raises:
        UsageError: a value is out of its range.
    """
    params = parse_section(type(defaults), given(context))
    for name, value in params:
        if value != getattr(defaults, name):
            context.log.info(f"{name} is {value!r} in this run; params.yaml says {getattr(defaults, name)!r}")
    return params


def _dagster_type(annotation: Any) -> Any:
    if get_origin(annotation) is tuple:
        return dg.Array(_dagster_type(get_args(annotation)[0]))
    if annotation in (int, float, str, bool):
        return annotation
    inner = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    return _dagster_type(inner[0]) if isinstance(inner[0], type) else type(inner[0])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
