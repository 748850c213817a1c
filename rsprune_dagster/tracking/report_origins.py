"""The versions that lie in an asset folder, for the report."""

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.places import Places
from rsprune_dagster.tracking.version_history import VersionHistory
from rsprune_dagster.viz.origins import Origin


def origins_of(layout: Layout) -> list[Origin]:
    """The assets before the report as they lie there now, with what the run log knows of their making."""
    places = Places(layout)
    history = VersionHistory.load(places)
    origins = []
    for name in layout.present():
        tree = tree_of(layout.folder(name), memory=places.run_log.memory(name))
        version = history.version(name, tree.digest)
        code = version.maker.code_version if version.maker else ""
        origins.append(Origin(name, tree.digest, tree.n_files, tree.size_bytes, code, version.params, version.inputs))
    return origins
