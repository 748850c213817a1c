"""Which tiles the page shows: a few rows of the ledger for each question, always the same ones."""

from pathlib import Path

from rsprune_dagster.pruning.steps.ledger import reference_column
from rsprune_dagster.report.page.album import Rows, fetch
from rsprune_dagster.report.page.folders import Folders


def best(folders: Folders, limit: int) -> Rows:
    """The kept tiles that come first."""
    return fetch(f"SELECT * FROM subset ORDER BY rank LIMIT {limit}", _tables(folders, "subset"))


def sample(folders: Folders, limit: int) -> Rows:
    """Readable tiles in content order, which is as good as random."""
    sql = f"SELECT * FROM decisions WHERE content_md5 IS NOT NULL ORDER BY content_md5, tile_id LIMIT {limit}"
    return fetch(sql, _tables(folders, "decisions"))


def of_decision(folders: Folders, decision: str, limit: int) -> Rows:
    """Tiles that met a decision, in content order."""
    sql = f"SELECT * FROM decisions WHERE decision = '{decision}' ORDER BY content_md5, tile_id LIMIT {limit}"
    return fetch(sql, _tables(folders, "decisions"))


def around_threshold(folders: Folders, limit: int) -> tuple[Rows, Rows]:
    """The tiles just below the entropy threshold, and those just above it, the nearest first."""
    sql = "SELECT tile_id, entropy_bits FROM scores WHERE {} ORDER BY entropy_bits {}, content_md5, tile_id LIMIT {}"
    tables = _tables(folders, "scores")
    return (
        fetch(sql.format("NOT informative", "DESC", limit), tables),
        fetch(sql.format("informative", "ASC", limit), tables),
    )


def copies(folders: Folders, limit: int) -> Rows:
    """Duplicates with the tile that stands for them (`twin`): near ones first, and first those with a kept twin."""
    sql = f"""
        SELECT copy.tile_id, is_exact, twin.tile_id AS twin, twin.decision AS twin_decision
        FROM (
            SELECT tile_id, near_copy_of AS copy_of, content_md5, false AS is_exact
            FROM ranking WHERE near_copy_of IS NOT NULL
            UNION ALL
            SELECT tile_id, copy_of, content_md5, true FROM scores WHERE informative AND copy_of IS NOT NULL
        ) AS copy
        JOIN (SELECT tile_id, decision FROM decisions) AS twin ON twin.tile_id = copy.copy_of
        ORDER BY is_exact, twin.decision <> 'kept', copy.content_md5, copy.tile_id LIMIT {limit}
    """
    return fetch(sql, _tables(folders, "ranking", "scores", "decisions"))


def around_the_line(folders: Folders, n_kept: int, limit: int) -> tuple[Rows, Rows]:
    """The last kept tiles and the first that went, both nearest to the line first; by their place in the ranking."""
    sql = "SELECT tile_id, scene, rank FROM ranking WHERE rank {} {} ORDER BY rank {} LIMIT {}"
    tables = _tables(folders, "ranking")
    return (
        fetch(sql.format("<=", n_kept, "DESC", limit), tables),
        fetch(sql.format(">", n_kept, "ASC", limit), tables),
    )


def by_scene(folders: Folders, n_scenes: int, limit: int) -> Rows:
    """For the scenes with the most candidates: the best kept tiles, and unselected ones in content order."""
    sql = f"""
        WITH decided AS (
            SELECT tile_id, scene, decision, rank, content_md5 FROM decisions
            WHERE decision IN ('kept', 'unselected')
        ), scenes AS (
            SELECT scene FROM decided GROUP BY scene ORDER BY count(*) DESC, scene LIMIT {n_scenes}
        )
        SELECT tile_id, scene, decision, rank FROM decided JOIN scenes USING (scene)
        QUALIFY row_number() OVER (PARTITION BY scene, decision ORDER BY rank, content_md5, tile_id) <= {limit}
        ORDER BY scene, decision, rank, content_md5, tile_id
    """
    return fetch(sql, _tables(folders, "decisions"))


def by_cluster(folders: Folders, n_clusters: int, limit: int) -> Rows:
    """For the largest clusters the tiles nearest to the centroid, with the cluster's counts."""
    tables = _tables(folders, "decisions", "assignment")
    sql = f"""
        WITH parts AS (
            SELECT cluster_id, {reference_column(tables["assignment"])} AS reference_scene, count(*) AS n
            FROM assignment GROUP BY ALL
        ), largest AS (
            SELECT cluster_id, sum(n)::BIGINT AS n_tiles, max(n) AS n_top,
                   first(reference_scene ORDER BY n DESC, reference_scene) AS top_scene
            FROM parts GROUP BY cluster_id ORDER BY n_tiles DESC, cluster_id LIMIT {n_clusters}
        ), kept AS (
            SELECT cluster_id, count(*) AS n_kept FROM decisions WHERE decision = 'kept' GROUP BY cluster_id
        ), nearest AS (
            SELECT tile_id, cluster_id, distance, content_md5 FROM assignment
            WHERE cluster_id IN (SELECT cluster_id FROM largest)
            QUALIFY row_number() OVER (PARTITION BY cluster_id ORDER BY distance, content_md5) <= {limit}
        )
        SELECT nearest.tile_id, largest.*, coalesce(n_kept, 0) AS n_kept, decided.decision
        FROM nearest JOIN largest USING (cluster_id) LEFT JOIN kept USING (cluster_id)
        JOIN (SELECT tile_id, decision FROM decisions WHERE tile_id IN (SELECT tile_id FROM nearest)) AS decided
            USING (tile_id)
        ORDER BY n_tiles DESC, cluster_id, distance, content_md5
    """
    return fetch(sql, tables)


def _tables(folders: Folders, *names: str) -> dict[str, Path]:
    known = {
        "decisions": folders.decisions,
        "ranking": folders.subset / "ranking.parquet",
        "subset": folders.subset / "pruned_subset.parquet",
        "scores": folders.scores / "scores.parquet",
        "assignment": folders.clusters / "assignment.parquet",
    }
    return {name: known[name] for name in names}
