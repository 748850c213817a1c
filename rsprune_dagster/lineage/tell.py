"""A chain of versions, told: a block of lines for each, or JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsprune_dagster.lineage.history import Version
from rsprune_dagster.lineage.locks import utc
from rsprune_dagster.lineage.restore import Restored
from rsprune_dagster.lineage.text import figure, labelled, shown, together
from rsprune_dagster.resources.journal import Journal, Record, is_alive

SHORT = 8
"""Letters of a hash that are shown where it is not the subject."""

_MOST_FIGURES = 12
_MOST_COMMITS = 3


@dataclass(frozen=True)
class Links:
    """Where Dagster and MLflow show a materialization."""

    dagster_url: str
    journal: Journal

    def dagster(self, record: Record) -> str:
        return f"{self.dagster_url.rstrip('/')}/runs/{record.run_id}"

    def mlflow(self, record: Record) -> str:
        """Empty where MLflow has not heard of it."""
        from rsprune_dagster.resources.mlflow_sync import run_link

        return run_link(self.journal, record)


def tell(chain: Sequence[Version], links: Links) -> str:
    """A block for each version, in the order given, readable at 100 columns."""
    return "\n\n".join(_block(version, links) for version in chain)


def plain(chain: Sequence[Version], links: Links) -> list[dict[str, Any]]:
    """The same as plain JSON values: the first materialization of each version with what is known besides."""
    return [_plain(version, links) for version in chain]


def _block(version: Version, links: Links) -> str:
    told = [labelled(label, text) for label, text in _facts(version, links).items() if text]
    return "\n".join([f"{version.asset}  {version.data_version or '(nothing was written)'}", *told])


def _facts(version: Version, links: Links) -> dict[str, str]:
    record = version.maker
    if not version.is_told:
        return {"unknown": "neither the journal nor dvc.lock in git nor MLflow says how it was made"}
    made = _made(version, record) if record else "by a materialization that only dvc.lock tells of"
    return {
        "made": made,
        "message": record.message if record else "",
        "commit": _commit(record) if record else "",
        "params": _params(version.params, record.departures if record else {}),
        "figures": _figures(record.metrics) if record else "",
        "inputs": ", ".join(together(asset, hashed[:SHORT]) for asset, hashed in sorted(version.inputs.items())),
        "dvc.lock": _locked(version),
        "run": links.dagster(record) if record else "",
        "MLflow": links.mlflow(record) if record else "",
    }


def _made(version: Version, record: Record) -> str:
    took = f" in {_duration(record.ended_at - record.started_at)}" if record.ended_at else ""
    text = f"{utc(record.started_at)}{took}, {status(record)}, code version {record.code_version or 'unknown'}"
    again = len(version.records) - 1
    return text + (f"; made again {again} time{'s' if again > 1 else ''} since, with the same result" if again else "")


def status(record: Record) -> str:
    """`finished`, `failed`, `killed`, `running`, or `cut short` where its process is gone."""
    gone = record.status == "RUNNING" and not is_alive(record.process)
    return "cut short" if gone else record.status.lower()


def _commit(record: Record) -> str:
    if not record.git_commit:
        return "none: the code was no git checkout"
    return record.git_commit + (" (dirty: tracked files were changed)" if record.git_dirty else "")


def _params(params: Mapping[str, object], departures: Mapping[str, object]) -> str:
    """What departs from params.yaml comes first."""
    ordered = sorted(params.items(), key=lambda item: (item[0] not in departures, item[0]))
    return ", ".join(
        together(name, shown(value)) + (f" (params.yaml: {shown(departures[name])})" if name in departures else "")
        for name, value in ordered
    )


def _figures(metrics: Mapping[str, float]) -> str:
    told = [together(name, figure(value)) for name, value in metrics.items()]
    more = len(told) - _MOST_FIGURES
    return ", ".join(told[:_MOST_FIGURES]) + (f", and {more} more" if more > 0 else "")


def _locked(version: Version) -> str:
    commits = [lock.commit[:SHORT] for lock in version.commits]
    at = f"at {', '.join(commits[:_MOST_COMMITS])}" if commits else ""
    at += f" and {len(commits) - _MOST_COMMITS} later commits" if len(commits) > _MOST_COMMITS else ""
    if version.locked:
        return f"holds it now, and {at}" if at else "holds it now; no commit does yet"
    note = version.maker.versioned_note if version.maker else ""
    return f"held it {at}" if at else "never held it" + (f": {note}" if note else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _plain(version: Version, links: Links) -> dict[str, Any]:
    record = version.maker
    return {
        "asset": version.asset,
        "data_version": version.data_version,
        "inputs": dict(version.inputs),
        "params": dict(version.params),
        "locked": version.locked,
        "commits": [{"commit": lock.commit, "when": lock.when} for lock in version.commits],
        "n_materializations": len(version.records),
        "record": dataclasses.asdict(record) if record else None,
        "dagster_link": links.dagster(record) if record else "",
        "mlflow_link": links.mlflow(record) if record else "",
    }


def restored(version: Version, done: Restored) -> str:
    """What a restore changed, in sentences."""
    placed = [f"{each.asset} is {each.data_version} again" for each in done.placed]
    rest = {
        "dvc.lock now holds it": done.locked,
        "no entry for dvc.lock is known, so `dvc status` will tell of it": done.not_locked,
        "Dagster was told": done.told,
    }
    lines = [*placed, *(f"{', '.join(assets)}: {text}" for text, assets in rest.items() if assets)]
    lines = lines or [f"{version.asset} {version.data_version} is in place already"]
    if done.departs:
        values = [f"{name} {shown(made)} (there {shown(asked)})" for name, (made, asked) in done.departs.items()]
        lines.append(f"params.yaml says otherwise, so `dvc repro` would make another version: {', '.join(values)}")
    return "\n".join(lines)
