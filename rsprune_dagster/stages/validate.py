"""Validation before a corpus is read, which may take hours."""

from rsprune_dagster.config.params import Params
from rsprune_dagster.corpus.sources import check_reachable, list_corpus
from rsprune_dagster.pruning.encoders.tile_encoder import load_tile_encoder
from rsprune_dagster.pruning.strategies import check_strategy


def check(params: Params, *, made_later: str) -> None:
    """Check the strategy, the encoder with its weights, the device, remote sources and the reference's folders.

    Args:
        made_later: the source name of a corpus that is generated later.

    Raises:
        UsageError: something is invalid.
        RunError: a server cannot be reached.
    """
    check_strategy(params.selection.strategy)
    load_tile_encoder(params.embedding, params.compute.device)
    check_reachable(params.corpus.sources)
    sources = [source for source in params.reference.sources if source != made_later]
    if sources:
        list_corpus(sources, labelled=True)
