"""Whether each place that knows an asset's version agrees with what lies on disk, read again in full."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rsprune_dagster.errors import UsageError
from rsprune_dagster.lineage.dagster_events import versions_told
from rsprune_dagster.lineage.damage import changed_files, damages
from rsprune_dagster.lineage.history import History, Version
from rsprune_dagster.lineage.text import table
from rsprune_dagster.params import suggest
from rsprune_dagster.resources.journal import is_alive

SAME, UNKNOWN = "same", "-"
"""Cells of the table: the place agrees; it is not at hand or does not know the asset."""

PLACES = ("disk", "dvc.lock", "journal", "Dagster", "MLflow", "cache", "inputs")

_SHORT = 8


@dataclass(frozen=True)
class Cell:
    """What a place says of an asset, and the sentence on it where it does not match; empty where it does."""

    text: str
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    """A row of the table."""

    asset: str
    cells: Mapping[str, Cell]

    @property
    def problems(self) -> list[str]:
        return [f"{self.asset}: {cell.problem}" for cell in self.cells.values() if cell.problem]


def verify(history: History, assets: Sequence[str] = ()) -> list[Verdict]:
    """Compare every place, asset by asset; of all assets where none are named.

    Raises:
        UsageError: an asset is not known.
    """
    known = history.assets()
    for asset in assets:
        if asset not in known:
            raise UsageError(f"no asset is called {asset}{suggest(asset, tuple(known))}; there are {', '.join(known)}")
    present = {asset: history.present(asset, in_full=True) for asset in known}
    told = versions_told(history.places.dagster_home, known)
    return [_verdict(history, asset, present, told) for asset in assets or _in_flow(history, present)]


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """A row an asset, a column a place."""
    return table(
        ("asset", *PLACES), [[verdict.asset, *(verdict.cells[name].text for name in PLACES)] for verdict in verdicts]
    )


def verdict_values(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    """The same as plain JSON values."""
    return [
        {
            "asset": verdict.asset,
            **{name: cell.text for name, cell in verdict.cells.items()},
            "problems": verdict.problems,
        }
        for verdict in verdicts
    ]


def _in_flow(history: History, present: Mapping[str, str]) -> list[str]:
    """The assets, each after what it was made from."""
    chain = history.chain(*(history.version(asset, digest) for asset, digest in present.items()))
    return list(dict.fromkeys(version.asset for version in reversed(chain) if version.asset in present))


def _verdict(history: History, asset: str, present: Mapping[str, str], told: Mapping[str, str]) -> Verdict:
    digest = present[asset]
    if not digest:
        gone = {name: Cell(UNKNOWN) for name in PLACES}
        return Verdict(asset, {**gone, "disk": _nothing_on_disk(history, asset)})
    version = history.version(asset, digest)
    cells = {
        "disk": Cell(digest[:_SHORT]),
        "dvc.lock": _in_lock(history, version),
        "journal": _in_journal(history, version),
        "Dagster": _in_dagster(version, told),
        "MLflow": _in_mlflow(history, version),
        "cache": _in_cache(history, version),
        "inputs": _inputs(version, present),
    }
    return Verdict(asset, cells)


def _nothing_on_disk(history: History, asset: str) -> Cell:
    locked = next((version.data_version for version in history.of(asset) if version.locked), "")
    if not locked:
        return Cell(UNKNOWN)
    return Cell(
        "nothing", f"dvc.lock holds {locked[:_SHORT]}, but there is no folder: `rsprune restore {locked}` or `dvc pull`"
    )


def _in_lock(history: History, version: Version) -> Cell:
    if history.places.project is None:
        return Cell(UNKNOWN)
    if version.locked:
        return Cell(SAME)
    locked = next((other.data_version for other in history.of(version.asset) if other.locked), "")
    if version.maker:
        why = version.maker.versioned_note or "the run that made it did not record it"
        way = "`dvc repro` makes what params.yaml asks for"
    else:
        why = _changed(history, locked, version.asset) or "no materialization made what lies on disk"
        way = f"`rsprune restore {locked}` brings the recorded version back" if locked else "materialize it"
    holds = f"dvc.lock holds {locked[:_SHORT]}" if locked else "dvc.lock holds no version"
    return Cell(locked[:_SHORT] or "none", f"{holds}, on disk is {version.data_version[:_SHORT]}: {why}. {way}")


def _in_journal(history: History, version: Version) -> Cell:
    """The newest record, or an older one where an older version was brought back."""
    written = [record for record in history.records() if record.asset == version.asset and record.data_version]
    if not written:
        return Cell(UNKNOWN)
    newest = max(written, key=lambda record: record.started_at)
    if newest.status == "RUNNING" and not is_alive(newest.process):
        return Cell("cut short", f"run {newest.run_id} was cut short before it was recorded: the next run settles it")
    if newest.data_version == version.data_version:
        return Cell(SAME)
    if version.is_told:
        return Cell("older")
    why = _changed(history, newest.data_version, version.asset) or "no materialization made what lies on disk"
    way = f"`rsprune restore {newest.data_version}`, or materialize it"
    return Cell(newest.data_version[:_SHORT], f"the journal's newest is {newest.data_version[:_SHORT]}: {why}. {way}")


def _in_dagster(version: Version, told: Mapping[str, str]) -> Cell:
    digest = told.get(version.asset, "")
    if not digest:
        return Cell(UNKNOWN)
    if digest == version.data_version:
        return Cell(SAME)
    way = f"`rsprune restore --only {version.data_version}` tells it" if version.is_told else "materialize it"
    return Cell(digest[:_SHORT], f"Dagster knows {digest[:_SHORT]}, on disk is {version.data_version[:_SHORT]}: {way}")


def _in_mlflow(history: History, version: Version) -> Cell:
    records = history.places.elsewhere.records(data_version=version.data_version, asset=version.asset)
    if records:
        return Cell(SAME)
    if records is None or not any(record.status == "FINISHED" for record in version.records):
        return Cell(UNKNOWN)
    return Cell("none", "MLflow has no record of it: the next run copies what the journal holds")


def _in_cache(history: History, version: Version) -> Cell:
    """The version on disk, and where nothing is known of that, the one that dvc.lock holds."""
    cache = history.places.cache
    if cache is None:
        return Cell(UNKNOWN)
    locked = next((other.data_version for other in history.of(version.asset) if other.locked), "")
    digest = version.data_version if version.is_told or not locked else locked
    found = damages(cache, digest)
    if not found:
        return Cell("whole")
    what = "damaged" if not all(damage.is_missing for damage in found) else "missing"
    files = ", ".join(str(damage) for damage in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return Cell(what, f"DVC's cache has {digest[:_SHORT]} not whole: {files}. {_mend(version, digest)}")


def _mend(version: Version, digest: str) -> str:
    source = "from disk" if digest == version.data_version else "from the DVC remote"
    return f"`rsprune restore --only {digest}` mends it {source}"


def _inputs(version: Version, present: Mapping[str, str]) -> Cell:
    """Stale unless one of the materializations of this version read what lies there now."""
    differing = [_differing(inputs, present) for inputs in version.all_inputs or [version.inputs]]
    if not version.is_told:
        return Cell(UNKNOWN)
    if not all(differing):
        return Cell(SAME)
    names = ", ".join(
        f"{name} {hashed[:_SHORT]} (now {present.get(name, '')[:_SHORT] or 'gone'})"
        for name, hashed in differing[0].items()
    )
    return Cell("stale", f"it was made from {names}: materialize it anew, or `rsprune restore {version.data_version}`")


def _differing(inputs: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
    return {name: hashed for name, hashed in sorted(inputs.items()) if present.get(name, "") != hashed}


def _changed(history: History, digest: str, asset: str) -> str:
    """Which files differ from a kept version; empty where that cannot be told."""
    cache = history.places.cache
    if cache is None or not digest or not cache.path(digest).exists():
        return ""
    try:
        files = list(changed_files(cache, digest, history.places.assets / asset))
    except (ValueError, KeyError, TypeError):
        return ""  # the listing itself is damaged, which the cache's column says
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
