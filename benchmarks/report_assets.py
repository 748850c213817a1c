"""Asset folders of a pool that nobody pruned: tables of any length in seconds, for the page that is written on them.

The ledger is the real one; scenes, ranks, coordinates and vectors are drawn. All tiles are members of one small tar.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import jpeg, pictures
from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import load, project_root
from rsprune_dagster.corpus.options import ReadOptions, write_options
from rsprune_dagster.corpus.tables import scalar, write_query
from rsprune_dagster.pruning.assignment import ASSIGNMENT
from rsprune_dagster.pruning.encoders.vectors import create_vectors
from rsprune_dagster.pruning.ledger import (
    RANKING,
    count_decisions,
    n_to_keep,
    write_decisions,
    write_subset,
)
from rsprune_dagster.stages.embeddings import INDEX
from rsprune_dagster.stages.entropy_scores import SCORES
from rsprune_dagster.stages.raw_corpus import MANIFEST, QUARANTINE

SCENES = ("forest", "water", "fields", "city", "desert", "coast", "river", "cloud", "ice", "mine")
"""Each half as frequent again as the next."""
N_CLUSTERS = 60
N_PICTURES = 64
DIMENSION = 128
KEEP_FRACTION = 0.15
THRESHOLD_BITS = 1.25
BLOCK_ROWS = 2**15


def write_assets(assets: Path, n_tiles: int, *, prefix: str = "tile", hostile: str = "") -> Path:
    """Write the six asset folders of a prune below `assets`; of `n_tiles` one in 500 is quarantined.

    Args:
        prefix, hostile: of tile ids, and what every one of them holds.
    """
    contents = _write_tar(assets / "tiles.tar", n_tiles)
    corpus, scores, subset = assets / "raw_corpus", assets / "entropy_scores", assets / "pruned_subset"
    for folder in (corpus, scores, subset, assets / "scene_clusters", assets / "embeddings" / "reference"):
        folder.mkdir(parents=True)
    _write_manifest(assets, n_tiles, contents, f"{prefix}{hostile}".replace("'", "''"))
    n_readable = _write_scores(corpus, scores)
    _write_candidates(assets)
    _write_subset(assets, n_readable)
    _write_reference(assets)
    return assets


def _write_tar(path: Path, n_tiles: int) -> Path:
    """Few pictures for many tiles: each tile takes one byte more of the zeros behind its picture, so none is a copy.

    Returns:
        A Parquet file: for the i-th tile where its bytes begin, how many they are, and their hash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [jpeg(picture) for picture in pictures(N_PICTURES, 64, seed=0)]
    n_zeros = -(-n_tiles // N_PICTURES)
    with tarfile.open(path, "w") as tar:
        for number, content in enumerate(encoded):
            member = tarfile.TarInfo(f"{number:04d}.jpg")
            member.size = len(content) + n_zeros
            tar.addfile(member, io.BytesIO(content + bytes(n_zeros)))
    with tarfile.open(path) as tar:
        offsets = [member.offset_data for member in tar]
    hashes = [hashlib.md5(content) for content in encoded]
    rows = []
    for i in range(n_tiles):
        n, number = divmod(i, N_PICTURES)
        rows.append((i, hashes[number].hexdigest(), offsets[number], len(encoded[number]) + n))
        hashes[number].update(b"\0")
    contents = path.with_name("contents.parquet")
    names = ("i", "content_md5", "offset", "length")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), contents)
    return contents


def _write_manifest(assets: Path, n_tiles: int, contents: Path, prefix: str) -> None:
    uri = str(assets / "tiles.tar").replace("'", "''")
    tile_id = f"'{prefix}' || printf('%09d', i) || '.jpg'"
    write_query(
        f"""
        SELECT content_md5, {tile_id} AS tile_id, '{uri}' AS uri, 'tar' AS kind, "offset", length,
               NULL AS x, NULL AS y, NULL AS w, NULL AS h, NULL AS label, 64 AS width_px, 64 AS height_px, 3 AS n_bands,
               'uint8' AS dtype, 'EPSG:32631' AS crs, -120 + 37.0 * (i % 7) + 5 * u * u AS lon,
               -40 + 21.0 * (i % 5) + 4 * v AS lat, 10.0 AS gsd_m, NULL AS scale_low, NULL AS scale_high,
               1.0 AS valid_fraction, if(i % 25 = 3, u, 2 + 5 * v) AS entropy_bits, 4.0 AS patch_entropy_bits,
               unhex(repeat(md5('t' || i), 16)) AS thumbnail
        FROM (
            SELECT i, if(i % 20 = 7, i - 1, i) AS content, (hash(i) % 9973) / 9973 AS u, (hash(-i) % 9967) / 9967 AS v
            FROM range({n_tiles}) AS r(i)
        ) JOIN (SELECT * RENAME (i AS content) FROM contents) USING (content)
        WHERE i % 500 <> 499 ORDER BY content_md5, tile_id
        """,
        {"contents": contents},
        assets / "raw_corpus" / "manifest.parquet",
        MANIFEST,
    )
    reason = "'truncated JPEG: ' || (1 + i % 11) || '3 bytes are missing'"
    sql = f"SELECT {tile_id} AS tile_id, '{uri}' AS uri, {reason} AS reason FROM range(499, {n_tiles}, 500) AS r(i)"
    write_query(sql, {}, assets / "raw_corpus" / "quarantine.parquet", QUARANTINE)
    write_options(ReadOptions(), Counter({".txt": 3}), assets / "raw_corpus")


def _write_scores(corpus: Path, scores: Path) -> int:
    n_readable = write_query(
        f"""
        SELECT content_md5, tile_id, entropy_bits, patch_entropy_bits, entropy_bits >= {THRESHOLD_BITS} AS informative,
               nullif(first_value(tile_id) OVER (PARTITION BY content_md5 ORDER BY tile_id), tile_id) AS copy_of
        FROM manifest ORDER BY content_md5, tile_id
        """,
        {"manifest": corpus / "manifest.parquet"},
        scores / "scores.parquet",
        SCORES,
    )
    tables = {"scores": scores / "scores.parquet"}
    n_copies = scalar("SELECT count(*) FROM scores WHERE informative AND copy_of IS NOT NULL", tables)
    told = {"threshold_bits": THRESHOLD_BITS, "threshold_origin": "given", "n_exact_copies": n_copies}
    (scores / "threshold.json").write_text(json.dumps(told))
    return n_readable


def _write_candidates(assets: Path) -> None:
    """Vectors, clusters and ranks of what is left; one candidate in 30 is a near-copy of the one before it."""
    left = "scores WHERE informative AND copy_of IS NULL ORDER BY content_md5, tile_id"
    scene = " ".join(f"WHEN u < {1 - 0.66 ** (i + 1):.4f} THEN '{name}'" for i, name in enumerate(SCENES[:-1]))
    tables = {"scores": assets / "entropy_scores" / "scores.parquet"}
    drawn = f"""
        SELECT *, CASE {scene} ELSE '{SCENES[-1]}' END AS scene FROM (
            SELECT content_md5, tile_id, row_number() OVER () AS n, (hash(tile_id) % 9949) / 9949 AS u FROM {left})
    """
    n_rows = write_query(
        f"SELECT content_md5, tile_id, unhex(repeat(content_md5, 16)) AS thumbnail, NULL AS label FROM {left}",
        tables,
        assets / "embeddings" / "index.parquet",
        INDEX,
    )
    write_query(
        f"""SELECT content_md5, tile_id, scene, scene AS reference_scene, 0.5 AS novelty,
                   hash(tile_id) % {N_CLUSTERS} AS cluster_id, u AS distance
            FROM ({drawn}) ORDER BY content_md5, tile_id""",
        tables,
        assets / "scene_clusters" / "assignment.parquet",
        ASSIGNMENT,
    )
    write_query(
        f"""SELECT content_md5, tile_id, scene, hash(tile_id) % {N_CLUSTERS} AS cluster_id,
                   if(near_copy_of IS NULL, row_number() OVER (ORDER BY near_copy_of IS NOT NULL, place, u, tile_id),
                      NULL) AS rank, near_copy_of
            FROM (SELECT *, row_number() OVER (PARTITION BY scene ORDER BY u, tile_id) AS place,
                         if(n % 30 = 29, lag(tile_id) OVER (ORDER BY n), NULL) AS near_copy_of FROM ({drawn}))
            ORDER BY content_md5, tile_id""",
        tables,
        assets / "pruned_subset" / "ranking.parquet",
        RANKING,
    )
    _write_vectors(assets / "embeddings" / "vectors", n_rows)
    quality = {
        "note": "Drawn, not clustered.",
        "n_clusters_asked": N_CLUSTERS,
        "quality": [],
        "balance_over": "scenes",
        "scene_names": SCENES,
    }
    (assets / "scene_clusters" / "quality.json").write_text(json.dumps(quality))


def _write_vectors(folder: Path, n_rows: int) -> None:
    vectors, rng = create_vectors(folder, n_rows, DIMENSION), np.random.default_rng(0)
    centres = rng.normal(size=(N_CLUSTERS, DIMENSION))
    for start in range(0, n_rows, BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, n_rows))
        drawn = centres[rng.integers(N_CLUSTERS, size=len(rows))] + rng.normal(size=(len(rows), DIMENSION))
        vectors.write_rows(rows, drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def _write_subset(assets: Path, n_readable: int) -> None:
    subset = assets / "pruned_subset"
    n_kept = n_to_keep(n_readable, KEEP_FRACTION)
    layout = Layout(assets, assets)
    write_decisions(layout, n_kept)
    write_subset(layout, n_kept)
    selection = load(project_root() / "params.yaml").selection.model_dump()
    counts = {"n_readable": n_readable, "n_wanted": n_kept, "n_kept": n_kept, "shortfall": ""}
    told = {
        **selection,
        "keep_fraction": KEEP_FRACTION,
        **counts,
        "decisions": count_decisions(subset / "decisions.parquet"),
    }
    (subset / "summary.json").write_text(json.dumps(told))


def _write_reference(assets: Path) -> None:
    """None."""
    (assets / "reference_scenes").mkdir()
    none = "SELECT * FROM manifest LIMIT 0"
    tables = {"manifest": assets / "raw_corpus" / "manifest.parquet"}
    write_query(none, tables, assets / "reference_scenes" / "manifest.parquet", MANIFEST)
    sql = "SELECT NULL AS content_md5, NULL AS tile_id, NULL AS thumbnail, NULL AS label LIMIT 0"
    write_query(sql, {}, assets / "embeddings" / "reference" / "index.parquet", INDEX)
