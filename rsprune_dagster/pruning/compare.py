"""Compare two ledgers: which tiles entered the subset, which left it, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune_dagster.corpus.tables import query, write_query

ENTERED, LEFT, STAYED = "entered", "left", "stayed"

SAME_CLUSTERS_FROM = 0.9
"""Cluster numbers of two ledgers correspond if at least this share of the tiles has the same number in both."""

REASONS_LEFT = {
    "absent": "not in the corpus any more",
    "quarantined": "quarantined",
    "other_image": "another image under the same id",
    "low_information": "below the entropy threshold",
    "duplicate": "now a duplicate",
    "other_scene": "in another scene now, ranked below the cut",
    "other_cluster": "in another cluster now, ranked below the cut",
    "unselected": "ranked below the cut",
}
"""Why a kept tile is not kept in the later ledger, by priority."""

REASONS_ENTERED = {
    "absent": "not in the corpus before",
    "quarantined": "was quarantined",
    "other_image": "another image under the same id",
    "low_information": "was below the entropy threshold",
    "duplicate": "was a duplicate",
    "other_scene": "was in another scene, ranked below the cut",
    "other_cluster": "was in another cluster, ranked below the cut",
    "unselected": "was ranked below the cut",
}
"""The same kinds for a tile that the earlier ledger did not keep."""

CHANGES = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False, metadata={"doc": "path relative to the corpus"}),
        pa.field("change", pa.string(), nullable=False, metadata={"doc": "entered or left the subset"}),
        pa.field("kind", pa.string(), nullable=False, metadata={"doc": "why, a word"}),
        *(
            field
            for side, name in (("a", "the earlier ledger"), ("b", "the later ledger"))
            for field in (
                pa.field(f"decision_{side}", pa.string(), metadata={"doc": f"of {name}; null: not in it"}),
                pa.field(f"reason_{side}", pa.string(), metadata={"doc": f"of {name}; null: not in it"}),
                pa.field(f"scene_{side}", pa.string(), metadata={"doc": f"of {name}"}),
                pa.field(f"cluster_id_{side}", pa.int32(), metadata={"doc": f"of {name}"}),
                pa.field(f"rank_{side}", pa.int64(), metadata={"doc": f"of {name}; null unless kept"}),
            )
        ),
    ]
)
"""One row per tile that entered or left."""


@dataclass(frozen=True)
class SceneChange:
    """Kept tiles of one scene. `n_moved`: net number of tiles that both ledgers keep, but in different scenes.

    n_kept_b = n_kept_a + n_entered - n_left + n_moved.
    """

    scene: str
    n_kept_a: int
    n_kept_b: int
    n_entered: int
    n_left: int
    n_moved: int


class Clusters(NamedTuple):
    """Whether cluster numbers and scene names correspond in two ledgers."""

    are_same: bool
    """False if the centroids were retrained: numbers then denote other clusters."""
    are_scenes: bool
    """Whether the scenes of both ledgers are clusters, as in a foreign pool."""

    @property
    def scenes_are_same(self) -> bool:
        return self.are_same or not self.are_scenes


@dataclass(frozen=True)
class Comparison:
    """The changes from ledger A to ledger B. Counts are tiles; reasons are counted by kind, largest first."""

    n_tiles_a: int
    n_tiles_b: int
    n_stayed: int
    n_entered: int
    n_left: int
    clusters: Clusters
    scenes: tuple[SceneChange, ...]
    """By kept tiles in B, largest first; empty if scene names do not correspond."""
    reasons_entered: dict[str, int]
    reasons_left: dict[str, int]

    @property
    def n_kept_a(self) -> int:
        return self.n_stayed + self.n_left

    @property
    def n_kept_b(self) -> int:
        return self.n_stayed + self.n_entered

    @property
    def is_empty(self) -> bool:
        return not (self.n_entered or self.n_left)


def compare_ledgers(a: Path, b: Path) -> Comparison:
    """Compare two decisions.parquet, tile by tile id.

    Raises:
        RunError: a file cannot be read, or the temporary folder is full.
    """
    clusters = _clusters(a, b)
    sql = f"SELECT change, kind, scene_a, scene_b, count(*) AS n FROM ({_joined('a', 'b', clusters)}) GROUP BY ALL"
    with query(sql, {"a": a, "b": b}) as batches:
        groups = batches.read_all().to_pylist()
    changes = _counted(groups, "change")
    return Comparison(
        n_tiles_a=pq.ParquetFile(a).metadata.num_rows,
        n_tiles_b=pq.ParquetFile(b).metadata.num_rows,
        n_stayed=changes[STAYED],
        n_entered=changes[ENTERED],
        n_left=changes[LEFT],
        clusters=clusters,
        scenes=_scene_changes(groups) if clusters.scenes_are_same else (),
        reasons_entered=_reasons(groups, ENTERED),
        reasons_left=_reasons(groups, LEFT),
    )


def changed_tiles(a: Path, b: Path, clusters: Clusters, change: str, limit: int) -> list[dict[str, Any]]:
    """The first tiles (rows of CHANGES) that entered or left, best rank first.

    Args:
        clusters: the correspondence from the comparison of `a` and `b`.
        change: ENTERED or LEFT.
    """
    ledger = "b" if change == ENTERED else "a"
    kept = _joined("a", "b", clusters)
    first = f"SELECT tile_id FROM ({kept}) WHERE change = '{change}' ORDER BY rank_{ledger}, tile_id LIMIT {limit}"
    with query(first, {"a": a, "b": b}) as batches:
        ids = batches.read_all().column(0).to_pylist()
    if not ids:
        return []
    chosen = ", ".join("'" + tile_id.replace("'", "''") + "'" for tile_id in ids)
    few = {name: f"(SELECT * FROM {name} WHERE tile_id IN ({chosen}))" for name in ("a", "b")}
    sql = f"SELECT * FROM ({_changes_sql(few['a'], few['b'], clusters)}) ORDER BY rank_{ledger}, tile_id"
    with query(sql, {"a": a, "b": b}) as batches:
        rows: list[dict[str, Any]] = batches.read_all().to_pylist()
    return rows


def write_changes(a: Path, b: Path, clusters: Clusters, target: Path) -> int:
    """Write every tile that entered or left as a Parquet file of CHANGES, by tile id; returns the number of rows."""
    return write_query(f"{_changes_sql('a', 'b', clusters)} ORDER BY tile_id", {"a": a, "b": b}, target, CHANGES)


def _clusters(a: Path, b: Path) -> Clusters:
    """Decided on tiles that one ledger keeps and both assign to a cluster; without such tiles they correspond."""
    named = " AND ".join(f"regexp_full_match({x}.scene, 'cluster 0*' || {x}.cluster_id)" for x in "ab")
    sql = f"""
        SELECT avg(CAST(a.cluster_id = b.cluster_id AS DOUBLE)) AS shared, bool_and({named}) AS are_scenes
        FROM {_side("a")} AS a JOIN {_side("b")} AS b USING (tile_id)
        WHERE (a.decision = 'kept' OR b.decision = 'kept') AND a.content = b.content
          AND a.cluster_id IS NOT NULL AND b.cluster_id IS NOT NULL
    """
    with query(sql, {"a": a, "b": b}) as batches:
        [row] = batches.read_all().to_pylist()
    return Clusters(row["shared"] is None or row["shared"] >= SAME_CLUSTERS_FROM, bool(row["are_scenes"]))


def _scene_changes(groups: Sequence[dict[str, Any]]) -> tuple[SceneChange, ...]:
    kept_a, kept_b, entered, left = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for group in groups:
        if group["change"] != ENTERED:
            kept_a[group["scene_a"]] += group["n"]
        if group["change"] != LEFT:
            kept_b[group["scene_b"]] += group["n"]
        entered[group["scene_b"]] += group["n"] * (group["change"] == ENTERED)
        left[group["scene_a"]] += group["n"] * (group["change"] == LEFT)
    return tuple(
        SceneChange(
            scene,
            kept_a[scene],
            kept_b[scene],
            entered[scene],
            left[scene],
            n_moved=kept_b[scene] - kept_a[scene] - entered[scene] + left[scene],
        )
        for scene in sorted({*kept_a, *kept_b}, key=lambda scene: (-kept_b[scene], scene))
    )


def _reasons(groups: Sequence[dict[str, Any]], change: str) -> dict[str, int]:
    counts = _counted([group for group in groups if group["change"] == change], "kind")
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _counted(groups: Sequence[dict[str, Any]], column: str) -> Counter[str]:
    counts = Counter[str]()
    for group in groups:
        counts[group[column]] += group["n"]
    return counts


def _kind(other: str, clusters: Clusters) -> str:
    """SQL over the joined ledgers: why `other` does not keep a tile, as a key of REASONS_LEFT."""
    by_scene = "WHEN a.scene <> b.scene THEN 'other_scene'" if clusters.scenes_are_same else ""
    by_cluster = "WHEN a.cluster_id <> b.cluster_id THEN 'other_cluster'" if clusters.are_same else ""
    return f"""CASE WHEN {other}.decision IS NULL THEN 'absent'
                    WHEN {other}.decision = 'quarantined' THEN 'quarantined'
                    WHEN a.content <> b.content THEN 'other_image'
                    WHEN {other}.decision <> 'unselected' THEN {other}.decision
                    {by_scene} {by_cluster}
                    ELSE 'unselected' END"""


def _side(name: str, columns: str = "") -> str:
    """The joined columns of a ledger. Content is hashed to 8 bytes, since the join dominates the memory."""
    return f"(SELECT tile_id, hash(content_md5) AS content, scene, cluster_id, rank, decision{columns} FROM {name})"


def _joined(a: str, b: str, clusters: Clusters, more: str = "", columns: str = "") -> str:
    """SQL: every tile that at least one ledger keeps, with the columns of both."""
    return f"""
        SELECT coalesce(a.tile_id, b.tile_id) AS tile_id,
               CASE WHEN b.decision IS DISTINCT FROM 'kept' THEN '{LEFT}'
                    WHEN a.decision IS DISTINCT FROM 'kept' THEN '{ENTERED}' ELSE '{STAYED}' END AS change,
               CASE WHEN b.decision IS DISTINCT FROM 'kept' THEN {_kind("b", clusters)}
                    WHEN a.decision IS DISTINCT FROM 'kept' THEN {_kind("a", clusters)} ELSE '' END AS kind,
               a.scene AS scene_a, b.scene AS scene_b, a.rank AS rank_a, b.rank AS rank_b{more}
        FROM {_side(a, columns)} AS a FULL JOIN {_side(b, columns)} AS b USING (tile_id)
        WHERE a.decision = 'kept' OR b.decision = 'kept'
    """


def _changes_sql(a: str, b: str, clusters: Clusters) -> str:
    """SQL: the rows of CHANGES, unordered."""
    told = "".join(
        f", {side}.{name} AS {name}_{side}" for side in "ab" for name in ("decision", "reason", "cluster_id")
    )
    columns = ", ".join(CHANGES.names)
    return f"SELECT {columns} FROM ({_joined(a, b, clusters, told, ', reason')}) WHERE change <> '{STAYED}'"
