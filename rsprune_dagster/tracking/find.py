"""From what a person names to the versions that are meant: an asset, a hash, a run, a file or folder, a revision."""

import difflib
import re
from collections.abc import Set
from pathlib import Path

from rsprune_dagster.tracking.champion_origin import champion
from rsprune_dagster.tracking.content import md5_of, tree_of
from rsprune_dagster.tracking.dvc_lock import version_in
from rsprune_dagster.tracking.version_history import Version, VersionHistory
from rsprune_dagster.utils.errors import UsageError

SHORTEST = 6
"""Letters of a hash or run id that are taken for one."""


def find(history: VersionHistory, what: str) -> list[Version]:
    """The versions meant: several for a run, else one.

    Args:
        what: an asset, `champion`, ASSET@REVISION, a path, or a hash or Dagster run id, or six or more letters of its
            beginning.

    Raises:
        UsageError: nothing is called so, or several things are.
    """
    for look in (_by_name, _by_revision, _by_path, _by_hash, _by_run):
        if found := look(history, what):
            return found
    raise UsageError(f"nothing is called {what}: {_looked_through(history)}{_near(history, what)}")


def find_one(history: VersionHistory, what: str) -> Version:
    """The one version meant.

    Raises:
        UsageError: as `find`; or a run, which made several.
    """
    found = find(history, what)
    if len(found) > 1:
        names = ", ".join(f"{version.asset} {version.data_version[:8]}" for version in found)
        raise UsageError(f"{what} is a run that made {len(found)} versions: give the hash of one of {names}")
    return found[0]


def _by_name(history: VersionHistory, what: str) -> list[Version]:
    """The champion, or an asset's present version: on disk, else in dvc.lock, else the newest in the run log."""
    if what == "champion":
        return [champion(history)]
    if what not in history.assets():
        return []
    if present := history.present(what) or history.locked(what):
        return [history.version(what, present)]
    return sorted(history.of(what), key=_when)[-1:]


def _by_revision(history: VersionHistory, what: str) -> list[Version]:
    asset, at, revision = what.partition("@")
    if not (at and history.places.project and asset in history.assets()):
        return []
    stages = history.places.project.lock_at(revision)
    if data_version := version_in(stages, asset):
        return [history.at(stages).version(asset, data_version)]
    raise UsageError(f"dvc.lock at {revision} holds no {asset}; it holds {', '.join(stages) or 'nothing'}")


def _by_path(history: VersionHistory, what: str) -> list[Version]:
    """A folder by its content; a file, or a folder within a version, by the first version that holds it."""
    path = Path(what)
    if not path.exists():
        return []
    tree = tree_of(path) if path.is_dir() else None
    content = tree.digest if tree else md5_of(path)
    if tree and (whole := _only_one(what, _with_hash(history, content))):
        return whole
    files = {entry.md5 for entry in tree.entries} if tree else {content}
    shared = [(version, len(files & _contents(history, version))) for version in history.versions.values()]
    if holders := [version for version, n_shared in shared if n_shared == len(files) > 0]:
        return [min(holders, key=_when)]
    nearest, n_shared = max(shared, key=lambda each: each[1], default=(None, 0))
    near = ""
    if nearest and n_shared:
        of = f"{nearest.asset} {nearest.data_version}"
        near = f"; {n_shared} of its {len(files)} different files are those of {of}"
    raise UsageError(f"{what} has the content {content}, which is no known version: {_looked_through(history)}{near}")


def _by_hash(history: VersionHistory, what: str) -> list[Version]:
    prefix = what.lower().removesuffix(".dir")
    is_hash = re.fullmatch(rf"[0-9a-f]{{{SHORTEST},32}}", prefix)
    return _only_one(what, _with_hash(history, prefix)) if is_hash else []


def _by_run(history: VersionHistory, what: str) -> list[Version]:
    if not re.fullmatch(rf"[\w.-]{{{SHORTEST},}}", what):
        return []
    records = [record for record in history.records() if record.run_id.startswith(what)]
    records = records or history.places.elsewhere.records(run_id=what) or []
    runs = sorted({record.run_id for record in records})
    if len(runs) > 1:
        raise UsageError(f"{what} is the beginning of {len(runs)} runs: {', '.join(runs[:3])}; give more of it")
    keys = {(record.asset, record.data_version): record for record in sorted(records, key=lambda r: -r.started_at)}
    return [history.versions.get(key, Version(*key).made_by([record])) for key, record in keys.items()]


def _with_hash(history: VersionHistory, prefix: str) -> list[Version]:
    if found := [version for key, version in history.versions.items() if key[1].startswith(prefix)]:
        return found
    records = history.places.elsewhere.records(data_version=prefix) or []
    return [history.version(*key) for key in sorted({(record.asset, record.data_version) for record in records})]


def _only_one(what: str, found: list[Version]) -> list[Version]:
    if len(found) > 1:
        names = ", ".join(f"{version.asset} {version.data_version}" for version in found[:3])
        raise UsageError(f"{what} is {len(found)} versions: {names}; give more of the hash")
    return found


def _contents(history: VersionHistory, version: Version) -> Set[str]:
    """The md5s of a version's files; none where it is not in DVC's cache."""
    cache = history.places.cache
    return set(cache.files(version.data_version).values()) if cache else set()


def _when(version: Version) -> float:
    return version.maker.started_at if version.maker else 0.0


def _looked_through(history: VersionHistory) -> str:
    hashes = {data_version for _, data_version in history.versions}
    runs = {record.run_id for record in history.records()}
    places = f"looked through {len(history.assets())} assets, {len(hashes)} hashes, {len(runs)} runs"
    if history.places.project:
        places += f", dvc.lock in {history.n_commits} commits"
    trouble = history.places.elsewhere.trouble
    return f"{places} and the paths here" + (f" (MLflow does not answer: {trouble[0]})" if trouble else "")


def _near(history: VersionHistory, what: str) -> str:
    ids = {data_version for _, data_version in history.versions} | {record.run_id for record in history.records()}
    known = [*history.assets(), *{each[: max(len(what), SHORTEST)] for each in ids}]
    near = difflib.get_close_matches(what, known, n=3, cutoff=0.7)
    return f"; near: {', '.join(near)}" if near else ""
