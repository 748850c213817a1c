"""raw_corpus: the manifest of tiles."""

from dataclasses import asdict

import dagster as dg

from rsprune_dagster.assets.config import given, in_effect, schema
from rsprune_dagster.assets.image_sources import named_sources, scanner, watched_sources
from rsprune_dagster.assets.metadata import result
from rsprune_dagster.assets.user_errors import surface_user_errors
from rsprune_dagster.params import Params
from rsprune_dagster.resources.asset_history import LISTING
from rsprune_dagster.resources.run_recorder import RunRecorder
from rsprune_dagster.resources.settings import Compute, Store

CODE_VERSION = "1"


def raw_corpus_asset(defaults: Params) -> dg.AssetsDefinition:
    """The asset, with the values of params.yaml as its defaults."""

    @dg.asset(
        group_name="corpus",
        kinds={"python", "parquet"},
        owners=["team:data"],
        code_version=CODE_VERSION,
        config_schema=schema(defaults.corpus),
    )
    @surface_user_errors()
    def raw_corpus(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, recorder: RunRecorder
    ) -> dg.MaterializeResult[None]:
        """Every tile of the corpus, read and decoded once.

        `manifest.parquet` has one row per usable tile: where its bytes are, size, content md5, geolocation if known,
        and entropy. `quarantine.parquet` has one row per unusable tile, with the reason. Images are not copied.
        """
        from rsprune_dagster.corpus.glimpse import glimpse
        from rsprune_dagster.pruning.steps.scan import scan
        from rsprune_dagster.report.folders import Folders
        from rsprune_dagster.report.pictures import corpus_pictures

        assets = store.open()
        with recorder.record_asset(context, assets, {"corpus": given(context)}) as made:
            params = in_effect(context, defaults.corpus)
            sources = named_sources(
                params.sources, assets, part="corpus", home=made.home, progress=compute.progress(context)
            )
            reader = scanner(context, assets, compute, params, made.home)
            watched = watched_sources(params.sources, made.home)
            listing = (
                asdict(glimpse(watched)) if watched else {}
            )  # before the scan: files that arrive during it are detected next time
            with made.replace() as folder:
                report = scan(sources, folder, reader, labelled=False, label="raw_corpus")
                pictures = corpus_pictures(Folders(assets.root, {"raw_corpus": folder}))
            return result(made, asdict(report), pictures, tables=("manifest.parquet",), facts={LISTING: listing})

    return raw_corpus
