"""Versions made whole in DVC's cache: what is damaged goes, what is missing comes from disk or from the remote."""

import json
from collections.abc import Callable, Sequence

from rsprune_dagster.errors import RunError
from rsprune_dagster.lineage.damage import damages
from rsprune_dagster.lineage.history import Version
from rsprune_dagster.lineage.places import Places
from rsprune_dagster.lineage.text import shown
from rsprune_dagster.resources.content import tree_of
from rsprune_dagster.resources.dvc_cache import DvcCache
from rsprune_dagster.resources.dvc_command import DvcCommand

Say = Callable[[str], object]


def make_whole(places: Places, cache: DvcCache, versions: Sequence[Version], say: Say) -> None:
    """Have every file of the versions in the cache, with the content that its name says.

    Raises:
        RunError: a version is neither there nor to be had; with how it can be made again.
    """
    lacking = [version for version in versions if not _is_whole(places, cache, version)]
    if not lacking:
        return
    why = _fetch(places, [version.data_version for version in lacking], say)
    for version in lacking:
        if damages(cache, version.data_version):
            raise RunError(
                f"{version.asset} {version.data_version} is neither in DVC's cache {cache.root} nor in a remote"
                f"{f' ({why})' if why else ''}. {how_to_make(version)}"
            )


def how_to_make(version: Version) -> str:
    """With which code, parameters and command a version can be made again."""
    record = version.maker
    commit = record.git_commit if record else (version.commits[0].commit if version.commits else "")
    if not (commit or version.params):
        return "How it was made is not known"
    dirty = " (its tracked files had been changed since)" if record and record.git_dirty else ""
    checkout = f"`git checkout {commit}`{dirty}, " if commit else ""
    values = ", ".join(f"{name} {shown(value)}" for name, value in sorted(version.params.items()))
    settings = f"params.yaml with {values}, " if values else ""
    return f"It can be made again: {checkout}{settings}then `{_command(version)}`"


def _command(version: Version) -> str:
    """What makes it: `dvc repro` does as params.yaml says, so a run that departed from that is asked for by value."""
    departures = version.maker.departures if version.maker else {}
    changes = "".join(f" --set {name}={json.dumps(version.params.get(name))}" for name in sorted(departures))
    return f"rsprune materialize {version.asset}{changes}" if changes else f"dvc repro {version.asset}"


def _is_whole(places: Places, cache: DvcCache, version: Version) -> bool:
    found = damages(cache, version.data_version)
    for damage in found:
        # a file of another content than its name says would be taken for the right one by DVC too
        damage.path.unlink(missing_ok=True)
    if not found:
        return True
    folder = places.assets / version.asset
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
