"""Two versions of the pruned subset: how they were made differently, and which tiles that changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsprune_dagster.config.layout import LEDGER, Layout
from rsprune_dagster.pruning.compare import ENTERED, LEFT, Comparison, changed_tiles, compare_ledgers
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dvc_lock import Stage, version_in
from rsprune_dagster.tracking.find import SHORTEST, find_one
from rsprune_dagster.tracking.format import SHORT
from rsprune_dagster.tracking.places import Places
from rsprune_dagster.tracking.restore import Say, ensure_cached
from rsprune_dagster.tracking.version_history import Version, VersionHistory
from rsprune_dagster.utils.errors import RunError, UsageError

SUBSET = "pruned_subset"
NOW = "now"
"""The folder on disk."""


@dataclass(frozen=True)
class Side:
    """A version of the pruned subset, its ledger, and all that it was made from."""

    name: str
    """As it was asked for."""
    ledger: Path
    chain: tuple[Version, ...]

    @property
    def data_version(self) -> str:
        return self.chain[0].data_version

    @property
    def is_known(self) -> bool:
        """Whether it is known how it was made."""
        return self.chain[0].is_known

    def made_with(self) -> dict[str, object]:
        """Parameters, upstream versions and code versions, by what they are called in a table."""
        return {
            **dict(sorted((name, value) for version in self.chain for name, value in version.params.items())),
            **{f"{version.asset}, version": version.data_version[:SHORT] for version in self.chain[:0:-1]},
            **{f"{v.asset}, code version": v.maker.code_version for v in self.chain[::-1] if v.maker},
        }


@dataclass(frozen=True)
class Difference:
    """Two versions of the pruned subset, and what differs between them."""

    a: Side
    b: Side
    made_with: Mapping[str, tuple[Any, Any]]
    """What differs of `Side.made_with`, in A and in B; None where one has none."""
    comparison: Comparison
    entered: list[dict[str, Any]]
    """Examples, as rows of `compare.CHANGES`."""
    left: list[dict[str, Any]]


def side(history: VersionHistory, what: str, say: Say) -> Side:
    """What `diff` was given.

    Args:
        what: `now`, the --out of a prune, a folder with a ledger, a hash or its beginning, or a git revision.

    Raises:
        UsageError: it is none of these.
        RunError: the version is not in DVC's cache and no remote has it.
    """
    folder = history.places.layout.assets / SUBSET if what == NOW else Path(what)
    if Layout.of_out(folder).has(SUBSET):
        history = VersionHistory.load(Places.of_out(folder))
        folder = history.places.layout.assets / SUBSET
    if (folder / LEDGER).is_file():
        version = history.version(SUBSET, tree_of(folder).digest)
        return Side(what, folder / LEDGER, tuple(history.chain(version)))
    if what == NOW:
        raise UsageError(f"{what}: there is no {folder / LEDGER}; materialize {SUBSET} first, or name a version")
    history, version = _version(history, what)
    return Side(what, _ledger(history.places, version, say), tuple(history.chain(version)))


def difference(a: Side, b: Side, *, n_examples: int) -> Difference:
    """Compare two sides, with at most `n_examples` tiles that entered and as many that left.

    Raises:
        RunError: a ledger cannot be read, or the temporary folder is full.
    """
    comparison = compare_ledgers(a.ledger, b.ledger)
    entered, left = (
        changed_tiles(a.ledger, b.ledger, comparison.clusters, change, n_examples) for change in (ENTERED, LEFT)
    )
    in_a, in_b = a.made_with(), b.made_with()
    made_with = {name: (in_a.get(name), in_b.get(name)) for name in {**in_a, **in_b}}
    differing = {name: (one, other) for name, (one, other) in made_with.items() if one != other}
    return Difference(a, b, differing, comparison, entered, left)


def _version(history: VersionHistory, what: str) -> tuple[VersionHistory, Version]:
    """The version, and the history that tells its chain as `what` means it."""
    is_hash = len(what) >= SHORTEST and any(v.data_version.startswith(what.lower()) for v in history.of(SUBSET))
    stages = None if is_hash else _lock_at(history, what)
    if stages is None:
        version = find_one(history, what)
    else:
        history = history.at(stages)
        version = history.version(SUBSET, version_in(stages, SUBSET))
        if not version.data_version:
            raise UsageError(f"dvc.lock at {what} holds no {SUBSET}")
    if version.asset != SUBSET:
        raise UsageError(f"{what} is a version of {version.asset}; give one of {SUBSET}")
    return history, version


def _lock_at(history: VersionHistory, revision: str) -> dict[str, Stage] | None:
    """dvc.lock at a git revision; None where git knows no such revision."""
    try:
        return history.places.project.lock_at(revision) if history.places.project else None
    except RunError:
        return None


def _ledger(places: Places, version: Version, say: Say) -> Path:
    """decisions.parquet as it lies in DVC's cache."""
    cache = places.versions
    if cache.tree(version.data_version) is None:
        ensure_cached(places, cache, [version], say)
    ledger = cache.file(version.data_version, LEDGER)
    if ledger is None:
        raise UsageError(f"{version.data_version} holds no {LEDGER}: give a version of {SUBSET}")
    return ledger
