"""Lines of a terminal: values, tables, and a chain of versions as a block of lines for each."""

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rsprune_dagster.tracking.locks import utc
from rsprune_dagster.tracking.run_log import Record, RunLog, is_alive
from rsprune_dagster.tracking.version_history import Version

WIDTH = 100
SHORT = 8
"""Letters of a hash that are shown where it is not the subject."""

_INDENT = 12
_GLUE = "\u00a0"
_MOST_METRICS = 12


def format_value(value: object) -> str:
    """A parameter as params.yaml could have it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.12g}" if isinstance(value, float) else str(value) or '""'


def format_list(names: Sequence[str], most: int = 3, *, more: str = "more") -> str:
    """The first names, and how many there are besides."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} {more}" if rest > 0 else "")


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; numbers to the right, with thousands separators."""
    cells = [header, *([f"{value:,}" if isinstance(value, int) else str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [bool(rows) and all(isinstance(value, int) for value in column) for column in zip(*rows, strict=True)]
    align = [">" if right else "<" for right in numeric or [False] * len(header)]
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    return "\n".join(layout.format(*line).rstrip() for line in cells)


def format_chain(chain: Sequence[Version], run_log: RunLog, dagster_url: str) -> str:
    """A block for each version, in the order given, readable at 100 columns.

    Args:
        dagster_url: where Dagster's web UI is served.
    """
    return "\n\n".join(_format_version(version, run_log, dagster_url) for version in chain)


def chain_values(chain: Sequence[Version], run_log: RunLog, dagster_url: str) -> list[dict[str, Any]]:
    """The same as plain JSON values: the first materialization of each version with what is known besides."""
    return [
        {
            "asset": version.asset,
            "data_version": version.data_version,
            "inputs": dict(version.inputs),
            "params": dict(version.params),
            "locked": version.locked is not None,
            "commits": [{"commit": lock.commit, "when": lock.when} for lock in version.commits],
            "n_materializations": len(version.records),
            "record": dataclasses.asdict(version.maker) if version.maker else None,
            **_links(version.maker, run_log, dagster_url),
        }
        for version in chain
    ]


def _links(record: Record | None, run_log: RunLog, dagster_url: str) -> dict[str, str]:
    """Where Dagster and MLflow show a materialization; empty where there is none, or MLflow does not have it."""
    from rsprune_dagster.tracking.mlflow_sync import run_link

    if record is None:
        return {"dagster_link": "", "mlflow_link": ""}
    dagster_link = f"{dagster_url.rstrip('/')}/runs/{record.run_id}"
    return {"dagster_link": dagster_link, "mlflow_link": run_link(run_log, record)}


def _format_version(version: Version, run_log: RunLog, dagster_url: str) -> str:
    facts = {"unknown": "neither the run log nor dvc.lock in git nor MLflow says how it was made"}
    if version.is_known:
        record, links = version.maker, _links(version.maker, run_log, dagster_url)
        facts = {
            **(_facts(version, record) if record else {"made": "by a materialization that only dvc.lock names"}),
            "params": _format_params(version.params, record.departures if record else {}),
            "metrics": _format_metrics(record.metrics) if record else "",
            "inputs": ", ".join(f"{asset}{_GLUE}{hashed[:SHORT]}" for asset, hashed in sorted(version.inputs.items())),
            "dvc.lock": _format_lock(version),
            "run": links["dagster_link"],
            "MLflow": links["mlflow_link"],
        }
    lines = [_format_fact(label, text) for label, text in facts.items() if text]
    return "\n".join([f"{version.asset}  {version.data_version or '(nothing was written)'}", *lines])


def _format_fact(label: str, text: str) -> str:
    """`  label     text`, wrapped under itself at WIDTH columns, but not within what is glued together."""
    filled = textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"  {label:<{_INDENT - 2}}",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_GLUE, " ")


def _facts(version: Version, record: Record) -> dict[str, str]:
    status = "cut short" if record.status == "RUNNING" and not is_alive(record.process) else record.status.lower()
    took = f" in {_format_duration(record.ended_at - record.started_at)}" if record.ended_at else ""
    again = len(version.records) - 1
    repeated = f"; made again {again} time{'s' if again > 1 else ''} since, with the same result" if again else ""
    dirty = " (dirty: tracked files were changed)" if record.git_dirty else ""
    return {
        "made": f"{utc(record.started_at)}{took}, {status}, code version {record.code_version or 'unknown'}{repeated}",
        "message": record.message,
        "commit": record.git_commit + dirty if record.git_commit else "none: the code was no git checkout",
    }


def _format_params(params: Mapping[str, object], departures: Mapping[str, object]) -> str:
    """What departs from params.yaml comes first."""
    ordered = sorted(params.items(), key=lambda item: (item[0] not in departures, item[0]))
    asked = {name: f" (params.yaml: {format_value(value)})" for name, value in departures.items()}
    return ", ".join(f"{name}{_GLUE}{format_value(value)}{asked.get(name, '')}" for name, value in ordered)


def _format_metrics(metrics: Mapping[str, float]) -> str:
    """With thousands separators."""
    figures = {name: f"{v:,.0f}" if float(v).is_integer() else f"{v:,.6g}" for name, v in metrics.items()}
    return format_list([f"{name}{_GLUE}{value}" for name, value in figures.items()], _MOST_METRICS)


def _format_lock(version: Version) -> str:
    at = format_list([lock.commit[:SHORT] for lock in version.commits], more="later commits")
    if version.locked is not None:
        return f"holds it now, and at {at}" if at else "holds it now; no commit does yet"
    note = version.maker.versioned_note if version.maker else ""
    return f"held it at {at}" if at else "never held it" + (f": {note}" if note else "")


def _format_duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
