"""From what a person names to the versions that are meant: an asset, a hash, a run, a file or folder, a revision."""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from rsprune_dagster.errors import UsageError
from rsprune_dagster.lineage.champion import champion
from rsprune_dagster.lineage.history import History, Version, made_of
from rsprune_dagster.resources.content import tree_of
from rsprune_dagster.resources.dvc_lock import version_in

SHORTEST = 6
"""Letters of a hash or run id that are taken for one."""
CHAMPION = "champion"


def find(history: History, what: str) -> list[Version]:
    """The versions meant: several for a run, else one.

    Args:
        what: an asset, `champion`, ASSET@REVISION, a path, or a hash or Dagster run id, or six or more letters of its
            beginning.

    Raises:
        UsageError: nothing is called so, or several things are.
    """
    for look in _LOOKS:
        if found := look(history, what):
            return found
    raise UsageError(f"nothing is called {what}: {_looked_through(history)}{_near(history, what)}")


def find_one(history: History, what: str) -> Version:
    """The one version meant.

    Raises:
        UsageError: as `find`; or a run, which made several.
    """
    found = find(history, what)
    if len(found) > 1:
        names = ", ".join(f"{version.asset} {version.data_version[:8]}" for version in found)
        raise UsageError(f"{what} is a run that made {len(found)} versions: give the hash of one of {names}")
    return found[0]


def _by_asset(history: History, what: str) -> list[Version]:
    """The present version: on disk, else in dvc.lock, else the newest in the journal."""
    if what not in history.assets():
        return []
    if present := history.present(what):
        return [history.version(what, present)]
    versions = list(history.of(what))
    locked = [version for version in versions if version.locked]
    newest = sorted((version for version in versions if version.maker), key=_when)
    return (locked or newest[-1:] or versions)[:1]


def _by_champion(history: History, what: str) -> list[Version]:
    return [champion(history)] if what == CHAMPION else []


def _by_revision(history: History, what: str) -> list[Version]:
    asset, at, revision = what.partition("@")
    if not (at and history.places.project and asset in history.assets()):
        return []
    stages = history.places.project.lock_at(revision)
    if data_version := version_in(stages, asset):
        return [history.at(stages).version(asset, data_version)]
    raise UsageError(f"dvc.lock at {revision} holds no {asset}; it holds {', '.join(stages) or 'nothing'}")


def _by_path(history: History, what: str) -> list[Version]:
    """A folder by its content; a file, or a folder within a version, by the first version that holds it."""
    path = Path(what)
    if not path.exists():
        return []
    tree = tree_of(path) if path.is_dir() else None
    content = tree.digest if tree else _md5(path)
    files = {entry.md5 for entry in tree.entries} if tree else {content}
    whole = _one(what, _with_hash(history, content)) if tree else []
    if not (found := whole or _holders(history, files)):
        near = _nearest(history, files)
        raise UsageError(
            f"{what} has the content {content}, which is no known version: {_looked_through(history)}{near}"
        )
    return found


def _by_hash(history: History, what: str) -> list[Version]:
    prefix = what.lower().removesuffix(".dir")
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST},32}}", prefix):
        return []
    return _one(what, _with_hash(history, prefix))


def _by_run(history: History, what: str) -> list[Version]:
    if len(what) < SHORTEST or not re.fullmatch(r"[\w.-]+", what):
        return []
    records = [record for record in history.records() if record.run_id.startswith(what)]
    records = records or history.places.elsewhere.records(run_id=what) or []
    runs = sorted({record.run_id for record in records})
    if len(runs) > 1:
        raise UsageError(f"{what} is the beginning of {len(runs)} runs: {', '.join(runs[:3])}; give more of it")
    ordered = sorted(records, key=lambda record: -record.started_at)
    return [history.versions.get((record.asset, record.data_version), made_of(record)) for record in ordered]


_LOOKS: tuple[Callable[[History, str], list[Version]], ...] = (
    _by_asset,
    _by_champion,
    _by_revision,
    _by_path,
    _by_hash,
    _by_run,
)


def _with_hash(history: History, prefix: str) -> list[Version]:
    found = [version for key, version in history.versions.items() if key[1].startswith(prefix)]
    if found:
        return found
    records = history.places.elsewhere.records(data_version=prefix) or []
    return [
        history.version(asset, data_version)
        for asset, data_version in sorted({(record.asset, record.data_version) for record in records})
    ]


def _one(what: str, found: list[Version]) -> list[Version]:
    if len(found) > 1:
        names = ", ".join(f"{version.asset} {version.data_version}" for version in found[:3])
        raise UsageError(f"{what} is {len(found)} versions: {names}; give more of the hash")
    return found


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _holders(history: History, files: Set[str]) -> list[Version]:
    """The first version that holds files of all these contents."""
    holders = [version for version in history.versions.values() if files and files <= _contents(history, version)]
    return sorted(holders, key=_when)[:1]


def _nearest(history: History, files: Set[str]) -> str:
    """What is said of a folder that was changed since it was a version, as a download is by a file that came along."""
    shared = {key: len(files & _contents(history, version)) for key, version in history.versions.items()}
    (asset, data_version), n_shared = max(shared.items(), key=lambda item: item[1], default=(("", ""), 0))
    if not n_shared:
        return ""
    return f"; {n_shared} of its {len(files)} different files are those of {asset} {data_version}"


def _contents(history: History, version: Version) -> Set[str]:
    """The md5s of a version's files, by its listing in DVC's cache; none where there is none."""
    cache = history.places.cache
    try:
        return {row["md5"] for row in json.loads(cache.path(version.data_version).read_text())} if cache else set()
    except (OSError, ValueError):
        return set()


def _when(version: Version) -> float:
    return version.maker.started_at if version.maker else 0.0


def _looked_through(history: History) -> str:
    hashes = {data_version for _, data_version in history.versions}
    runs = {record.run_id for record in history.records()}
    places = f"looked through {len(history.assets())} assets, {len(hashes)} hashes, {len(runs)} runs"
    if history.places.project:
        places += f", dvc.lock in {history.n_commits} commits"
    trouble = history.places.elsewhere.trouble
    return f"{places} and the paths here" + (f" (MLflow does not answer: {trouble[0]})" if trouble else "")


def _near(history: History, what: str) -> str:
    hashes = (data_version for _, data_version in history.versions)
    known = [*history.assets(), *_beginnings(hashes, what), *_beginnings((r.run_id for r in history.records()), what)]
    near = difflib.get_close_matches(what, known, n=3, cutoff=0.7)
    return f"; near: {', '.join(near)}" if near else ""


def _beginnings(ids: Iterable[str], what: str) -> set[str]:
    return {each[: max(len(what), SHORTEST)] for each in ids}
