"""A version brought back: into a folder of its own, or into its asset's place together with what it was made from.

The order makes a killed restore harmless: first everything is in the cache, then the folders take their places one by
one, then dvc.lock is written, then Dagster is told. Each step finds what is done already, so a rerun completes it.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from rsprune_dagster.errors import RunError, UsageError
from rsprune_dagster.lineage.dagster_events import tell_restored, versions_told
from rsprune_dagster.lineage.history import History, Version
from rsprune_dagster.lineage.kept import Say, make_whole
from rsprune_dagster.lineage.locks import params_of
from rsprune_dagster.lineage.places import Places
from rsprune_dagster.resources.asset_store import AssetStore
from rsprune_dagster.resources.content import tree_of
from rsprune_dagster.resources.dvc_cache import DvcCache
from rsprune_dagster.resources.dvc_lock import Stage
from rsprune_dagster.resources.journal import is_alive


@dataclass(frozen=True)
class Restored:
    """What a restore changed; all empty where everything was in place."""

    placed: tuple[Version, ...]
    """Versions that took their assets' places."""
    locked: tuple[str, ...]
    """Assets whose entry in dvc.lock changed."""
    not_locked: tuple[str, ...]
    """Assets of which no entry for dvc.lock is known."""
    told: tuple[str, ...]
    """Assets of which Dagster was told."""
    departs: Mapping[str, tuple[object, object]]
    """Parameters that params.yaml says otherwise: what the versions were made with, and what it says."""


def restore_to(places: Places, version: Version, target: Path, say: Say) -> None:
    """Copy a version into a new folder. The copies share nothing with the cache: they may be written to.

    Raises:
        UsageError: `target` holds something already.
        RunError: the version cannot be had, or the disk is full.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder: name a new one")
    cache = _cache(places)
    make_whole(places, cache, [version], say)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        _copy(cache, version.data_version, staging)
        os.rename(staging, target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}; free some space, then run again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def restore(history: History, version: Version, *, only: bool, say: Say) -> Restored:
    """Put a version, and unless `only` all that it was made from, into its place.

    What stood there is kept in the cache first.

    Raises:
        RunError: a version cannot be had, the disk is full, a run is at work, or another process holds DVC's lock.
    """
    places, cache = history.places, _cache(history.places)
    _check_idle(history)
    wanted = [version] if only else _one_of_each(history.chain(version), version)
    make_whole(places, cache, wanted, say)
    placed = tuple(each for each in wanted if place(places, cache, each, say))
    entries = {each.asset: each.stage for each in wanted if each.stage}
    locked = _write_lock(places, entries, say)
    told = _tell(places, wanted)
    not_locked = tuple(each.asset for each in wanted if not each.stage)
    return Restored(placed, locked, not_locked, told, _departures(places, wanted))


def _check_idle(history: History) -> None:
    for record in history.records():
        if record.status == "RUNNING" and is_alive(record.process):
            raise RunError(f"run {record.run_id} is making {record.asset} now: let it end, or cancel it, then restore")
    AssetStore(history.places.assets, history.places.assets).remove_drafts()


def _departures(places: Places, versions: Sequence[Version]) -> dict[str, tuple[object, object]]:
    path = places.assets.parent / "params.yaml"
    asked = params_of({"params": {"params.yaml": yaml.safe_load(path.read_text())}}) if path.is_file() else {}
    made = {name: value for version in versions for name, value in version.params.items()}
    return {name: (made[name], asked[name]) for name in sorted(made) if made[name] != asked.get(name, made[name])}


def _cache(places: Places) -> DvcCache:
    if places.cache is None:
        raise UsageError(
            f"{places.assets.parent} is no DVC project, and only those keep versions: run it in the folder of dvc.yaml"
        )
    return places.cache


def _one_of_each(chain: Sequence[Version], version: Version) -> list[Version]:
    """Upstream first. Where the chain went over two versions of an asset, the one that `version` itself read."""
    chosen: dict[str, Version] = {}
    for each in chain:
        direct = version.inputs.get(each.asset) == each.data_version
        if direct or each.asset not in chosen:
            chosen[each.asset] = each
    return [each for each in reversed(chain) if chosen[each.asset] is each]


def place(places: Places, cache: DvcCache, version: Version, say: Say) -> bool:
    """Exchange the asset's folder for the version; false where it lies there already."""
    folder = places.assets / version.asset
    if folder.is_dir():
        tree = tree_of(folder)
        if tree.digest == version.data_version:
            return False
        if cache.tree(tree.digest) is None:
            cache.keep(folder, tree)
            say(f"{version.asset} as it was is kept as {tree.digest}")
    with AssetStore(places.assets, places.assets).replace(version.asset) as staging:
        cache.place(version.data_version, staging)
    return True


def _write_lock(places: Places, entries: Mapping[str, Stage], say: Say) -> tuple[str, ...]:
    if places.project is None:
        return ()
    now = places.project.lock()
    changed = {asset: entry for asset, entry in entries.items() if now.get(asset) != entry}
    if changed:
        places.project.record(changed, say)
    return tuple(changed)


def _tell(places: Places, versions: Sequence[Version]) -> tuple[str, ...]:
    if places.dagster_home is None:
        return ()
    told = versions_told(places.dagster_home, [version.asset for version in versions])
    new = [version for version in versions if told.get(version.asset) != version.data_version]
    tell_restored(places.dagster_home, new)
    return tuple(version.asset for version in new)


def _copy(cache: DvcCache, digest: str, folder: Path) -> None:
    """Copies, checked as they are read."""
    tree = cache.tree(digest)
    assert tree is not None, "make_whole() brought it"
    folder.mkdir(parents=True)
    for entry in tree.entries:
        target = folder / entry.relpath
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cache.path(entry.md5), target)
        with target.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != entry.md5:
                raise RunError(f"{cache.path(entry.md5)} changed while it was copied: run again")
