"""What Dagster shows of a materialization: data version, figures, pictures, origin, columns of its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from rsprune_dagster.tracking.run_log import Record
from rsprune_dagster.tracking.run_recorder import AssetRecorder

if TYPE_CHECKING:
    from rsprune_dagster.tracking.champion import Verdict


def result(
    made: AssetRecorder,
    figures: Mapping[str, Any],
    pictures: Mapping[str, bytes | str] | None = None,
    *,
    tables: Sequence[Path],
    verdict: "Verdict | None" = None,
    facts: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult[None]:
    """The MaterializeResult: content hash as data version; pictures, figures, parameters and columns as metadata.

    Args:
        tables: Parquet files of the asset; the first gives Dagster's row count and column schema.
        facts: values that later versions are compared with; only recorded.
        verdict: only for an evaluation: which checkpoint is the champion, and why.
    """
    from rsprune_dagster.viz.markdown import image

    record = made.finish(figures, pictures or {}, facts, verdict=asdict(verdict) if verdict else None)
    folder = made.layout.folder(made.asset)
    shown = {
        title: dg.MetadataValue.md(image(picture, title) if isinstance(picture, bytes) else picture)
        for title, picture in (pictures or {}).items()
    }
    return dg.MaterializeResult(
        metadata={**shown, **rounded(figures), **_about(made, record, folder), **_tables(tables)},
        data_version=dg.DataVersion(record.data_version),
    )


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers with six significant digits, as a person reads them; without empty texts. MLflow has all digits."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in figures.items()
        if value != ""
    }


def _about(made: AssetRecorder, record: Record, folder: Path) -> dict[str, Any]:
    """Metadata on where the version is stored and what it was made from."""
    link = made.mlflow_link()
    about: dict[str, Any] = {
        **(_champion(made, record.verdict) if record.verdict else {}),
        **({"MLflow": dg.MetadataValue.url(link) if link.startswith("http") else link} if link else {}),
        "DVC": "recorded in dvc.lock" if record.versioned else f"not in dvc.lock: {record.versioned_note}",
        "content hash": record.data_version,
        "folder": dg.MetadataValue.path(folder),
    }
    if record.git_commit:
        about["git commit"] = record.git_commit + (" with changes" if record.git_dirty else "")
    if record.inputs:
        about["made from"] = dg.MetadataValue.json(dict(record.inputs))
    if record.departures:
        about["params.yaml says"] = dg.MetadataValue.json(dict(record.departures))
    about["params"] = dg.MetadataValue.json(dict(record.params))  # last, since it is the longest
    return about


def _champion(made: AssetRecorder, verdict: Mapping[str, Any]) -> dict[str, str]:
    """Whether the evaluated checkpoint is the champion, why, and which subset trained the champion."""
    from rsprune_dagster.tracking.champion import subset_of

    told = {"champion": str(verdict["reason"])}
    if subset := subset_of(made.run_log, verdict["champion"]):
        told["champion was trained on"] = (
            f"pruned_subset {subset}: the job champion_tiles lists its tiles, `rsprune lineage champion` its origin"
        )
    return told


def _tables(tables: Sequence[Path]) -> dict[str, Any]:
    """Row count and columns of the first table under Dagster's standard keys; columns of the others by name."""
    import pyarrow.parquet as pq

    if not tables:
        return {}
    own, *others = tables
    return {
        "dagster/row_count": pq.ParquetFile(own).metadata.num_rows,
        "dagster/column_schema": _columns(own),
        **{f"columns of {other.name}": _columns(other) for other in others},
    }


def _columns(table: Path) -> dg.TableSchema:
    """The columns of a Parquet file, described by the field docs of its schema, else of the scan's schema."""
    import pyarrow.parquet as pq

    from rsprune_dagster.corpus.tiles import SCAN

    def meaning(field: Any) -> str | None:
        known = [field, SCAN.field(field.name)] if field.name in SCAN.names else [field]
        docs = [(where.metadata or {}).get(b"doc", b"").decode() for where in known]
        return next(filter(None, docs), None)

    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                type=str(field.type),
                description=meaning(field),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in pq.read_schema(table)
        ]
    )
