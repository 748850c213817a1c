"""Checks of pruned_subset: conservation of tiles, exact count, no duplicates, no reference tiles."""

import json
from typing import Any, Final

import numpy as np
import pyarrow as pa

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.corpus.tables import query
from rsprune_dagster.pruning.checks.verdict import N_EXAMPLES, Verdict, named, row, within_bounds
from rsprune_dagster.pruning.ledger import n_to_keep

MAX_NEAR_DUPLICATE_FRACTION: Final = 0.01
"""Largest share of kept tiles that are near-duplicates of another. A search among the kept tiles alone finds a few more
pairs than the search among all tiles did."""


def conservation(layout: Layout) -> Verdict:
    """The ledger has exactly one row with a reason for every tile, usable or quarantined, and no others."""
    found = row(
        """
        WITH seen AS (SELECT tile_id FROM manifest UNION ALL SELECT tile_id FROM quarantine)
        SELECT (SELECT count(*) FROM seen) AS n,
               (SELECT count(*) FROM seen ANTI JOIN decisions USING (tile_id)) AS missing,
               (SELECT count(*) FROM decisions ANTI JOIN seen USING (tile_id)) AS strange,
               (SELECT count(*) - count(DISTINCT tile_id) FROM decisions) AS repeated,
               (SELECT count(*) FROM decisions WHERE length(trim(reason)) = 0) AS mute
        """,
        layout.tables("manifest", "quarantine", "decisions"),
    )
    faults = {
        "are not in decisions.parquet": found["missing"],
        "rows of decisions.parquet are of tiles that were not seen": found["strange"],
        "rows are there again": found["repeated"],
        "have no reason": found["mute"],
    }
    todo = "a tile was lost or invented on the way: materialize the assets from raw_corpus on; if it stays, report it"
    return within_bounds(faults, found["n"], what="tiles seen", todo=todo)


def exact_count(layout: Layout) -> Verdict:
    """round(keep_fraction x readable tiles) are kept, or all survivors if these are fewer; ranks are 1 to n."""
    summary: dict[str, Any] = json.loads(layout.file("summary").read_text())
    found = row(
        """
        SELECT (SELECT count(*) FROM manifest) AS n_readable, (SELECT count(*) FROM subset) AS n_rows,
               (SELECT count(DISTINCT rank) FROM subset
                WHERE rank BETWEEN 1 AND (SELECT count(*) FROM subset)) AS n_ranks,
               (SELECT count(*) FROM decisions WHERE decision = 'kept') AS n_kept,
               (SELECT count(*) FROM subset SEMI JOIN (SELECT * FROM decisions WHERE decision = 'kept') d
                USING (tile_id, rank)) AS n_agreeing,
               (SELECT count(*) FROM decisions WHERE decision IN ('kept', 'unselected')) AS n_survivors
        """,
        layout.tables("manifest", "subset", "decisions"),
    )
    asked = n_to_keep(found["n_readable"], summary["keep_fraction"])
    wanted = min(asked, found["n_survivors"])
    figures = {"n_readable": found["n_readable"], "n_wanted": asked, "n_kept": found["n_rows"]}
    wrong = [] if found["n_rows"] == wanted else [f"{found['n_rows']:,} tiles are kept and {wanted:,} were to be"]
    wrong += [] if found["n_ranks"] == found["n_rows"] else ["ranks do not count from 1 without a gap"]
    agree = found["n_rows"] == found["n_kept"] == found["n_agreeing"]
    wrong += [] if agree else ["pruned_subset.parquet and decisions.parquet keep different tiles"]
    if wrong:
        return Verdict(False, f"{'; '.join(wrong)}: materialize pruned_subset again; if it stays, report it.", figures)
    short = f", {asked - wanted:,} fewer than asked, as no more survive" if wanted < asked else ""
    return Verdict(True, f"{wanted:,} of {found['n_readable']:,} readable tiles are kept{short}.", figures)


def no_copies(layout: Layout) -> Verdict:
    """No two kept tiles have the same bytes."""
    found = row(
        "SELECT count(*) AS n, count(*) - count(DISTINCT content_md5) AS n_copies FROM subset",
        layout.tables("subset"),
    )
    todo = "training would see them more often: materialize entropy_scores and what follows again"
    return within_bounds({"repeat the bytes of another": found["n_copies"]}, found["n"], what="kept tiles", todo=todo)


def near_duplicates_left(layout: Layout, *, workers: int = 1) -> Verdict:
    """A search among the kept tiles finds few near-duplicates, rotations and flips included."""
    from rsprune_dagster.pruning.entropy import THUMBNAIL_PX
    from rsprune_dagster.pruning.near_duplicates import near_duplicates

    correlation = float(json.loads(layout.file("summary").read_text())["near_duplicate_correlation"])
    kept = _thumbnails_of_kept(layout)
    names = kept.column("tile_id").to_pylist()
    pixels = np.frombuffer(b"".join(kept.column("thumbnail").to_pylist()), np.uint8).reshape(-1, THUMBNAIL_PX**2)
    leader = near_duplicates(pixels, correlation=correlation, workers=workers)
    copies = np.flatnonzero(leader != np.arange(len(leader)))
    share = len(copies) / max(len(names), 1)
    figures = {"n_kept": len(names), "n_near_duplicates": len(copies), "near_duplicate_fraction": share}
    sentence = f"{len(copies):,} of {len(names):,} kept tiles ({share:.2%}) are nearly another kept tile"
    if share <= MAX_NEAR_DUPLICATE_FRACTION:
        return Verdict(True, f"{sentence}.", figures)
    examples = [f"{names[copy]} is {names[leader[copy]]}" for copy in copies[:N_EXAMPLES].tolist()]
    return Verdict(
        False,
        f"{sentence}, more than {MAX_NEAR_DUPLICATE_FRACTION:.2%}{named(examples, len(copies))}. Lower "
        "selection.near_duplicate_correlation, and look at the pairs in the thumbnails.",
        figures,
    )


def apart_from_reference(layout: Layout) -> Verdict:
    """No kept tile has the bytes of a reference tile, which would bias scores against the reference."""
    found = row(
        f"""
        WITH both_sets AS (SELECT subset.tile_id || ' is ' || min(reference.tile_id) AS pair FROM subset
                           JOIN reference USING (content_md5) GROUP BY subset.tile_id)
        SELECT (SELECT count(*) FROM subset) AS n, (SELECT count(*) FROM both_sets) AS n_leaked,
               (SELECT list(pair) FROM (SELECT pair FROM both_sets ORDER BY 1 LIMIT {N_EXAMPLES})) AS examples
        """,
        layout.tables("subset", "reference"),
    )
    figures = {"n_kept": found["n"], "n_leaked": found["n_leaked"]}
    if not found["n_leaked"]:
        return Verdict(True, f"none of {found['n']:,} kept tiles is a reference tile.", figures)
    return Verdict(
        False,
        f"{found['n_leaked']:,} of {found['n']:,} kept tiles have the bytes of a reference tile"
        f"{named(found['examples'], found['n_leaked'])}. Scores against the reference would flatter the model: take "
        "them out of one of the two.",
        figures,
    )


def _thumbnails_of_kept(layout: Layout) -> pa.Table:
    """tile_id and thumbnail of the kept tiles, in content order."""
    sql = "SELECT tile_id, thumbnail FROM manifest SEMI JOIN subset USING (tile_id) ORDER BY content_md5, tile_id"
    with query(sql, layout.tables("manifest", "subset")) as batches:
        return batches.read_all()
