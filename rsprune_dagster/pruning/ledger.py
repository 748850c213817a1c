"""The ledger: one row per tile of the corpus, with the decision and the reason in a sentence."""

import json
import math
from pathlib import Path
from typing import Final

import pyarrow as pa

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.corpus.tables import query, write_query
from rsprune_dagster.corpus.tiles import FACTS, LOCATION

SCENE_DOC: Final = (
    "stratum: a scene of the reference; a cluster where the pool is foreign to it; pool where there is none"
)

DECISIONS = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False, metadata={"doc": "path relative to the corpus"}),
        pa.field("uri", pa.string(), nullable=False, metadata={"doc": "what holds the bytes"}),
        pa.field("content_md5", pa.string(), metadata={"doc": "null where the bytes could not be read"}),
        pa.field("entropy_bits", pa.float32(), metadata={"doc": "0 to 8; null where quarantined"}),
        pa.field("scene", pa.string(), metadata={"doc": "stratum; null where the tile was never embedded"}),
        pa.field("cluster_id", pa.int32(), metadata={"doc": "null where the tile was never embedded"}),
        pa.field("rank", pa.int64(), metadata={"doc": "1 is best; null unless kept"}),
        pa.field(
            "decision",
            pa.string(),
            nullable=False,
            metadata={"doc": "kept, low_information, duplicate, unselected, quarantined"},
        ),
        pa.field("reason", pa.string(), nullable=False, metadata={"doc": "a sentence"}),
    ]
)

RANKING = pa.schema(
    [
        pa.field("content_md5", pa.string(), nullable=False),
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("scene", pa.string(), nullable=False, metadata={"doc": SCENE_DOC}),
        pa.field("cluster_id", pa.int32(), nullable=False, metadata={"doc": "nearest centroid of scene_clusters"}),
        pa.field("rank", pa.int64(), metadata={"doc": "1 is best; null: a near-duplicate, or not ordered"}),
        pa.field("near_copy_of", pa.string(), metadata={"doc": "the tile that stands for this near-duplicate"}),
    ]
)
"""All candidates of the selection, in content order. A keep fraction is a prefix of `rank`."""

_SCANNED = ("width_px", "height_px", "n_bands", "dtype", "crs", "lon", "lat", "gsd_m", "scale_low", "scale_high")

SUBSET = pa.schema(
    [
        pa.field("rank", pa.int64(), nullable=False, metadata={"doc": "1 is best; the rows are in this order"}),
        *(LOCATION.field(name) for name in ("tile_id", "uri", "kind", "offset", "length", "x", "y", "w", "h")),
        FACTS.field("content_md5").with_nullable(False),
        pa.field("scene", pa.string(), nullable=False, metadata={"doc": SCENE_DOC}),
        pa.field("cluster_id", pa.int32(), nullable=False, metadata={"doc": "nearest centroid of scene_clusters"}),
        FACTS.field("entropy_bits").with_nullable(False),
        *(FACTS.field(name) for name in _SCANNED),
    ]
)
"""The kept tiles, best first: an index from which a training loader reads the tiles in place."""


def n_to_keep(n_readable: int, keep_fraction: float) -> int:
    """round(keep_fraction x readable tiles), halves up."""
    return math.floor(keep_fraction * n_readable + 0.5)


def write_decisions(layout: Layout, n_kept: int) -> int:
    """Write decisions.parquet by tile id; returns the number of rows, one per tile of the corpus."""
    threshold_bits = json.loads(layout.file("threshold").read_text())["threshold_bits"]
    sql = _DECISIONS_SQL.format(threshold=threshold_bits, n_kept=n_kept)
    tables = layout.tables("manifest", "quarantine", "scores", "ranking")
    return write_query(sql, tables, layout.file("decisions"), DECISIONS)


def write_subset(layout: Layout, n_kept: int) -> int:
    """Write pruned_subset.parquet, best first; returns the number of rows."""
    columns = ", ".join(_SUBSET_SOURCE.get(name, f"manifest.{name}") for name in SUBSET.names)
    joined = "ranking JOIN manifest USING (tile_id)"
    sql = f"SELECT {columns} FROM {joined} WHERE ranking.rank <= {n_kept} ORDER BY ranking.rank"
    return write_query(sql, layout.tables("ranking", "manifest"), layout.file("subset"), SUBSET)


def count_decisions(decisions: Path) -> dict[str, int]:
    """Number of tiles per decision."""
    with query(
        "SELECT decision, count(*) AS n FROM decisions GROUP BY 1 ORDER BY 1", {"decisions": decisions}
    ) as batches:
        table = batches.read_all()
    return dict(zip(table.column("decision").to_pylist(), table.column("n").to_pylist(), strict=True))


def scene_table(decisions: Path) -> pa.Table:
    """For each scene: n_tiles, n_candidates, n_clusters, n_kept; the largest first."""
    sql = """
        SELECT scene, count(*) AS n_tiles, count(*) FILTER (decision IN ('kept', 'unselected')) AS n_candidates,
               count(DISTINCT cluster_id) AS n_clusters, count(*) FILTER (decision = 'kept') AS n_kept
        FROM decisions WHERE scene IS NOT NULL GROUP BY scene ORDER BY n_tiles DESC, scene
    """
    with query(sql, {"decisions": decisions}) as batches:
        return batches.read_all()


_SUBSET_SOURCE = {name: f"ranking.{name}" for name in ("rank", "scene", "cluster_id")}

_DECISIONS_SQL = """
WITH quota AS (
    SELECT scene, count(*) FILTER (rank <= {n_kept}) AS n_kept, count(*) FILTER (near_copy_of IS NULL) AS n_candidates
    FROM ranking GROUP BY scene
), joined AS (
    SELECT manifest.tile_id, manifest.uri, manifest.content_md5, manifest.entropy_bits, scores.informative,
           scores.copy_of, ranking.scene, ranking.cluster_id, ranking.near_copy_of,
           CASE WHEN scores.copy_of IS NULL THEN ranking.rank END AS rank, quota.n_kept, quota.n_candidates
    FROM manifest JOIN scores USING (tile_id)
    LEFT JOIN ranking ON ranking.content_md5 = manifest.content_md5
    LEFT JOIN quota ON quota.scene = ranking.scene
), decided AS (
    SELECT *, CASE WHEN NOT informative THEN 'low_information'
                   WHEN copy_of IS NOT NULL OR near_copy_of IS NOT NULL THEN 'duplicate'
                   WHEN rank <= {n_kept} THEN 'kept' ELSE 'unselected' END AS decision
    FROM joined
)
SELECT tile_id, uri, content_md5, entropy_bits, scene, cluster_id,
       CASE WHEN decision = 'kept' THEN rank END AS rank, decision,
       CASE WHEN decision = 'low_information'
                THEN printf('%.2f bits of entropy, below the threshold of %.2f',
                            entropy_bits::DOUBLE, {threshold!r}::DOUBLE)
            WHEN copy_of IS NOT NULL THEN 'the same bytes as ' || copy_of
            WHEN near_copy_of IS NOT NULL THEN 'nearly the same picture as ' || near_copy_of
            WHEN decision = 'kept'
                THEN printf('rank %d of the %d kept; its scene %s keeps %d of %d',
                            rank, {n_kept}::BIGINT, scene, n_kept, n_candidates)
            WHEN rank IS NULL
                THEN printf('not among the %d chosen; its scene %s keeps %d of %d',
                            {n_kept}::BIGINT, scene, n_kept, n_candidates)
            ELSE printf('rank %d, and the first %d are kept; its scene %s keeps %d of %d',
                        rank, {n_kept}::BIGINT, scene, n_kept, n_candidates)
       END AS reason
FROM decided
UNION ALL
SELECT tile_id, uri, NULL, NULL, NULL, NULL, NULL, 'quarantined', reason FROM quarantine
ORDER BY tile_id
"""
