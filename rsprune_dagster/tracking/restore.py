"""Versions brought back: into a folder of their own, or into their assets' places with what they were made from.

The order makes a killed restore harmless: first everything is in the cache, then the folders take their places one by
one, then dvc.lock is written, then Dagster is told. Each step finds what is done already, so a rerun completes it.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from rsprune_dagster.tracking.asset_store import remove_staging, replaced
from rsprune_dagster.tracking.content import md5_of, tree_of
from rsprune_dagster.tracking.dagster_events import known_versions, report_restored
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.dvc_command import DvcCommand
from rsprune_dagster.tracking.dvc_lock import Stage
from rsprune_dagster.tracking.format import format_value
from rsprune_dagster.tracking.locks import params_of
from rsprune_dagster.tracking.places import Places
from rsprune_dagster.tracking.run_log import is_alive
from rsprune_dagster.tracking.version_history import Version, VersionHistory
from rsprune_dagster.utils.errors import RunError, UsageError

Say = Callable[[str], object]


def restore_to(places: Places, version: Version, target: Path, say: Say) -> None:
    """Copy a version into a new folder. The copies share nothing with the cache: they may be written to.

    Raises:
        UsageError: `target` holds something already.
        RunError: the version cannot be had, or the disk is full.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder: name a new one")
    ensure_cached(places, places.versions, [version], say)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        _copy(places.versions, version.data_version, staging)
        os.rename(staging, target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}; free some space, then run again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def restore(history: VersionHistory, version: Version, *, only: bool, say: Say) -> list[str]:
    """Put a version, and unless `only` all that it was made from, into its place; sentences on what was changed.

    What stood there is kept in the cache first.

    Raises:
        RunError: a version cannot be had, the disk is full, a run is at work, or another process holds DVC's lock.
    """
    places, cache = history.places, history.places.versions
    _check_idle(history)
    chosen = [version] if only else _one_of_each(history.chain(version), version)
    ensure_cached(places, cache, chosen, say)
    lines = [f"{each.asset} is {each.data_version} again" for each in chosen if place(places, cache, each, say)]
    done = {
        "dvc.lock now holds it": _write_lock(places, {each.asset: each.stage for each in chosen if each.stage}, say),
        "no entry for dvc.lock is known, so `dvc status` will tell of it": [v.asset for v in chosen if not v.stage],
        "Dagster was told": _report(places, chosen),
    }
    lines += [f"{', '.join(assets)}: {what}" for what, assets in done.items() if assets]
    lines = lines or [f"{version.asset} {version.data_version} is in place already"]
    if departures := _departures(places, chosen):
        lines.append(f"params.yaml says otherwise, so `dvc repro` would make another version: {departures}")
    return lines


def ensure_cached(places: Places, cache: DvcCache, versions: Sequence[Version], say: Say) -> None:
    """Have every file of the versions in the cache, with the content that its name says.

    What is damaged is removed; what is missing comes from the asset's folder or from the remote.

    Raises:
        RunError: a version is neither there nor to be had; with how it can be made again.
    """
    lacking = [version for version in versions if not _is_whole(places, cache, version)]
    if not lacking:
        return
    why = _fetch(places, [version.data_version for version in lacking], say)
    for version in lacking:
        if cache.damages(version.data_version):
            raise RunError(
                f"{version.asset} {version.data_version} is neither in DVC's cache {cache.root} nor in a remote"
                f"{f' ({why})' if why else ''}. {_how_to_make(version)}"
            )


def place(places: Places, cache: DvcCache, version: Version, say: Say) -> bool:
    """Exchange the asset's folder for the version; false where it lies there already."""
    layout = places.layout
    if layout.has(version.asset):
        folder = layout.folder(version.asset)
        tree = tree_of(folder)
        if tree.digest == version.data_version:
            return False
        if cache.tree(tree.digest) is None:
            cache.keep(folder, tree)
            say(f"{version.asset} as it was is kept as {tree.digest}")
    with replaced(layout, version.asset) as staging:
        cache.place(version.data_version, staging)
    return True


def _check_idle(history: VersionHistory) -> None:
    for record in history.records():
        if record.status == "RUNNING" and is_alive(record.process):
            raise RunError(f"run {record.run_id} is making {record.asset} now: let it end, or cancel it, then restore")
    remove_staging(history.places.layout)


def _one_of_each(chain: Sequence[Version], version: Version) -> list[Version]:
    """One version of each asset, upstream first; of several, the one that `version` itself read."""
    chosen: dict[str, Version] = {}
    for each in chain:
        if each.asset not in chosen or version.inputs.get(each.asset) == each.data_version:
            chosen[each.asset] = each
    return [each for each in reversed(chain) if chosen[each.asset] is each]


def _is_whole(places: Places, cache: DvcCache, version: Version) -> bool:
    found = cache.damages(version.data_version)
    for damage in found:
        # a file of another content than its name says would be taken for the right one by DVC too
        damage.path.unlink(missing_ok=True)
    if not found:
        return True
    folder = places.layout.assets / version.asset
    if not folder.is_dir() or (tree := tree_of(folder)).digest != version.data_version:
        return False
    cache.keep(folder, tree)
    return True


def _fetch(places: Places, digests: Sequence[str], say: Say) -> str:
    """Ask the remote; empty, or why that failed."""
    if places.project is None:
        return "this is no DVC project"
    say(f"fetching {len(digests)} version{'s' if len(digests) > 1 else ''} from the DVC remote")
    try:
        DvcCommand.find(places.project.root).fetch(digests)
    except RunError as error:
        return str(error)
    return ""


def _how_to_make(version: Version) -> str:
    """With which code, parameters and command a version can be made again."""
    record = version.maker
    commit = record.git_commit if record else (version.commits[0].commit if version.commits else "")
    if not (commit or version.params):
        return "How it was made is not known"
    dirty = " (its tracked files had been changed since)" if record and record.git_dirty else ""
    checkout = f"`git checkout {commit}`{dirty}, " if commit else ""
    values = ", ".join(f"{name} {format_value(value)}" for name, value in sorted(version.params.items()))
    settings = f"params.yaml with {values}, " if values else ""
    # `dvc repro` does as params.yaml says, so a run that departed from that is asked for by value
    departures = sorted(record.departures) if record else []
    changes = "".join(f" --set {name}={json.dumps(version.params.get(name))}" for name in departures)
    command = f"rsprune materialize {version.asset}{changes}" if changes else f"dvc repro {version.asset}"
    return f"It can be made again: {checkout}{settings}then `{command}`"


def _write_lock(places: Places, entries: Mapping[str, Stage], say: Say) -> list[str]:
    """Write entries into dvc.lock; the assets whose entry changed."""
    if places.project is None:
        return []
    now = places.project.lock()
    changed = {asset: entry for asset, entry in entries.items() if now.get(asset) != entry}
    if changed:
        places.project.record(changed, say)
    return list(changed)


def _report(places: Places, versions: Sequence[Version]) -> list[str]:
    """Report versions to Dagster; the assets of which it knew another one."""
    if places.dagster_home is None:
        return []
    known = known_versions(places.dagster_home, [version.asset for version in versions])
    new = [version for version in versions if known.get(version.asset) != version.data_version]
    report_restored(places.dagster_home, new)
    return [version.asset for version in new]


def _departures(places: Places, versions: Sequence[Version]) -> str:
    """Parameters that params.yaml says otherwise: what the versions were made with, and what it says."""
    path = places.layout.assets.parent / "params.yaml"
    asked = (
        params_of({"params": {"params.yaml": yaml.load(path.read_bytes(), yaml.CSafeLoader)}}) if path.is_file() else {}
    )
    made = {name: value for version in versions for name, value in version.params.items()}
    return ", ".join(
        f"{name} {format_value(made[name])} (there {format_value(asked[name])})"
        for name in sorted(made.keys() & asked.keys())
        if made[name] != asked[name]
    )


def _copy(cache: DvcCache, digest: str, folder: Path) -> None:
    """Copies, checked as they are read."""
    folder.mkdir(parents=True)
    for relpath, md5 in cache.files(digest).items():
        target = folder / relpath
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cache.path(md5), target)
        if md5_of(target) != md5:
            raise RunError(f"{cache.path(md5)} changed while it was copied: run again")
