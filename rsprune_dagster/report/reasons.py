"""Why tiles went, as a table: each decision with its count and one tile as an example."""

from pathlib import Path

from rsprune_dagster.corpus.tables import query
from rsprune_dagster.report.markdown import table

HEADER = ("decision", "tiles", "for example", "why")
JOB = "explain_tile"
"""The job of the web UI that answers for any tile."""


def reasons_table(decisions: Path) -> str:
    """Markdown: the commonest decision first, its example the tile with the smallest content hash; then how to ask."""
    sql = """
        SELECT decision, count(*) AS n, arg_min(tile_id, (content_md5, tile_id)) AS tile_id,
               arg_min(reason, (content_md5, tile_id)) AS reason
        FROM decisions GROUP BY decision ORDER BY n DESC, decision
    """
    with query(sql, {"decisions": decisions}) as batches:
        rows = batches.read_all().to_pylist()
    if not rows:
        return "No tile was seen."
    shown = [(row["decision"].replace("_", " "), row["n"], row["tile_id"], row["reason"]) for row in rows]
    asked = next((row["tile_id"] for row in rows if row["decision"] != "kept"), rows[0]["tile_id"])
    told = f"Any other tile: `rsprune explain '{asked}'`, or here the job {JOB}. Every row is in decisions.parquet."
    return f"{table(HEADER, shown)}\n\n{told}"
