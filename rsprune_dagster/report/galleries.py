"""What lies in the asset folders, as pictures and tables: for the web UI's metadata and for files beside a demo run.

Each function returns titles with PNG or JPEG bytes, or with Markdown where a table says it better.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from rsprune_dagster.corpus.tables import rows_at
from rsprune_dagster.pruning.steps.ledger import reference_column, scene_table
from rsprune_dagster.pruning.vectors import open_vectors
from rsprune_dagster.report import entropy, map, markdown, montage, quotas, reasons, scenes, training
from rsprune_dagster.report.evaluation_pictures import evaluation_pictures
from rsprune_dagster.report.tiles import Rows
from rsprune_dagster.report.tiles import rows_of as _rows
from rsprune_dagster.report.tiles import tiles_of as _tiles

Pictures = dict[str, bytes | str]

MAX_POINTS = 5_000
MAX_CLUSTERS = 120
"""Clusters that are shown."""
CLUSTERS_PER_SHEET = 15
"""A sheet of more would be shrunk until nothing can be seen on it."""
MAX_REASONS = 50


def corpus_pictures(corpus: Path) -> Pictures:
    """What the corpus looks like, and what is wrong with the rest."""
    sample = _rows(
        "SELECT * EXCLUDE (thumbnail) FROM manifest ORDER BY content_md5, tile_id LIMIT 32",
        {"manifest": corpus / "manifest.parquet"},
    )
    pictures: Pictures = {"sample": montage.montage(_tiles(corpus, sample), columns=8, tile_px=72)}
    quarantined = _rows(
        f"SELECT tile_id, reason FROM quarantine ORDER BY tile_id LIMIT {MAX_REASONS}",
        {"quarantine": corpus / "quarantine.parquet"},
    )
    if quarantined:
        pictures["quarantine"] = markdown.table(
            ("tile", "reason"), [(row["tile_id"], row["reason"]) for row in quarantined]
        )
    ignored: Mapping[str, int] = json.loads((corpus / "corpus.json").read_text())["ignored_files"]
    if ignored:
        pictures["ignored_files"] = markdown.table(("files", "number"), list(ignored.items()))
    return pictures


def reference_pictures(reference: Path) -> Pictures:
    """A row of tiles for each scene of the reference."""
    tiles = _rows(
        """
        SELECT * FROM (
            SELECT * EXCLUDE (thumbnail), row_number() OVER (PARTITION BY label ORDER BY content_md5) AS place
            FROM manifest
        ) WHERE place <= 8 ORDER BY label, place
        """,
        {"manifest": reference / "manifest.parquet"},
    )
    if not tiles:
        return {}
    return {"scenes": _gallery(reference, tiles, lambda row: str(row["label"]))}


def entropy_pictures(corpus: Path, reference: Path, scores: Path) -> Pictures:
    """The histogram with the threshold, and the tiles at both ends of it."""
    threshold_bits = json.loads((scores / "threshold.json").read_text())["threshold_bits"]
    bits = pq.read_table(scores / "scores.parquet", columns=["entropy_bits"]).column(0).to_numpy()
    labelled = pq.read_table(reference / "manifest.parquet", columns=["label", "entropy_bits"])
    labels = np.asarray(labelled.column("label").to_pylist())
    by_scene = {str(scene): labelled.column("entropy_bits").to_numpy()[labels == scene] for scene in np.unique(labels)}
    ends = {"lowest_entropy": "ASC", "highest_entropy": "DESC"}
    return {
        "entropy_histogram": entropy.entropy_histogram(bits, threshold_bits, by_scene or None),
        "around_threshold": _around_threshold(corpus, scores),
        **{title: _entropy_end(corpus, order) for title, order in ends.items()},
    }


def _around_threshold(corpus: Path, scores: Path) -> bytes:
    """The tiles on both sides of the threshold: whether it is well placed shows here."""
    sql = """
        SELECT * FROM (
            SELECT manifest.* EXCLUDE (thumbnail), informative, row_number() OVER (
                PARTITION BY informative
                ORDER BY if(informative, 1, -1) * scores.entropy_bits, manifest.content_md5, tile_id
            ) AS place
            FROM manifest JOIN scores USING (tile_id)
        ) WHERE place <= 12 ORDER BY informative, place
    """
    rows = _rows(sql, {"manifest": corpus / "manifest.parquet", "scores": scores / "scores.parquet"})
    sides = {False: "just below the threshold: low information", True: "just above it"}
    return _gallery(corpus, rows, lambda row: sides[row["informative"]])


def _entropy_end(corpus: Path, order: str) -> bytes:
    sql = f"SELECT * EXCLUDE (thumbnail) FROM manifest ORDER BY entropy_bits {order}, content_md5 LIMIT 24"
    rows = _rows(sql, {"manifest": corpus / "manifest.parquet"})
    captions = [f"{row['entropy_bits']:.2f} bits" for row in rows]
    return montage.montage(_tiles(corpus, rows), columns=8, captions=captions, tile_px=72)


def cluster_pictures(corpus: Path, clusters: Path) -> Pictures:
    """The tiles nearest to each centroid, cluster by cluster."""
    assignment = clusters / "assignment.parquet"
    guess = reference_column(assignment)
    sql = f"""
        WITH parts AS (
            SELECT cluster_id, {guess} AS reference_scene, bool_or(scene <> {guess}) AS guessed, count(*) AS n
            FROM assignment WHERE cluster_id < {MAX_CLUSTERS} GROUP BY ALL
        ), sizes AS (
            SELECT cluster_id, sum(n)::BIGINT AS n_tiles, max(n) AS n_top, bool_or(guessed) AS guessed,
                   first(reference_scene ORDER BY n DESC, reference_scene) AS top_scene
            FROM parts GROUP BY cluster_id
        ), nearest AS (
            SELECT *, row_number() OVER (PARTITION BY cluster_id ORDER BY distance, content_md5) AS place
            FROM assignment JOIN sizes USING (cluster_id)
        )
        SELECT manifest.* EXCLUDE (thumbnail), cluster_id, n_tiles, n_top, top_scene, guessed
        FROM nearest JOIN manifest USING (tile_id) WHERE place <= 8 ORDER BY cluster_id, place
    """
    rows = _rows(sql, {"assignment": assignment, "manifest": corpus / "manifest.parquet"})
    return {**_clusterings_tried(clusters), **_cluster_sheets(corpus, rows)}


def _clusterings_tried(clusters: Path) -> Pictures:
    """How well each number of clusters that was tried recovers the scenes of the reference; nothing without one."""
    content = json.loads((clusters / "quality.json").read_text())
    asked = content["n_clusters_asked"]
    rows = [
        (tried["n_clusters"], tried["nmi"], tried["purity"], "chosen" if tried["n_clusters"] == asked else "")
        for tried in content["quality"]
    ]
    return {"clusterings_tried": markdown.table(("clusters", "NMI", "purity", ""), rows)} if rows else {}


def _cluster_sheets(corpus: Path, rows: Rows) -> Pictures:
    """Sheets of at most CLUSTERS_PER_SHEET clusters, a row of tiles each."""
    numbers = sorted({row["cluster_id"] for row in rows})
    sheets: Pictures = {}
    for start in range(0, len(numbers), CLUSTERS_PER_SHEET):
        shown = numbers[start : start + CLUSTERS_PER_SHEET]
        some = [row for row in rows if row["cluster_id"] in shown]
        sheets[f"clusters_{shown[0]}_to_{shown[-1]}"] = _gallery(corpus, some, _cluster_heading)
    return sheets


def _cluster_heading(row: dict[str, Any]) -> str:
    guessed = "nearest to " if row["guessed"] else ""
    return (
        f"cluster {row['cluster_id']}: {row['n_tiles']:,} tiles, {row['n_top']:,} of them {guessed}{row['top_scene']}"
    )


def subset_pictures(corpus: Path, embeddings: Path, subset: Path) -> Pictures:
    """Kept against dropped, by scene, by cluster, by reason, and on the map of the embedding."""
    return {
        **_scene_pictures(subset),
        "map": _map(embeddings, subset),
        "kept_and_unselected": _kept_beside_unselected(corpus, subset),
        "dropped": _examples_of_reasons(corpus, subset),
        "why": reasons.reasons_table(subset / "decisions.parquet"),
    }


def _scene_pictures(subset: Path) -> Pictures:
    columns = scene_table(subset / "decisions.parquet").to_pydict()
    return {
        "kept_by_scene": scenes.kept_by_scene(columns["scene"], columns["n_tiles"], columns["n_kept"]),
        "quotas": quotas.quota_table(*columns.values()),
    }


def _map(embeddings: Path, subset: Path) -> bytes:
    """Evenly spaced rows of the ranking, which is in the order of the vectors."""
    n_kept = pq.ParquetFile(subset / "pruned_subset.parquet").metadata.num_rows
    n_tiles = pq.ParquetFile(subset / "ranking.parquet").metadata.num_rows
    shown = np.unique(np.linspace(0, n_tiles - 1, min(n_tiles, MAX_POINTS)).astype(np.int64))
    some = rows_at(subset / "ranking.parquet", ["scene", "rank"], shown)
    keep = np.array([rank is not None and rank <= n_kept for rank in some.column("rank").to_pylist()])
    thumbnails = rows_at(embeddings / "index.parquet", ["thumbnail"], shown).column(0).to_pylist()
    pixels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(shown), 16, 16)
    vectors = open_vectors(embeddings / "vectors").read_rows(shown)
    return map.embedding_map(vectors, keep, some.column("scene").to_pylist(), thumbnails=pixels)


def _kept_beside_unselected(corpus: Path, subset: Path) -> bytes:
    """For the largest scenes a row: the best kept tiles, framed, then some that were not selected."""
    sql = """
        SELECT * FROM (
            SELECT manifest.* EXCLUDE (thumbnail), scene, decision, size,
                   dense_rank() OVER (ORDER BY size DESC, scene) AS nth,
                   row_number() OVER (PARTITION BY scene, decision ORDER BY rank, manifest.content_md5) AS place
            FROM (SELECT *, count(*) OVER (PARTITION BY scene) AS size FROM decisions) AS decided
            JOIN manifest USING (tile_id)
            WHERE decision IN ('kept', 'unselected')
        ) WHERE place <= 6 AND nth <= 10 ORDER BY nth, decision, place
    """
    rows = _rows(sql, {"decisions": subset / "decisions.parquet", "manifest": corpus / "manifest.parquet"})
    return _gallery(
        corpus, rows, lambda row: str(row["scene"]), legend="kept, best first; the others were not selected"
    )


def _examples_of_reasons(corpus: Path, subset: Path) -> bytes:
    """Tiles that went, by the decision they met."""
    sql = """
        SELECT * FROM (
            SELECT manifest.* EXCLUDE (thumbnail), decision,
                   row_number() OVER (PARTITION BY decision ORDER BY manifest.content_md5, tile_id) AS place
            FROM decisions JOIN manifest USING (tile_id) WHERE decision <> 'kept'
        ) WHERE place <= 14 ORDER BY decision, place
    """
    rows = _rows(sql, {"decisions": subset / "decisions.parquet", "manifest": corpus / "manifest.parquet"})
    return _gallery(corpus, rows, lambda row: str(row["decision"]).replace("_", " "))


def checkpoint_pictures(folder: Path) -> Pictures:
    """Loss curve, and samples over the training."""
    names = json.loads((folder / "scenes.json").read_text())
    rows = {int(path.stem): np.asarray(Image.open(path).convert("RGB")) for path in (folder / "samples").glob("*.png")}
    grids = {seen: np.stack(np.split(row, len(names), axis=1)) for seen, row in rows.items()}
    losses = np.loadtxt(folder / "loss.csv", delimiter=",", skiprows=1, ndmin=2)
    return {
        "loss": training.loss_curve(losses),
        "samples over training": training.samples_over_training(grids, names),
    }


def save_pictures(assets: Path, folder: Path) -> Path:
    """All pictures of a run as files in `folder`."""
    corpus, embeddings = assets / "raw_corpus", assets / "embeddings"
    made = {
        "raw_corpus": corpus_pictures(corpus),
        "reference_scenes": reference_pictures(assets / "reference_scenes"),
        "entropy_scores": entropy_pictures(corpus, assets / "reference_scenes", assets / "entropy_scores"),
        "scene_clusters": cluster_pictures(corpus, assets / "scene_clusters"),
        "pruned_subset": subset_pictures(corpus, embeddings, assets / "pruned_subset"),
        "diffusion_checkpoint": checkpoint_pictures(assets / "diffusion_checkpoint"),
        "evaluation_metrics": evaluation_pictures(corpus, assets / "evaluation_metrics"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for asset, pictures in made.items():
        for title, picture in pictures.items():
            if isinstance(picture, str):
                (folder / f"{asset}.{title}.md").write_text(picture + "\n")
            else:
                suffix = "jpg" if picture.startswith(b"\xff\xd8\xff") else "png"
                (folder / f"{asset}.{title}.{suffix}").write_bytes(picture)
    return folder


def _gallery(corpus: Path, rows: Rows, heading: Callable[[dict[str, Any]], str], legend: str = "") -> bytes:
    """One row of tiles per heading, in the order of the rows; with a legend, which says so, kept tiles are framed."""
    groups: dict[str, list[tuple[np.ndarray, bool]]] = {}
    for row, tile in zip(rows, _tiles(corpus, rows), strict=True):
        groups.setdefault(heading(row), []).append((tile, bool(legend) and row["decision"] == "kept"))
    drawn = [montage.Row(name, [tile for tile, _ in some], [kept for _, kept in some]) for name, some in groups.items()]
    return montage.gallery(drawn, tile_px=56, legend=legend)
