"""The versions that lie in an asset folder, as the report tells them."""

from collections.abc import Sequence
from pathlib import Path

from rsprune_dagster.report.origins import Origin
from rsprune_dagster.resources.content import tree_of
from rsprune_dagster.resources.journal import Journal, Record


def origins_of(assets: Path, journal: Journal, names: Sequence[str]) -> list[Origin]:
    """The assets `names` below `assets` as they lie there now, with what the journal knows of their making."""
    finished = [record for record in journal.records() if record.status == "FINISHED"]
    makers = {(record.asset, record.data_version): record for record in reversed(finished)}
    return [_origin(assets / name, name, journal, makers) for name in names]


def _origin(folder: Path, name: str, journal: Journal, makers: dict[tuple[str, str], Record]) -> Origin:
    tree = tree_of(folder, memory=journal.root / "content" / f"{name}.json")
    maker = makers.get((name, tree.digest))
    if maker is None:
        return Origin(name, tree.digest, tree.n_files, tree.size_bytes)
    return Origin(
        name,
        tree.digest,
        tree.n_files,
        tree.size_bytes,
        code_version=maker.code_version,
        params=maker.params,
        inputs=maker.inputs,
    )
