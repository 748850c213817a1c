"""Two versions of the pruned subset: how they were made differently, and which tiles that changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsprune_dagster.errors import RunError, UsageError
from rsprune_dagster.lineage.find import SHORTEST, find_one
from rsprune_dagster.lineage.history import History, Version
from rsprune_dagster.lineage.kept import Say, make_whole
from rsprune_dagster.lineage.places import WORK, Places
from rsprune_dagster.pruning.steps.compare import ENTERED, LEFT, Comparison, changed_tiles, compare_ledgers
from rsprune_dagster.resources.content import tree_of
from rsprune_dagster.resources.dvc_lock import ASSETS, DvcProject, version_in

SUBSET = "pruned_subset"
LEDGER = "decisions.parquet"
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

    def upstream(self) -> dict[str, str]:
        return {version.asset: version.data_version for version in self.chain[1:]}

    def params(self) -> dict[str, object]:
        return {name: value for version in self.chain for name, value in version.params.items()}

    def code(self) -> dict[str, str]:
        return {version.asset: version.maker.code_version for version in self.chain if version.maker}


@dataclass(frozen=True)
class Difference:
    """What differs between two sides. Each triple is a name and its values in A and in B; None where one has none."""

    a: Side
    b: Side
    params: tuple[tuple[str, Any, Any], ...]
    upstream: tuple[tuple[str, Any, Any], ...]
    """Assets and their data versions."""
    code: tuple[tuple[str, Any, Any], ...]
    """Assets and their code versions."""
    comparison: Comparison
    entered: tuple[dict[str, Any], ...]
    """Examples, as rows of `compare.CHANGES`."""
    left: tuple[dict[str, Any], ...]


def side(history: History, what: str, say: Say) -> Side:
    """What `diff` was given.

    Args:
        what: `now`, the --out of a prune, a folder with a ledger, a hash or its beginning, or a git revision.

    Raises:
        UsageError: it is none of these.
        RunError: the version is not in DVC's cache and no remote has it.
    """
    if what == NOW:
        return _on_disk(history, what, history.places.assets / SUBSET)
    folder = Path(what)
    if (folder / WORK / ASSETS / SUBSET).is_dir():
        places = Places.of_out(folder)
        return _on_disk(History.load(places), what, places.assets / SUBSET)
    if (folder / LEDGER).is_file():
        return _on_disk(history, what, folder)
    telling, version = _version(history, what)
    return Side(what, _ledger(telling.places, version, say), tuple(telling.chain(version)))


def difference(a: Side, b: Side, *, n_examples: int) -> Difference:
    """Compare two sides, with at most `n_examples` tiles that entered and as many that left.

    Raises:
        RunError: a ledger cannot be read, or the temporary folder is full.
    """
    comparison = compare_ledgers(a.ledger, b.ledger)
    entered, left = (
        changed_tiles(a.ledger, b.ledger, comparison.clusters, change, n_examples) for change in (ENTERED, LEFT)
    )
    return Difference(
        a,
        b,
        params=_differing(a.params(), b.params()),
        upstream=_differing(a.upstream(), b.upstream()),
        code=_differing(a.code(), b.code()),
        comparison=comparison,
        entered=tuple(entered),
        left=tuple(left),
    )


def _on_disk(history: History, what: str, folder: Path) -> Side:
    if not (folder / LEDGER).is_file():
        raise UsageError(f"{what}: there is no {folder / LEDGER}; materialize {SUBSET} first, or name a version")
    version = history.version(SUBSET, tree_of(folder).digest)
    return Side(what, folder / LEDGER, tuple(history.chain(version)))


def _version(history: History, what: str) -> tuple[History, Version]:
    """The version, and the history that tells its chain as `what` means it."""
    project = history.places.project
    known = len(what) >= SHORTEST and any(v.data_version.startswith(what.lower()) for v in history.of(SUBSET))
    if known or project is None:
        version = find_one(history, what)
    else:
        history, version = _at_revision(history, project, what)
    if version.asset != SUBSET:
        raise UsageError(f"{what} is a version of {version.asset}; give one of {SUBSET}")
    return history, version


def _at_revision(history: History, project: DvcProject, what: str) -> tuple[History, Version]:
    try:
        stages = project.lock_at(what)
    except RunError:
        try:
            return history, find_one(history, what)
        except UsageError as error:
            raise UsageError(f"{error}; and git knows no such revision") from error
    if not (data_version := version_in(stages, SUBSET)):
        raise UsageError(f"dvc.lock at {what} holds no {SUBSET}")
    then = history.at(stages)
    return then, then.version(SUBSET, data_version)


def _ledger(places: Places, version: Version, say: Say) -> Path:
    """decisions.parquet as it lies in DVC's cache."""
    cache = places.cache
    if cache is None:
        raise UsageError(f"{places.assets.parent} is no DVC project: give folders that a `rsprune prune --out` wrote")
    if cache.tree(version.data_version) is None:
        make_whole(places, cache, [version], say)
    tree = cache.tree(version.data_version)
    assert tree is not None, "make_whole() brought it"
    md5 = next((entry.md5 for entry in tree.entries if entry.relpath == LEDGER), "")
    if not md5:
        raise UsageError(f"{version.data_version} holds no {LEDGER}: give a version of {SUBSET}")
    return cache.path(md5)


def _differing(a: Mapping[str, object], b: Mapping[str, object]) -> tuple[tuple[str, object, object], ...]:
    names = sorted(a.keys() | b.keys())
    return tuple((name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name))
