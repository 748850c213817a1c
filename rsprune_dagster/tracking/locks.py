"""dvc.lock through git's history: which versions each commit held."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from rsprune_dagster.config.layout import ASSETS
from rsprune_dagster.tracking.dvc_lock import Stage
from rsprune_dagster.tracking.git import output_of


@dataclass(frozen=True)
class LockedAt:
    """A commit that changed dvc.lock, when (UTC, ISO 8601), and what it then held, by asset."""

    commit: str
    when: str
    stages: Mapping[str, Stage]


def locks_in_history(root: Path) -> list[LockedAt]:
    """Every dvc.lock that a branch or tag of the checkout ever held, oldest first; none outside a git checkout."""
    log = output_of(root, "log", "--all", "--reverse", "--format=%H %ct", "--", "dvc.lock").decode().split()
    commits, times = log[::2], log[1::2]
    asked = "".join(f"{commit}:./dvc.lock\n" for commit in commits).encode()
    texts = list(_blobs(output_of(root, "cat-file", "--batch", stdin=asked))) if commits else []
    parsed = {text: _stages(text) for text in set(texts)}
    held = zip(commits, times, texts, strict=True)
    return [LockedAt(commit, utc(float(seconds)), parsed[text]) for commit, seconds, text in held]


def upstream(stage: Stage) -> dict[str, str]:
    """The assets that a stage of dvc.lock was made from, and their versions."""
    paths = {dep["path"]: dep.get("md5", "") for dep in stage.get("deps", [])}
    return {path.partition("/")[2]: md5 for path, md5 in paths.items() if path.startswith(f"{ASSETS}/")}


def params_of(stage: Stage) -> dict[str, object]:
    """The parameters in a stage of dvc.lock, by `section.key`."""
    values = stage.get("params", {}).get("params.yaml", {})
    sections = {name: value if isinstance(value, dict) else {"": value} for name, value in values.items()}
    return {f"{name}.{key}".rstrip("."): each for name, inner in sections.items() for key, each in inner.items()}


def utc(seconds: float) -> str:
    """A time since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _blobs(answer: bytes) -> Iterator[bytes]:
    """The contents in what `git cat-file --batch` printed, in order; empty for a file that was removed."""
    start = 0
    while start < len(answer):
        header, _, _ = answer[start:].partition(b"\n")
        start += len(header) + 1
        if header.endswith(b" missing"):
            yield b""
            continue
        size = int(header.rsplit(b" ", 1)[1])
        yield answer[start : start + size]
        start += size + 1


def _stages(text: bytes) -> Mapping[str, Stage]:
    try:
        # the loader in C reads a history of a thousand commits in a second
        return dict((yaml.load(text, yaml.CSafeLoader) or {}).get("stages") or {})
    except (yaml.YAMLError, AttributeError):
        return {}  # a merge that was committed with its conflict
