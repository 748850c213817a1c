"""Detect changes of a corpus from its listing: names, sizes, times or etags. No tile is read."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rsprune_dagster.corpus import sidecars, storage
from rsprune_dagster.corpus.sources import Container, is_candidate, list_corpus


@dataclass(frozen=True)
class Fingerprint:
    """Number of files of a corpus, and a hash that changes when a file is added, removed or rewritten."""

    n_files: int
    fingerprint: str


def fingerprint_of(sources: Sequence[str]) -> Fingerprint:
    """List the sources, folder by folder; a tar or Parquet file counts as one file.

    Raises:
        UsageError: a source is missing, not readable or empty (`list_corpus`).
    """
    seen, n_files = hashlib.sha256(), 0
    for container in list_corpus(sources).containers:
        for name, stamp in _files(container):
            seen.update(f"{name}\x1f{stamp}\x1e".encode())
            n_files += not sidecars.is_sidecar(name)
    return Fingerprint(n_files, seen.hexdigest())


def _files(container: Container) -> Iterator[tuple[str, str]]:
    if container.kind != "files":
        yield container.prefix, container.stamp
        return
    for name, stamp in storage.stamps(container.uri):
        if is_candidate(name) or sidecars.is_sidecar(name):
            yield container.prefix + storage.escaped_name(name), stamp
