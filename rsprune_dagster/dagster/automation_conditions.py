"""Declarative automation: what an asset waits for before it is made by itself.

`AutomationCondition.eager()` would not do: it goes by materializations, not by content, so a refresh that changed
nothing would train anew; and it does not look at blocking checks.
"""

from collections.abc import Sequence
from typing import Any, Final

import dagster as dg

from rsprune_dagster.config.layout import STUDIES
from rsprune_dagster.config.params import AutomationParams

AC = dg.AutomationCondition

ON_REQUEST: Final = frozenset({"raw_corpus", "reference_scenes", *STUDIES})
"""Roots are started by the schedule and the sensor; a study takes days of a GPU, so a person asks for it."""
ON_SCHEDULE: Final = frozenset({"diffusion_checkpoint", "super_resolution_checkpoint", "semantic_synthesis_checkpoint"})
"""Trainings run at most once in a period of the schedule, however often tiles arrive."""


def with_conditions(assets: Sequence[dg.AssetsDefinition], params: AutomationParams) -> list[dg.AssetsDefinition]:
    """The assets, each with its condition. It is evaluated only if `automation.enabled` is true."""
    return [asset.map_asset_specs(lambda spec: _conditioned(spec, params)) for asset in assets]


def upstream_changed() -> "dg.AutomationCondition[Any]":
    """Upstream data changed since the last materialization or request; nothing upstream is missing, running or failed.

    A failure is not tried again before something upstream changes: the same content would fail again.
    """
    return _changed() & _clear()


def at_most_once_a_period(params: AutomationParams) -> "dg.AutomationCondition[Any]":
    """As `upstream_changed`, or where the asset is missing, once after a tick of the schedule."""
    tick: dg.AutomationCondition[Any] = AC.cron_tick_passed(params.schedule, params.timezone)
    return (AC.missing() | _changed()) & _clear() & tick.since_last_handled()


def _changed() -> "dg.AutomationCondition[Any]":
    news: dg.AutomationCondition[Any] = AC.newly_missing() | AC.any_deps_match(AC.data_version_changed())
    return news.since_last_handled()


def _clear() -> "dg.AutomationCondition[Any]":
    """Nothing upstream is missing or being made, and the blocking checks there passed."""
    passed = AC.all_deps_match(AC.all_checks_match(AC.check_passed(), blocking_only=True))
    return ~AC.any_deps_missing() & ~AC.any_deps_in_progress() & ~AC.in_progress() & passed


def _conditioned(spec: dg.AssetSpec, params: AutomationParams) -> dg.AssetSpec:
    name = spec.key.to_user_string()
    if name in ON_REQUEST:
        return spec
    condition = at_most_once_a_period(params) if name in ON_SCHEDULE else upstream_changed()
    return spec.replace_attributes(automation_condition=condition)
