"""What several assets need: the scanner of two of them, the sources by name, the result with its hash."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.params import CorpusParams
from rsprune_dagster.resources.asset_store import AssetStore, tree_md5
from rsprune_dagster.resources.settings import Compute

if TYPE_CHECKING:
    from rsprune_dagster.pruning.steps.scan import Scanner

SYNTHETIC = "synthetic"
"""As a source: the procedural corpus, made on first use."""


def scanner(context: dg.AssetExecutionContext, store: AssetStore, compute: Compute, params: CorpusParams) -> "Scanner":
    """How the corpus or the reference is read."""
    from rsprune_dagster.corpus.shards import ShardCache
    from rsprune_dagster.pruning.steps.scan import Scanner

    return Scanner(
        options=ReadOptions(**params.model_dump(include=set(ReadOptions.__dataclass_fields__))),
        patch_grid=params.patch_grid,
        shard_size=params.shard_size,
        cache=ShardCache(store.cache_root),
        workers=compute.n_workers(),
        progress=compute.progress(context),
    )


def named_sources(sources: Sequence[str], store: AssetStore, *, part: str) -> tuple[str, ...]:
    """The sources as given; `synthetic` stands for the corpus or the reference (`part`) of the synthetic corpus."""
    return tuple(_synthetic(store, part) if source == SYNTHETIC else source for source in sources)


def result(
    store: AssetStore, asset: str, metadata: Mapping[str, Any], pictures: Mapping[str, bytes | str] | None = None
) -> dg.MaterializeResult[None]:
    """What Dagster records: the folder's content hash as the data version, the figures, the pictures and tables."""
    from rsprune_dagster.report.markdown import image

    folder = store.folder(asset)
    shown = {
        title: dg.MetadataValue.md(image(picture, title) if isinstance(picture, bytes) else picture)
        for title, picture in (pictures or {}).items()
    }
    return dg.MaterializeResult(
        metadata={**metadata, **shown, "folder": dg.MetadataValue.path(str(folder))},
        data_version=dg.DataVersion(tree_md5(folder)),
    )


def _synthetic(store: AssetStore, part: str) -> str:
    from rsprune_dagster.corpus.synthetic import SyntheticPlan, write_corpus

    folder = store.cache_root.parent / "synthetic"
    write_corpus(folder, SyntheticPlan())
    return str(folder / part)
