"""Every version of every asset that is known of: from the run log, from dvc.lock in git, and from MLflow."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rsprune_dagster.tracking.content import tree_of
from rsprune_dagster.tracking.dvc_lock import Stage, version_in
from rsprune_dagster.tracking.locks import LockedAt, locks_in_history, params_of, upstream
from rsprune_dagster.tracking.places import Places
from rsprune_dagster.tracking.run_log import Record

Key = tuple[str, str]
"""An asset and a data version."""


@dataclass(frozen=True)
class Version:
    """One version of an asset, with all that is known of how it came to be."""

    asset: str
    data_version: str
    """Empty for a materialization that failed before it wrote anything."""
    records: tuple[Record, ...] = ()
    """The materializations that made it: finished ones first, then the oldest first."""
    commits: tuple[LockedAt, ...] = ()
    """Commits whose dvc.lock holds it, oldest first."""
    stage: Stage = field(default_factory=dict)
    """Its entry in dvc.lock; empty where none is known."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Upstream assets and the versions it was made from."""
    locked: Stage | None = None
    """Its entry in dvc.lock as it is now; None where that holds another version or none."""

    @property
    def maker(self) -> Record | None:
        """The first materialization that made it."""
        return self.records[0] if self.records else None

    @property
    def params(self) -> Mapping[str, object]:
        """In effect when it was made, by `section.key`."""
        return self.maker.params if self.maker else params_of(self.stage)

    @property
    def all_inputs(self) -> list[Mapping[str, str]]:
        """What each making of it read that is known of: the same content can come from several versions."""
        held = [lock.stages[self.asset] for lock in self.commits] + ([self.locked] if self.locked else [])
        return [*(record.inputs for record in self.records), *map(upstream, held)] or [self.inputs]

    @property
    def is_known(self) -> bool:
        """Whether anything but the hash is known."""
        return bool(self.records or self.stage)

    def made_by(self, records: Sequence[Record]) -> "Version":
        """The version with its materializations, whose first tells its inputs."""
        if not records:
            return self
        ordered = tuple(sorted(records, key=lambda record: (record.status != "FINISHED", record.started_at)))
        return replace(self, records=ordered, stage=self.stage or _entry(ordered[0]), inputs=ordered[0].inputs)


@dataclass(frozen=True)
class VersionHistory:
    """The versions that the disk knows of; `version` asks MLflow for others."""

    places: Places
    versions: Mapping[Key, Version]
    unfinished: Sequence[Record] = ()
    """Records of materializations that wrote nothing."""
    n_commits: int = 0

    @classmethod
    def load(cls, places: Places) -> "VersionHistory":
        """Read the run log, dvc.lock and its history in git."""
        locks = locks_in_history(places.project.root) if places.project else []
        now = places.project.lock() if places.project else {}
        made: dict[Key, list[Record]] = defaultdict(list)
        for record in places.run_log.records():
            made[record.asset, record.data_version].append(record)
        held: dict[Key, list[LockedAt]] = defaultdict(list)
        for lock in locks:
            for asset in lock.stages:
                held[asset, version_in(lock.stages, asset)].append(lock)
        locked = {(asset, version_in(now, asset)): stage for asset, stage in now.items()}
        versions = {}
        for key in dict.fromkeys([*made, *held, *locked]):
            if not key[1]:
                continue
            stage = held[key][0].stages[key[0]] if key in held else locked.get(key, {})
            version = Version(*key, (), tuple(held.get(key, ())), stage, upstream(stage), locked.get(key))
            versions[key] = version.made_by(made.get(key, ()))
        unfinished = [record for (_, written), records in made.items() if not written for record in records]
        return cls(places, versions, unfinished, len(locks))

    def version(self, asset: str, data_version: str) -> Version:
        """A version with its makers; where the run log names none, MLflow is asked."""
        known = self.versions.get((asset, data_version), Version(asset, data_version))
        if known.records or not data_version:
            return known
        return known.made_by(self.places.elsewhere.records(data_version=data_version, asset=asset) or [])

    def chain(self, *versions: Version) -> list[Version]:
        """The versions and all they came from, in an order in which each stands before what it was made from."""
        seen: dict[Key, Version] = {}

        def visit(one: Version) -> None:
            for asset, data_version in sorted(one.inputs.items()):
                if (asset, data_version) not in seen:
                    visit(self.version(asset, data_version))
            seen[one.asset, one.data_version] = one

        for version in versions:
            visit(version)
        return list(reversed(seen.values()))

    def at(self, stages: Mapping[str, Stage]) -> "VersionHistory":
        """The history with the inputs that the dvc.lock `stages` records for its versions."""
        changed = dict(self.versions)
        for asset, stage in stages.items():
            key = (asset, version_in(stages, asset))
            changed[key] = replace(changed.get(key, Version(*key)), stage=stage, inputs=upstream(stage))
        return replace(self, versions=changed)

    def assets(self) -> list[str]:
        """The names of all assets that anything is known of."""
        assets = self.places.layout.assets
        on_disk = assets.iterdir() if assets.is_dir() else ()
        folders = {path.name for path in on_disk if path.is_dir() and not path.name.startswith(".")}
        return sorted(folders | {asset for asset, _ in self.versions} | {record.asset for record in self.unfinished})

    def present(self, asset: str, *, in_full: bool = False) -> str:
        """The hash of an asset's folder; empty where there is none.

        Args:
            in_full: read every byte again; else only the files that are not as they were when last read.
        """
        layout, memory = self.places.layout, None if in_full else self.places.run_log.memory(asset)
        return tree_of(layout.folder(asset), memory=memory).digest if layout.has(asset) else ""

    def locked(self, asset: str) -> str:
        """The version that dvc.lock holds now; empty where it holds none."""
        return next((version.data_version for version in self.of(asset) if version.locked is not None), "")

    def of(self, asset: str) -> Iterator[Version]:
        """The versions of an asset."""
        return (version for (name, _), version in self.versions.items() if name == asset)

    def records(self) -> Iterator[Record]:
        """All records on this disk."""
        yield from self.unfinished
        for version in self.versions.values():
            yield from version.records


def _entry(record: Record) -> Stage:
    """A record's entry for dvc.lock, with the values of the run for the parameters that it changed."""
    entry = dict(record.stage)
    asked = entry.get("params", {}).get("params.yaml", {})
    if not (asked and record.departures):
        return entry
    return {**entry, "params": {"params.yaml": {name: _in_effect(name, asked[name], record.params) for name in asked}}}


def _in_effect(name: str, asked: Any, params: Mapping[str, Any]) -> Any:
    if isinstance(asked, Mapping):
        return {key: params.get(f"{name}.{key}", value) for key, value in asked.items()}
    return params.get(name, asked)
