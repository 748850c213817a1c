"""What a re-pruning did, and what a person who reviews it has to see of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsprune_dagster.errors import RunError, UserError
from rsprune_dagster.lineage.differences import NOW, Difference, difference, side
from rsprune_dagster.lineage.history import History
from rsprune_dagster.lineage.kept import Say
from rsprune_dagster.resources.dvc_command import DvcCommand
from rsprune_dagster.resources.dvc_lock import ASSETS
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
    refusal: str = ""
    """The sentence of the check, or of the run, that failed; empty: it may be published."""

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
    """Compare the subset on disk with that of a commit, whose ledger is fetched where it is not at hand.

    Args:
        assets: those whose metrics are compared.
    """
    try:
        found = difference(side(history, base, say), side(history, NOW, say), n_examples=_N_EXAMPLES)
    except UserError as error:
        return Review(base, None, (), str(error))
    try:
        return Review(base, found, tuple(_metrics(command, base, assets)))
    except RunError as error:
        return Review(base, found, (), str(error))


def check_exchanged(found: Difference, most: float) -> None:
    """The gate of `repruning.max_exchanged_fraction`.

    Raises:
        RunError: more of the subset was exchanged.
    """
    share = exchanged_fraction(found)
    if share > most:
        raise RunError(
            f"{share:.1%} of the tiles kept at {found.a.name} were exchanged for others, and "
            f"repruning.max_exchanged_fraction allows {most:.1%}: look at the summary, and raise it where that is meant"
        )


def exchanged_fraction(found: Difference) -> float:
    """The share of the tiles kept before that left, beyond those that a smaller subset has no room for: 0 to 1."""
    comparison = found.comparison
    beyond = comparison.n_left - max(0, comparison.n_kept_a - comparison.n_kept_b)
    return beyond / comparison.n_kept_a if comparison.n_kept_a else 0.0


def pictures_of(history: History, made: Sequence[Remade]) -> dict[str, Path]:
    """The pictures that the runs recorded, as `asset.title.png`."""
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
    files = json.loads(command.run("metrics", "diff", "--json", base) or "{}").get("diff", {})
    ours = {path: values for path, values in sorted(files.items()) if _asset(path) in assets}
    return [
        Metric(f"{_asset(path)}: {name}", _number(pair.get("old")), _number(pair.get("new")))
        for path, values in ours.items()
        for name, pair in sorted(values.items())
        if _number(pair.get("old")) != _number(pair.get("new"))
    ]


def _asset(path: str) -> str:
    folder, _, rest = path.partition("/")
    return rest.partition("/")[0] if folder == ASSETS else ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
