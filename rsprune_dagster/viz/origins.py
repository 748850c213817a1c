"""What the page was made from: versions and parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsprune_dagster.config.params import ClusteringParams
from rsprune_dagster.viz.blocks import Block, Code, Column, Facts, Table, Text
from rsprune_dagster.viz.formatting import count, listed, size

NO_SECTION = ("tracking", "compute")
"""Sections of params.yaml that say where and how fast; of `compute` the seed counts."""


@dataclass(frozen=True)
class Origin:
    """One asset's version as it lay there, and how it was made, as far as the run log knows."""

    asset: str
    data_version: str
    n_files: int
    size_bytes: int
    code_version: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    """In effect, by `section.key`; empty where the run log does not know the version."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The versions it was made from, by asset."""


def params_in_effect(origins: Sequence[Origin]) -> dict[str, Any]:
    """By `section.key`, as the assets had them."""
    return {key: value for origin in origins for key, value in origin.params.items()}


def clustering_in_effect(origins: Sequence[Origin], asked: ClusteringParams) -> ClusteringParams:
    """How the clusters were made; what params.yaml asks for where the run log does not know."""
    known = {
        key.partition(".")[2]: value for key, value in params_in_effect(origins).items() if key[:11] == "clustering."
    }
    return ClusteringParams(**{**asked.model_dump(), **known})


def seed_in_effect(origins: Sequence[Origin], asked: int) -> int:
    """The seed of the subset."""
    return int(
        params_in_effect([origin for origin in origins if origin.asset == "pruned_subset"]).get("compute.seed", asked)
    )


def source_name(origins: Sequence[Origin]) -> str:
    """What the corpus is called: the last part of each source's path."""
    sources = params_in_effect([origin for origin in origins if origin.asset == "raw_corpus"]).get("corpus.sources", [])
    names = [str(source).rstrip("/").rpartition("/")[2] for source in sources]
    return listed([*names[:3], *(["others"] if len(names) > 3 else [])]) if names else ""


def stale(origins: Sequence[Origin]) -> list[str]:
    """A sentence for each asset that was made from another version than the one that lies beside it."""
    present = {origin.asset: origin.data_version for origin in origins}
    sentences = []
    for origin in origins:
        older = [asset for asset, version in origin.inputs.items() if present.get(asset, version) != version]
        if older:
            sentences.append(
                f"{origin.asset} was made from another version of {listed(sorted(older))} than this page shows: "
                "materialize it again before you compare."
            )
    return sentences


def blocks(origins: Sequence[Origin]) -> list[Block]:
    """The provenance: stale assets, versions, parameters, and a glossary."""
    sentences = [Text(sentence) for sentence in stale(origins)]
    return [*sentences, _versions(origins), _params(origins), Facts(WORDS, title="Words")]


def _versions(origins: Sequence[Origin]) -> Table:
    rows = [
        (
            Code(origin.asset),
            Code(origin.data_version),
            origin.code_version,
            count(origin.n_files),
            size(origin.size_bytes),
        )
        for origin in origins
    ]
    columns = [
        Column("Asset"),
        Column("Version"),
        Column("Code", numeric=True, minor=True),
        Column("Files", numeric=True, minor=True),
        Column("Size", numeric=True),
    ]
    caption = (
        "`rsprune lineage VERSION` tells the run, the commit and the date; `rsprune restore VERSION` brings it back."
    )
    return Table("Versions that this page shows", caption, columns, rows)


def _params(origins: Sequence[Origin]) -> Block:
    known = params_in_effect(origins)
    rows = [
        (key, json.dumps(value))
        for key, value in sorted(known.items())
        if key.partition(".")[0] not in NO_SECTION or key == "compute.seed"
    ]
    if not rows:
        return Text("The run log does not know with which parameters these versions were made.", absent=True)
    return Facts(rows, title="Parameters in effect", code=True)


WORDS = (
    ("Tile", "one image the pipeline scores: a file, a member of a tar, or a window of a scene file"),
    ("Scene", "a class of the labelled reference, and the tiles of the corpus that are taken for it"),
    ("Candidate", "a readable tile that is neither blank nor a duplicate: kept or not selected"),
    ("Rank", "a tile's place in the one order, 1 is best; a keep fraction is a prefix of it"),
    ("Quota", "the number of tiles that a scene or a cluster may give"),
)
