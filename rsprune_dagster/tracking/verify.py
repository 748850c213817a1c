"""Whether each place that knows an asset's version agrees with what lies on disk, read again in full."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rsprune_dagster.config.params import suggest
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dagster_events import known_versions
from rsprune_dagster.tracking.format import SHORT, format_list, format_table
from rsprune_dagster.tracking.run_log import is_alive
from rsprune_dagster.tracking.version_history import Version, VersionHistory
from rsprune_dagster.utils.errors import UsageError

PLACES = ("disk", "dvc.lock", "run_log", "Dagster", "MLflow", "cache", "inputs")


class Cell(NamedTuple):
    """What a place says of an asset, and the sentence on it where it does not match; empty where it does."""

    text: str
    problem: str = ""


SAME = Cell("same")
UNKNOWN = Cell("-")
"""The place is not at hand, or does not know the asset."""


@dataclass(frozen=True)
class Verdict:
    """A row of the table."""

    asset: str
    cells: Mapping[str, Cell]

    @property
    def problems(self) -> list[str]:
        return [f"{self.asset}: {cell.problem}" for cell in self.cells.values() if cell.problem]


def verify(history: VersionHistory, assets: Sequence[str] = ()) -> list[Verdict]:
    """Compare every place, asset by asset; of all assets where none are named.

    Raises:
        UsageError: an asset is not known.
    """
    known = history.assets()
    for asset in assets:
        if asset not in known:
            raise UsageError(f"no asset is called {asset}{suggest(asset, tuple(known))}; there are {', '.join(known)}")
    present = {asset: history.present(asset, in_full=True) for asset in known}
    in_dagster = known_versions(history.places.dagster_home, known)
    return [_verdict(history, asset, present, in_dagster) for asset in assets or _in_flow(history, present)]


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """A row an asset, a column a place."""
    rows = [[verdict.asset, *(verdict.cells[name].text for name in PLACES)] for verdict in verdicts]
    return format_table(("asset", *PLACES), rows)


def verdict_values(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    """The same as plain JSON values."""
    return [
        {"asset": each.asset, **{name: cell.text for name, cell in each.cells.items()}, "problems": each.problems}
        for each in verdicts
    ]


def _in_flow(history: VersionHistory, present: Mapping[str, str]) -> list[str]:
    """The assets, each after what it was made from."""
    chain = history.chain(*(history.version(asset, digest) for asset, digest in present.items()))
    return list(dict.fromkeys(version.asset for version in reversed(chain) if version.asset in present))


def _verdict(history: VersionHistory, asset: str, present: Mapping[str, str], in_dagster: Mapping[str, str]) -> Verdict:
    if not present[asset]:
        return Verdict(asset, {**dict.fromkeys(PLACES, UNKNOWN), "disk": _nothing_on_disk(history.locked(asset))})
    version = history.version(asset, present[asset])
    disk = Cell(version.data_version[:SHORT])
    found = (
        _in_lock(history, version),
        _in_run_log(history, version),
        _in_dagster(version, in_dagster.get(asset, "")),
        _in_mlflow(history, version),
        _in_cache(history, version),
        _inputs(version, present),
    )
    return Verdict(asset, dict(zip(PLACES, (disk, *found), strict=True)))


def _nothing_on_disk(locked: str) -> Cell:
    way = f"dvc.lock holds {locked[:SHORT]}, but there is no folder: `rsprune restore {locked}` or `dvc pull`"
    return Cell("nothing", way) if locked else UNKNOWN


def _in_lock(history: VersionHistory, version: Version) -> Cell:
    if history.places.project is None:
        return UNKNOWN
    if version.locked is not None:
        return SAME
    locked = history.locked(version.asset)
    if version.maker:
        why = version.maker.versioned_note or "the run that made it did not record it"
        way = "`dvc repro` makes what params.yaml asks for"
    else:
        why = _changed(history, locked, version.asset)
        way = f"`rsprune restore {locked}` brings the recorded version back" if locked else "materialize it"
    holds = f"dvc.lock holds {locked[:SHORT] or 'no version'}"
    return Cell(locked[:SHORT] or "none", f"{holds}, on disk is {version.data_version[:SHORT]}: {why}. {way}")


def _in_run_log(history: VersionHistory, version: Version) -> Cell:
    """The newest record, or an older one where an older version was brought back."""
    written = [record for record in history.records() if record.asset == version.asset and record.data_version]
    if not written:
        return UNKNOWN
    newest = max(written, key=lambda record: record.started_at)
    if newest.status == "RUNNING" and not is_alive(newest.process):
        return Cell("cut short", f"run {newest.run_id} was cut short before it was recorded: the next run recovers it")
    if newest.data_version == version.data_version:
        return SAME
    if version.is_known:
        return Cell("older")
    digest = newest.data_version
    why = f"{_changed(history, digest, version.asset)}. `rsprune restore {digest}`, or materialize it"
    return Cell(digest[:SHORT], f"the run log's newest is {digest[:SHORT]}: {why}")


def _in_dagster(version: Version, digest: str) -> Cell:
    if not digest:
        return UNKNOWN
    if digest == version.data_version:
        return SAME
    way = f"`rsprune restore --only {version.data_version}` tells it" if version.is_known else "materialize it"
    return Cell(digest[:SHORT], f"Dagster knows {digest[:SHORT]}, on disk is {version.data_version[:SHORT]}: {way}")


def _in_mlflow(history: VersionHistory, version: Version) -> Cell:
    records = history.places.elsewhere.records(data_version=version.data_version, asset=version.asset)
    if records:
        return SAME
    if records is None or not any(record.status == "FINISHED" for record in version.records):
        return UNKNOWN
    return Cell("none", "MLflow has no record of it: the next run copies what the run log holds")


def _in_cache(history: VersionHistory, version: Version) -> Cell:
    """The version on disk, and where nothing is known of that, the one that dvc.lock holds."""
    cache = history.places.cache
    if cache is None:
        return UNKNOWN
    digest = version.data_version if version.is_known else history.locked(version.asset) or version.data_version
    found = cache.damages(digest)
    if not found:
        return Cell("whole")
    what = "missing" if all(damage.is_missing for damage in found) else "damaged"
    source = "from disk" if digest == version.data_version else "from the DVC remote"
    mend = f"`rsprune restore --only {digest}` mends it {source}"
    return Cell(what, f"DVC's cache has {digest[:SHORT]} not whole: {format_list([*map(str, found)])}. {mend}")


def _inputs(version: Version, present: Mapping[str, str]) -> Cell:
    """Stale unless one of the materializations of this version read what lies there now."""
    if not version.is_known:
        return UNKNOWN
    differing = [{k: v for k, v in sorted(read.items()) if present.get(k, "") != v} for read in version.all_inputs]
    if not all(differing):
        return SAME
    now = {name: present.get(name, "")[:SHORT] or "gone" for name in differing[0]}
    names = ", ".join(f"{name} {hashed[:SHORT]} (now {now[name]})" for name, hashed in differing[0].items())
    return Cell("stale", f"it was made from {names}: materialize it anew, or `rsprune restore {version.data_version}`")


def _changed(history: VersionHistory, digest: str, asset: str) -> str:
    """Which files on disk differ from a kept version."""
    kept = history.places.cache.files(digest) if history.places.cache and digest else {}
    if not kept:
        return "no materialization made what lies on disk"
    present = {entry.relpath: entry.md5 for entry in tree_of(history.places.layout.folder(asset)).entries}
    differing = [name for name in sorted({**kept, **present}) if kept.get(name) != present.get(name)]
    how = {name: "has changed" if name in kept else "is new" for name in present}
    files = format_list([f"{name} {how.get(name, 'is missing')}" for name in differing])
    return files or "no materialization made what lies on disk"
