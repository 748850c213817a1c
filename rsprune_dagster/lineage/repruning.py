"""What a re-pruning did, and what a person who reviews it has to see of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsprune_dagster.errors import RunError, UserError
from rsprune_dagster.lineage.differences import NOW, SUBSET, Difference, difference, side
from rsprune_dagster.lineage.history import History
from rsprune_dagster.lineage.kept import Say
from rsprune_dagster.pruning.steps.ledger import count_decisions
from rsprune_dagster.resources.dvc_command import DvcCommand
from rsprune_dagster.resources.dvc_lock import ASSETS, version_in
from rsprune_dagster.resources.journal import Record

_N_EXAMPLES = 5


@dataclass(frozen=True)
class Metric:
    """A figure of an asset at the base and now; None where one has none."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Remade:
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

    made: tuple[Remade, ...]
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
    def changed(self) -> tuple[Remade, ...]:
        return tuple(each for each in self.made if each.changed)


@dataclass(frozen=True)
class Review:
    """What changed in the subset since a commit. Where something cannot be compared, `why_not` says why."""

    base: str
    difference: Difference | None
    metrics: tuple[Metric, ...]
    """Those that differ."""
    why_not: str = ""


def review(history: History, base: str, command: DvcCommand, assets: Sequence[str], say: Say) -> Review:
    """Compare the subset that dvc.lock names with that of a commit. Ledgers that are not at hand are fetched.

    Args:
        history: of a project.
        assets: those whose metrics are compared.
    """
    assert history.places.project is not None, "a project is reviewed"
    version = version_in(history.places.project.lock(), SUBSET)
    if not version:
        return Review(base, None, (), f"dvc.lock holds no {SUBSET}")
    try:
        now = replace(side(history, version, say), name=NOW)
        found = difference(side(history, base, say), now, n_examples=_N_EXAMPLES)
    except UserError as error:
        return Review(base, None, (), str(error))
    try:
        return Review(base, found, tuple(_metrics(command, base, assets)))
    except RunError as error:
        return Review(base, found, (), str(error))


def exchanged_too_many(found: Difference, most: float) -> str:
    """What the gate of `repruning.max_exchanged_fraction` says; empty: it passes."""
    share = exchanged_fraction(found)
    if share <= most:
        return ""
    return (
        f"{share:.1%} of the tiles kept at {found.a.name} were exchanged for others, and "
        f"repruning.max_exchanged_fraction allows {most:.1%}: look at the summary, and raise it where that is meant"
    )


def lost_too_many(found: Difference, most: float) -> str:
    """What the check `not_shrunken` cannot say in a fresh checkout, which has no history; empty: it passes.

    Sources that changed are another corpus, as for that check.
    """
    if any(name == "corpus.sources" for name, _, _ in found.params):
        return ""
    before, now = (_n_usable(side.ledger) for side in (found.a, found.b))
    lost = 1 - now / before if before else 0.0
    if lost <= most:
        return ""
    return (
        f"{now:,} tiles where the subset at {found.a.name} was made from {before:,}: {lost:.0%} are gone, and "
        f"checks.max_shrink_fraction allows {most:.0%}. Is a source not mounted? Raise it where they were meant to go"
    )


def exchanged_fraction(found: Difference) -> float:
    """The share of the tiles kept before that left, beyond those that a smaller subset has no room for: 0 to 1."""
    comparison = found.comparison
    beyond = comparison.n_left - max(0, comparison.n_kept_a - comparison.n_kept_b)
    return beyond / comparison.n_kept_a if comparison.n_kept_a else 0.0


def pictures_of(history: History, made: Sequence[Remade]) -> dict[str, Path]:
    """The pictures that the runs recorded, as `asset.title.svg` or `.jpg`."""
    journal = history.places.journal
    return {
        f"{each.asset}.{path.name}": path
        for each in made
        for path in journal.pictures(each.record)
        if path.suffix != ".md"
    }


def _metrics(command: DvcCommand, base: str, assets: Sequence[str]) -> list[Metric]:
    """`dvc metrics diff`: DVC reads those of the commit from its cache, else from the remote.

    Raises:
        RunError: neither has them.
    """
    files = json.loads(command.run("metrics", "diff", "--json", base) or "{}")
    ours = {path: values for path, values in sorted(files.items()) if _asset(path) in assets}
    return [
        Metric(f"{_asset(path)}: {name}", _number(pair.get("old")), _number(pair.get("new")))
        for path, values in ours.items()
        for name, pair in sorted(values.items())
        if _number(pair.get("old")) != _number(pair.get("new"))
    ]


def _n_usable(ledger: Path) -> int:
    return sum(n for decision, n in count_decisions(ledger).items() if decision != "quarantined")


def _asset(path: str) -> str:
    folder, _, rest = path.partition("/")
    return rest.partition("/")[0] if folder == ASSETS else ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
