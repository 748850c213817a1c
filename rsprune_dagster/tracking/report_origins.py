"""The versions that lie in an asset folder, for the report."""

from collections.abc import Sequence
from pathlib import Path

from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.places import Places
from rsprune_dagster.tracking.run_log import RunLog
from rsprune_dagster.tracking.version_history import VersionHistory
from rsprune_dagster.viz.origins import Origin


def origins_of(assets: Path, run_log: RunLog, names: Sequence[str]) -> list[Origin]:
    """The assets `names` below `assets` as they lie there now, with what the run log knows of their making."""
    history = VersionHistory.load(Places(assets, run_log))
    origins = []
    for name in names:
        tree = tree_of(assets / name, memory=run_log.root / "content" / f"{name}.json")
        version = history.version(name, tree.digest)
        code = version.maker.code_version if version.maker else ""
        origins.append(Origin(name, tree.digest, tree.n_files, tree.size_bytes, code, version.params, version.inputs))
    return origins
