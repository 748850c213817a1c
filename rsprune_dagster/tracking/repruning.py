"""What a re-pruning did, and what a person who reviews it has to see of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsprune_dagster.config.layout import ASSETS
from rsprune_dagster.pruning.ledger import count_decisions
from rsprune_dagster.tracking.differences import NOW, SUBSET, Difference, difference, side
from rsprune_dagster.tracking.dvc_command import DvcCommand
from rsprune_dagster.tracking.dvc_lock import version_in
from rsprune_dagster.tracking.restore import Say
from rsprune_dagster.tracking.run_log import Record
from rsprune_dagster.tracking.version_history import VersionHistory
from rsprune_dagster.utils.errors import RunError, UserError

_N_EXAMPLES = 5


Metric = tuple[str, float | None, float | None, float | None]
"""A figure of an asset: its name, what it was at the base, what it is now, and the change; None where one has none."""


@dataclass(frozen=True)
class RematerializedAsset:
    """An asset that was made anew."""

    asset: str
    why: str
    before: str
    """Its version at the commit; empty where that holds none."""
    record: Record
    warnings: tuple[str, ...] = ()
    """What its checks said that let the run go on."""

    @property
    def after(self) -> str:
        return self.record.data_version

    @property
    def changed(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True)
class Repruning:
    """What was made anew, in order, and why it may not be published."""

    made: tuple[RematerializedAsset, ...]
    error: RunError | None = None
    """The gate or the run that failed; none: it may be published."""

    @property
    def refusal(self) -> str:
        """Its sentence; empty: it may be published."""
        return str(self.error) if self.error else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(sentence for each in self.made for sentence in each.warnings)

    @property
    def changed(self) -> tuple[RematerializedAsset, ...]:
        return tuple(each for each in self.made if each.changed)


@dataclass(frozen=True)
class Review:
    """What changed in the subset since a commit. Where something cannot be compared, `why_not` says why."""

    base: str
    difference: Difference | None
    metrics: tuple[Metric, ...]
    """Those that differ."""
    why_not: str = ""


def review(history: VersionHistory, base: str, command: DvcCommand, assets: Sequence[str], say: Say) -> Review:
    """Compare the subset that dvc.lock names with that of a commit. Ledgers that are not at hand are fetched.

    Args:
        history: of a project.
        assets: those whose metrics are compared.
    """
    assert history.places.project is not None, "a project is reviewed"
    version = version_in(history.places.project.lock(), SUBSET)
    if not version:
        return Review(base, None, (), f"dvc.lock holds no {SUBSET}")
    found = None
    try:
        now = replace(side(history, version, say), name=NOW)
        found = difference(side(history, base, say), now, n_examples=_N_EXAMPLES)
        return Review(base, found, tuple(_metrics(command, base, assets)))
    except UserError as error:
        return Review(base, found, (), str(error))


def exchange_gate(found: Difference, most: float) -> str:
    """What the gate of `repruning.max_exchanged_fraction` says; empty: it passes.

    The share is of the tiles kept before that left, beyond those that a smaller subset has no room for.
    """
    n_kept, n_now = found.comparison.n_kept_a, found.comparison.n_kept_b
    beyond = found.comparison.n_left - max(0, n_kept - n_now)
    share = beyond / n_kept if n_kept else 0.0
    if share <= most:
        return ""
    return (
        f"{share:.1%} of the tiles kept at {found.a.name} were exchanged for others, and "
        f"repruning.max_exchanged_fraction allows {most:.1%}: look at the summary, and raise it where that is meant"
    )


def shrink_gate(found: Difference, most: float) -> str:
    """The check `not_shrunken` against the base commit, as a fresh checkout has no history; empty: it passes.

    It passes where the sources changed: they are another corpus.
    """
    if "corpus.sources" in found.made_with:
        return ""
    before, now = (_n_usable(side.ledger) for side in (found.a, found.b))
    lost = 1 - now / before if before else 0.0
    if lost <= most:
        return ""
    return (
        f"{now:,} tiles where the subset at {found.a.name} was made from {before:,}: {lost:.0%} are gone, and "
        f"checks.max_shrink_fraction allows {most:.0%}. Is a source not mounted? Raise it where they were meant to go"
    )


def pictures_of(history: VersionHistory, made: Sequence[RematerializedAsset]) -> dict[str, Path]:
    """The pictures that the runs recorded, as `asset.title.svg` or `.jpg`."""
    pictures = ((each.asset, path) for each in made for path in history.places.run_log.pictures(each.record))
    return {f"{asset}.{path.name}": path for asset, path in pictures if path.suffix != ".md"}


def _metrics(command: DvcCommand, base: str, assets: Sequence[str]) -> list[Metric]:
    """`dvc metrics diff`: DVC reads those of the commit from its cache, else from the remote.

    Raises:
        RunError: neither has them.
    """
    files = json.loads(command.run("metrics", "diff", "--json", base) or "{}")
    pairs = {
        f"{Path(path).parts[1]}: {name}": (_number(pair.get("old")), _number(pair.get("new")))
        for path, values in sorted(files.items())
        if path.startswith(tuple(f"{ASSETS}/{asset}/" for asset in assets))
        for name, pair in sorted(values.items())
    }
    return [
        (name, old, new, None if old is None or new is None else new - old)
        for name, (old, new) in pairs.items()
        if old != new
    ]


def _n_usable(ledger: Path) -> int:
    return sum(n for decision, n in count_decisions(ledger).items() if decision != "quarantined")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
