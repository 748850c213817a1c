"""Explain in sentences why a tile was kept or dropped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import suggest
from rsprune_dagster.corpus.tables import query
from rsprune_dagster.pruning.assignment import reference_column
from rsprune_dagster.pruning.encoders.vectors import open_vectors
from rsprune_dagster.utils.errors import UsageError
from rsprune_dagster.utils.terminal import printable

_SHOWN_NEAR = 5


def explain_tile(layout: Layout, tile_id: str) -> str:
    """The decision on a tile and its reasons.

    Raises:
        UsageError: unknown tile id; names similar ids.
    """
    decision = _row(layout.file("decisions"), tile_id)
    if decision is None:
        raise UsageError(f"{tile_id} is not among the tiles seen{_similar(layout, tile_id)}")
    lines = [
        f"{tile_id}: {decision['decision'].replace('_', ' ')}",
        f"  {decision['reason']}",
        f"  bytes in {decision['uri']}",
    ]
    score = _row(layout.file("scores"), tile_id)
    if score:
        lines.append(
            f"  entropy {score['entropy_bits']:.2f} bits, {score['patch_entropy_bits']:.2f} on average over its patches"
        )
    if decision["scene"] is not None:
        lines += _guess(layout, decision)
        lines += _in_its_cluster(layout, decision)
    return "\n".join(printable(line) for line in lines)


def _guess(layout: Layout, decision: Mapping[str, Any]) -> list[str]:
    """The likeliest reference scene of a tile of a foreign pool; empty if its scene is one of the reference."""
    assignment = layout.file("assignment")
    found = pq.read_table(assignment, filters=[("content_md5", "=", decision["content_md5"])]).to_pylist()
    guess = found[0][reference_column(assignment)]
    if guess == decision["scene"]:
        return []
    return [f"  likeliest scene of the reference: {guess}, a guess, as the pool is foreign to the reference"]


def _in_its_cluster(layout: Layout, decision: Mapping[str, Any]) -> list[str]:
    sql = """
        SELECT count(*) AS n, count(*) FILTER (decision = 'kept') AS n_kept FROM decisions
        WHERE scene = '{scene}' AND cluster_id = {cluster_id} AND decision IN ('kept', 'unselected')
    """.format(scene=decision["scene"].replace("'", "''"), cluster_id=decision["cluster_id"])
    with query(sql, layout.tables("decisions")) as batches:
        counts = batches.read_all().to_pylist()[0]
    place = f"  scene {decision['scene']}, cluster {decision['cluster_id']}"
    place += f": {counts['n_kept']} of its {counts['n']} candidates are kept"
    return [place, *_nearest_kept(layout, decision)]


def _nearest_kept(layout: Layout, decision: Mapping[str, Any]) -> list[str]:
    """The most similar kept tiles of its cluster, or of its scene if the cluster has none."""
    scene = decision["scene"].replace("'", "''")
    groups = {"cluster": f"cluster_id = {decision['cluster_id']}", "scene": f"scene = '{scene}'"}
    for name, condition in groups.items():
        if near := _nearest_of(layout, decision["content_md5"], condition):
            return [f"  nearest kept tiles of its {name}:", *near]
    return ["  no other tile of its scene is kept"]


def _nearest_of(layout: Layout, content_md5: str, condition: str) -> list[str]:
    n_kept = pq.ParquetFile(layout.file("subset")).metadata.num_rows
    sql = f"""
        SELECT * FROM (SELECT row_number() OVER (ORDER BY content_md5, tile_id) - 1 AS row, * FROM ranking)
        WHERE content_md5 = '{content_md5}' OR (rank <= {n_kept} AND {condition}) ORDER BY row
    """
    with query(sql, layout.tables("ranking")) as batches:
        near = batches.read_all().to_pylist()
    vectors = open_vectors(layout.file("vectors")).read_rows(np.array([row["row"] for row in near]))
    own = next(index for index, row in enumerate(near) if row["content_md5"] == content_md5)
    cosines = vectors @ vectors[own]
    order = [index for index in np.argsort(-cosines, kind="stable") if index != own][:_SHOWN_NEAR]
    return [f"    {near[index]['tile_id']} (cosine {cosines[index]:.3f})" for index in order]


def _row(table: Path, tile_id: str) -> dict[str, Any] | None:
    found = pq.read_table(table, filters=[("tile_id", "=", tile_id)]).to_pylist()
    return found[0] if found else None


def _similar(layout: Layout, tile_id: str) -> str:
    sql = f"""
        SELECT tile_id FROM decisions ORDER BY levenshtein(tile_id, '{tile_id.replace("'", "''")}'), tile_id LIMIT 3
    """
    with query(sql, layout.tables("decisions")) as batches:
        known = tuple(batches.read_all().column(0).to_pylist())
    return suggest(tile_id, known) or f"; ids look like {known[0]}"
