"""Which tiles are shown: a few rows for each question, always the same ones."""

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.pruning.assignment import reference_column
from rsprune_dagster.viz.thumbnails import Rows, fetch


def best(layout: Layout, limit: int) -> Rows:
    """The kept tiles that come first."""
    return fetch(f"SELECT * FROM subset ORDER BY rank LIMIT {limit}", layout.tables("subset"))


def sample(layout: Layout, limit: int) -> Rows:
    """Readable tiles in content order, which is as good as random."""
    sql = f"SELECT tile_id FROM manifest ORDER BY content_md5, tile_id LIMIT {limit}"
    return fetch(sql, layout.tables("manifest"))


def by_label(layout: Layout, n_scenes: int, limit: int) -> Rows:
    """Tiles of each scene of the reference, in content order."""
    sql = f"""SELECT tile_id, label FROM reference QUALIFY dense_rank() OVER (ORDER BY label) <= {n_scenes}
              AND row_number() OVER (PARTITION BY label ORDER BY content_md5, tile_id) <= {limit}
              ORDER BY label, content_md5, tile_id"""
    return fetch(sql, layout.tables("reference"))


def decisions_of(layout: Layout, tile_ids: list[str]) -> dict[str, str]:
    """What became of some tiles."""
    listed = ", ".join("'" + tile_id.replace("'", "''") + "'" for tile_id in tile_ids)
    sql = f"SELECT tile_id, decision FROM decisions WHERE tile_id IN ({listed})" if tile_ids else ""
    rows = fetch(sql, layout.tables("decisions")) if sql else []
    return {row["tile_id"]: row["decision"] for row in rows}


def of_decision(layout: Layout, decision: str, limit: int) -> Rows:
    """Tiles that met a decision, in content order."""
    sql = f"SELECT * FROM decisions WHERE decision = '{decision}' ORDER BY content_md5, tile_id LIMIT {limit}"
    return fetch(sql, layout.tables("decisions"))


def around_threshold(layout: Layout, limit: int) -> tuple[Rows, Rows]:
    """The tiles just below the entropy threshold, and those just above it, the nearest first."""
    sql = "SELECT tile_id, entropy_bits FROM scores WHERE {} ORDER BY entropy_bits {}, content_md5, tile_id LIMIT {}"
    tables = layout.tables("scores")
    return (
        fetch(sql.format("NOT informative", "DESC", limit), tables),
        fetch(sql.format("informative", "ASC", limit), tables),
    )


def entropy_ends(layout: Layout, limit: int) -> tuple[Rows, Rows]:
    """The tiles of least entropy, and those of most."""
    sql = "SELECT tile_id, entropy_bits FROM scores ORDER BY entropy_bits {}, content_md5, tile_id LIMIT {}"
    tables = layout.tables("scores")
    return fetch(sql.format("ASC", limit), tables), fetch(sql.format("DESC", limit), tables)


def copies(layout: Layout, limit: int) -> Rows:
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
    return fetch(sql, layout.tables("ranking", "scores", "decisions"))


def around_rank_cutoff(layout: Layout, n_kept: int, limit: int) -> tuple[Rows, Rows]:
    """The last kept tiles and the first that went, both nearest to the line first; by their place in the ranking."""
    sql = "SELECT tile_id, scene, rank FROM ranking WHERE rank {} {} ORDER BY rank {} LIMIT {}"
    tables = layout.tables("ranking")
    return (
        fetch(sql.format("<=", n_kept, "DESC", limit), tables),
        fetch(sql.format(">", n_kept, "ASC", limit), tables),
    )


def by_scene(layout: Layout, n_scenes: int, limit: int) -> Rows:
    """For the largest scenes: the best kept tiles, and unselected ones in content order."""
    sql = f"""
        WITH scenes AS (
            SELECT scene, count(*) AS n FROM decisions WHERE scene IS NOT NULL
            GROUP BY scene ORDER BY n DESC, scene LIMIT {n_scenes}
        )
        SELECT tile_id, scene, decision, rank FROM decisions JOIN scenes USING (scene)
        WHERE decision IN ('kept', 'unselected')
        QUALIFY row_number() OVER (PARTITION BY scene, decision ORDER BY rank, content_md5, tile_id) <= {limit}
        ORDER BY n DESC, scene, decision, rank, content_md5, tile_id
    """
    return fetch(sql, layout.tables("decisions"))


def by_cluster(layout: Layout, n_clusters: int, limit: int) -> Rows:
    """For the largest clusters, the largest first, the tiles nearest to the centroid, with its counts."""
    tables = layout.tables("assignment")
    sql = f"""
        WITH parts AS (
            SELECT cluster_id, {reference_column(tables["assignment"])} AS reference_scene, count(*) AS n
            FROM assignment GROUP BY ALL
        ), sizes AS (
            SELECT cluster_id, sum(n)::BIGINT AS n_tiles, max(n) AS n_top,
                   first(reference_scene ORDER BY n DESC, reference_scene) AS top_scene
            FROM parts GROUP BY cluster_id ORDER BY n_tiles DESC, cluster_id LIMIT {n_clusters}
        )
        SELECT tile_id, sizes.* FROM assignment JOIN sizes USING (cluster_id)
        QUALIFY row_number() OVER (PARTITION BY cluster_id ORDER BY distance, content_md5) <= {limit}
        ORDER BY n_tiles DESC, cluster_id, distance, content_md5
    """
    return fetch(sql, tables)


def kept_by_cluster(layout: Layout) -> Rows:
    """Tiles of each cluster, and how many of them are kept; the largest first."""
    sql = """SELECT cluster_id, count(*) AS n_tiles, count(*) FILTER (decision = 'kept') AS n_kept
             FROM decisions WHERE cluster_id IS NOT NULL
             GROUP BY cluster_id ORDER BY n_tiles DESC, cluster_id"""
    return fetch(sql, layout.tables("decisions"))


def quarantine_reasons(layout: Layout, limit: int) -> Rows:
    """Reasons, alike but for their numbers, with how many tiles met each and one of them; the most frequent first."""
    sql = f"""
        SELECT count(*) AS n, min(tile_id) AS tile_id, arg_min(reason, tile_id) AS reason
        FROM quarantine GROUP BY regexp_replace(reason, '[0-9][0-9.,]*', '#', 'g')
        ORDER BY n DESC, reason LIMIT {limit}
    """
    return fetch(sql, layout.tables("quarantine"))


def reasons(layout: Layout) -> Rows:
    """Each decision with its count and an example, the tile of the smallest content hash; the commonest first."""
    sql = """
        SELECT decision, count(*) AS n, arg_min(tile_id, (content_md5, tile_id)) AS tile_id,
               arg_min(reason, (content_md5, tile_id)) AS reason
        FROM decisions GROUP BY decision ORDER BY n DESC, decision
    """
    return fetch(sql, layout.tables("decisions"))


def reference_entropy(layout: Layout) -> Rows:
    """Tiles of each scene of the reference, with five places of their entropy in bits; the lowest median first."""
    quantiles = ", ".join(
        f"quantile_cont(entropy_bits, {at}) AS {name}"
        for name, at in (("low", 0.02), ("first", 0.25), ("median", 0.5), ("third", 0.75), ("high", 0.98))
    )
    sql = f"""SELECT label, count(*) AS n, {quantiles} FROM reference WHERE label IS NOT NULL
              GROUP BY label ORDER BY median, label"""
    return fetch(sql, layout.tables("reference"))


def corpus_facts(layout: Layout) -> dict[str, Rows]:
    """What the manifest says of the readable tiles: `kinds`, `sizes`, `samples`, `sums`."""
    common = "SELECT {0}, count(*) AS n FROM manifest GROUP BY {0} ORDER BY n DESC, {0} LIMIT 4"
    queries = {
        "kinds": """SELECT kind, count(*) AS n, count(DISTINCT uri) AS n_uris FROM manifest
                    GROUP BY kind ORDER BY n DESC, kind""",
        "sizes": common.format("width_px, height_px"),
        "samples": common.format("n_bands, dtype"),
        "sums": """SELECT sum(length) AS n_bytes, count(length) AS n_sized, count(crs) AS n_crs,
                          count(DISTINCT crs) AS n_crs_kinds, count(lon) AS n_placed, min(gsd_m) AS gsd_low_m,
                          max(gsd_m) AS gsd_high_m, count(gsd_m) AS n_gsd FROM manifest""",
    }
    return {name: fetch(sql, layout.tables("manifest")) for name, sql in queries.items()}
