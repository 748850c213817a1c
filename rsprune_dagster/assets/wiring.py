"""What several assets need: the scanner of two of them, the sources by name, the result with its hash and columns."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from rsprune_dagster.params import CorpusParams
from rsprune_dagster.progress import Progress
from rsprune_dagster.resources.asset_store import AssetStore
from rsprune_dagster.resources.journal import Record
from rsprune_dagster.resources.lineage import Materialization
from rsprune_dagster.resources.settings import Compute

if TYPE_CHECKING:
    from rsprune_dagster.pruning.steps.scan import Scanner
    from rsprune_dagster.resources.champion import Verdict

GPU_POOL = "gpu"
NVIDIA_DRIVER = Path("/dev/nvidiactl")
SYNTHETIC = "synthetic"
"""As a source: the procedural corpus, made on first use."""


def scanner(
    context: dg.AssetExecutionContext,
    store: AssetStore,
    compute: Compute,
    params: CorpusParams,
    home: Path | None = None,
) -> "Scanner":
    """How the corpus or the reference is read; `home` as `Scanner` has it."""
    from rsprune_dagster.pruning.steps.scan import Scanner

    return Scanner.of(params, store.cache_root, compute.n_workers(), compute.progress(context), home)


def named_sources(
    sources: Sequence[str], store: AssetStore, *, part: str, home: Path | None, progress: Progress
) -> tuple[str, ...]:
    """The sources, relative paths from `home`, the project's folder.

    `synthetic` stands for a part of the synthetic corpus: corpus, reference or held_out.
    """
    return tuple(_synthetic(store, part, progress) if each == SYNTHETIC else _from(home, each) for each in sources)


def watched_sources(sources: Sequence[str], home: Path | None) -> tuple[str, ...]:
    """The sources that may get new tiles: all but the synthetic corpus."""
    return tuple(_from(home, source) for source in sources if source != SYNTHETIC)


def _from(home: Path | None, source: str) -> str:
    """A source as params.yaml of the project at `home` has it; elsewhere a relative path starts where the user is."""
    is_a_path = "://" not in source and not source.startswith("~")
    return str(home / source) if home and is_a_path else source


def gpu_pool() -> str | None:
    """The pool that lets one step at a time onto the GPU; none where the machine has no NVIDIA driver."""
    return GPU_POOL if NVIDIA_DRIVER.exists() else None


def result(
    made: Materialization,
    figures: Mapping[str, Any],
    pictures: Mapping[str, bytes | str] | None = None,
    *,
    tables: Sequence[str],
    verdict: "Verdict | None" = None,
    facts: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult[None]:
    """What Dagster records: the folder's content hash as the data version, figures, pictures, parameters, columns.

    Args:
        tables: Parquet files of the asset; the first, if any, is the asset's own table, whose rows and columns Dagster
            knows.
        facts: what later versions are compared with, for the record alone.
        verdict: of an evaluation: which checkpoint is the champion, and why.
    """
    from rsprune_dagster.report.markdown import image

    record = made.end_well(figures, pictures or {}, facts, verdict=asdict(verdict) if verdict else None)
    folder = made.store.folder(made.asset)
    shown = {
        title: dg.MetadataValue.md(image(picture, title) if isinstance(picture, bytes) else picture)
        for title, picture in (pictures or {}).items()
    }
    return dg.MaterializeResult(
        metadata={**figures, **shown, **_about(made, record, folder), **_tables(folder, tables)},
        data_version=dg.DataVersion(record.data_version),
    )


def _about(made: Materialization, record: Record, folder: Path) -> dict[str, Any]:
    """Where the version is kept and what it was made with."""
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
    about["params"] = dg.MetadataValue.json(dict(record.params))  # the longest of them
    return about


def _champion(made: Materialization, verdict: Mapping[str, Any]) -> dict[str, str]:
    """Whether the evaluated checkpoint is the champion and why, and which tiles trained the one that is."""
    from rsprune_dagster.resources.champion import subset_of

    told = {"champion": str(verdict["reason"])}
    if subset := subset_of(made.journal, verdict["champion"]):
        told["champion was trained on"] = (
            f"pruned_subset {subset}: the job champion_tiles lists its tiles, `rsprune lineage champion` its origin"
        )
    return told


def _tables(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Rows and columns of the first table under the names that Dagster looks for, of the others under their own."""
    import pyarrow.parquet as pq

    if not names:
        return {}
    own, *others = names
    return {
        "dagster/row_count": pq.ParquetFile(folder / own).metadata.num_rows,
        "dagster/column_schema": _columns(folder / own),
        **{f"columns of {name}": _columns(folder / name) for name in others},
    }


def _columns(table: Path) -> dg.TableSchema:
    """The columns of a Parquet file, with the meaning that its schema, or else the scan's, gives each."""
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


def _synthetic(store: AssetStore, part: str, progress: Progress) -> str:
    from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus

    folder = store.cache_root.parent / "synthetic"
    write_corpus(folder, SyntheticPlan(), progress=progress)
    return str(folder / part)
