"""entropy_scores: which tiles are informative, and which are exact copies."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.config.params import EntropyParams
from rsprune_dagster.corpus.tables import CONTENT_ORDER, query, scalar, write_query
from rsprune_dagster.pruning.entropy import Threshold, threshold_from_quantile, threshold_from_reference
from rsprune_dagster.utils.errors import RunError

SCORES = pa.schema(
    [
        pa.field("content_md5", pa.string(), nullable=False),
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("entropy_bits", pa.float32(), nullable=False),
        pa.field("patch_entropy_bits", pa.float32(), nullable=False),
        pa.field(
            "informative", pa.bool_(), nullable=False, metadata={"doc": "entropy_bits is not below the threshold"}
        ),
        pa.field("copy_of", pa.string(), metadata={"doc": "the tile with the same bytes that stands for this one"}),
    ]
)


@dataclass(frozen=True)
class ScoreReport:
    threshold_bits: float
    threshold_origin: str
    n_tiles: int
    n_low_information: int
    n_exact_copies: int


def score(layout: Layout, params: EntropyParams) -> ScoreReport:
    """Write `scores.parquet`, `threshold.json` and `histogram.csv`.

    Raises:
        RunError: every tile is below the threshold.
    """
    threshold = find_threshold(layout, params)
    target = layout.file("scores")
    n_tiles = write_query(
        f"""
        SELECT content_md5, tile_id, entropy_bits, patch_entropy_bits,
               entropy_bits >= {threshold.bits!r}::FLOAT AS informative,
               nullif(first_value(tile_id) OVER (PARTITION BY content_md5 ORDER BY tile_id), tile_id) AS copy_of
        FROM manifest ORDER BY {CONTENT_ORDER}
        """,
        layout.tables("manifest"),
        target,
        SCORES,
    )
    report = ScoreReport(
        threshold_bits=threshold.bits,
        threshold_origin=threshold.origin,
        n_tiles=n_tiles,
        n_low_information=scalar("SELECT count(*) FROM scores WHERE NOT informative", layout.tables("scores")),
        n_exact_copies=scalar(
            "SELECT count(*) FROM scores WHERE informative AND copy_of IS NOT NULL", layout.tables("scores")
        ),
    )
    if report.n_low_information == n_tiles:
        raise RunError(
            f"all {n_tiles:,} tiles are below the entropy threshold of {threshold.bits:.2f} bits ({threshold.origin}): "
            "nothing would be left; lower entropy.threshold_bits, or look at the tiles"
        )
    layout.file("threshold").write_text(json.dumps(asdict(report), indent=1) + "\n")
    _write_histogram(layout)
    return report


def find_threshold(layout: Layout, params: EntropyParams) -> Threshold:
    """The entropy threshold, by the method in params.yaml."""
    if params.threshold_from == "quantile":
        bits = pq.read_table(layout.file("manifest"), columns=["entropy_bits"]).column(0).to_numpy()
        return threshold_from_quantile(bits, quantile=params.threshold_quantile)
    by_scene = entropy_by_scene(layout)
    if params.threshold_from == "bits" or not by_scene:
        origin = (
            "given in params.yaml" if params.threshold_from == "bits" else "given in params.yaml: there is no reference"
        )
        return Threshold(params.threshold_bits, origin)
    return threshold_from_reference(by_scene)


def entropy_by_scene(layout: Layout) -> dict[str, np.ndarray]:
    """For each reference scene, the (n,) entropies of its tiles in bits."""
    sql = "SELECT label, entropy_bits FROM reference WHERE label IS NOT NULL ORDER BY content_md5, tile_id"
    with query(sql, layout.tables("reference")) as batches:
        table = batches.read_all()
    labels = np.asarray(table.column("label").to_pylist())
    bits = table.column("entropy_bits").to_numpy()
    return {str(scene): bits[labels == scene] for scene in np.unique(labels)}


def _write_histogram(layout: Layout) -> None:
    """Histogram with bins of a quarter bit from 0 to 8, empty bins included, for `dvc plots`."""
    sql = (
        "SELECT quarter / 4 AS entropy_bits, count(entropy_bits) AS n_tiles FROM range(33) AS quarters(quarter) "
        "LEFT JOIN scores ON floor(entropy_bits * 4) = quarter GROUP BY quarter ORDER BY quarter"
    )
    with query(sql, layout.tables("scores")) as batches:
        write_csv(batches.read_all(), layout.folder("entropy_scores") / "histogram.csv")
