"""Shards (tiles that are processed together) and the cache of their results.

A shard is a list of tiles of one container. Known tiles stay in the shard they were first assigned to, so only new
files need work. The grouping never affects a result, because every table is sorted by content afterwards.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune_dagster.corpus.sources import Container
from rsprune_dagster.corpus.tiles import LOCATION
from rsprune_dagster.utils.atomic_write import atomic_write
from rsprune_dagster.utils.hashing import digest
from rsprune_dagster.utils.sealed_files import KEY, UNSEALED, is_intact, read_intact, sealed, sealed_table

LAYOUT_VERSION = 2
_FIELD, _ROW = "\x1f", "\x1e"


@dataclass(frozen=True)
class Shard:
    """Some tiles of one container, stored as a Parquet file of LOCATION rows."""

    key: str
    path: Path
    n_tiles: int

    def rows(self) -> pa.Table:
        """(n_tiles,) LOCATION rows in the order of the container."""
        return pq.read_table(self.path, schema=LOCATION)


@dataclass(frozen=True)
class ShardListing:
    """How containers are listed and grouped into shards.

    `rows` gives a container's LOCATION rows and counts its members that are not tiles; `identity` is everything else
    that the rows depend on. `unchanged` says whether the bytes of a known shard are unchanged, if the container has a
    new stamp but equal rows.
    """

    rows: Callable[[Container], tuple[pa.Table, Mapping[str, int]]]
    unchanged: Callable[[Shard], bool]
    shard_size: int
    identity: tuple[object, ...]


@dataclass(frozen=True)
class ShardCache:
    """Shard lists and cached results below one folder.

    `layout/` holds the list of shards of each container; `shards/` their rows; `work/<step>/` the results, each
    under the hash of its input, code and parameters. Each file has a checksum (`utils/sealed_files.py`); a damaged one
    is recomputed.
    """

    root: Path

    def result(self, step: str, shard: Shard, *identity: object) -> Path:
        """The path of the result of `step` for a shard; `identity`: code version and parameters."""
        key = digest(shard.key, *identity)
        return self.root / "work" / step / key[:2] / key

    def plan(self, containers: Iterable[Container], listing: ShardListing) -> tuple[list[Shard], Counter[str]]:
        """The shards of a corpus by container, and the number of members that are not tiles, by suffix."""
        shards: list[Shard] = []
        ignored: Counter[str] = Counter()
        for container in containers:
            some, passed_by = self._plan_one(container, listing)
            shards += some
            ignored.update(passed_by)
        return shards, ignored

    def _plan_one(self, container: Container, listing: ShardListing) -> tuple[list[Shard], Mapping[str, int]]:
        index = (
            self.root
            / "layout"
            / f"{digest(LAYOUT_VERSION, container.uri, container.prefix, container.label, listing.identity)}.json"
        )
        known = _read_layout(index)
        shards = [self._shard(key, n_tiles) for key, n_tiles in known.get("shards", [])]
        same_stamp = known.get("stamp") == container.stamp
        if shards and container.stamp and same_stamp and all(is_intact(shard.path) for shard in shards):
            return shards, known["ignored"]
        rows, ignored = listing.rows(container)
        # loose files have their own stamps, a container's members only the container's
        trusted = same_stamp or not container.stamp
        kept = _still_there(shards, rows, listing.unchanged if not trusted else None)
        fresh = _without(rows, kept)
        made = [
            self._write(fresh.slice(start, listing.shard_size), container.stamp)
            for start in range(0, fresh.num_rows, listing.shard_size)
        ]
        shard_list = [(shard.key, shard.n_tiles) for shard in kept + made]
        layout = {"stamp": container.stamp, "shards": shard_list, "ignored": ignored, KEY: UNSEALED}
        with atomic_write(index) as draft:
            draft.write_bytes(sealed(json.dumps(layout).encode()))
        return kept + made, ignored

    def _shard(self, key: str, n_tiles: int) -> Shard:
        return Shard(key, self.root / "shards" / key[:2] / f"{key}.parquet", n_tiles)

    def _write(self, rows: pa.Table, stamp: str) -> Shard:
        """Write a shard. Its key includes the container's stamp: equal rows of a rewritten tar may be other tiles."""
        key = hashlib.sha256(_ROW.join([str(LAYOUT_VERSION), stamp, *_identities(rows)]).encode()).hexdigest()
        shard = self._shard(key, rows.num_rows)
        if not is_intact(shard.path):
            with atomic_write(shard.path) as draft:
                draft.write_bytes(sealed_table(rows))
        return shard


def _read_layout(index: Path) -> Mapping[str, Any]:
    data = read_intact(index)
    layout: Mapping[str, Any] = json.loads(data) if data else {}
    return layout


def _identities(rows: pa.Table) -> list[str]:
    columns = [rows.column(name).to_pylist() for name in LOCATION.names]
    return [_FIELD.join("" if value is None else str(value) for value in row) for row in zip(*columns, strict=True)]


def _still_there(shards: Sequence[Shard], rows: pa.Table, unchanged: Callable[[Shard], bool] | None) -> list[Shard]:
    present = set(_identities(rows)) if shards else set()
    return [
        shard
        for shard in shards
        if is_intact(shard.path)
        and present.issuperset(_identities(shard.rows()))
        and (unchanged is None or unchanged(shard))
    ]


def _without(rows: pa.Table, kept: Sequence[Shard]) -> pa.Table:
    if not kept:
        return rows
    taken = {identity for shard in kept for identity in _identities(shard.rows())}
    return rows.filter(pa.array([identity not in taken for identity in _identities(rows)], pa.bool_()))
