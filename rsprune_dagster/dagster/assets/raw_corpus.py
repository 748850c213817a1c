"""raw_corpus: the manifest of tiles."""

from dataclasses import asdict

import dagster as dg

from rsprune_dagster.config.params import Params
from rsprune_dagster.dagster.config_schema import run_params, schema, validated_params
from rsprune_dagster.dagster.image_sources import named_sources, scanner, watched_sources
from rsprune_dagster.dagster.metadata import result
from rsprune_dagster.dagster.resources import Compute, Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.asset_history import LISTING
from rsprune_dagster.tracking.run_recorder import RunRecorder

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
        from rsprune_dagster.corpus.fingerprint import fingerprint_of
        from rsprune_dagster.stages.raw_corpus import scan
        from rsprune_dagster.viz.pictures import corpus_pictures

        layout = store.open()
        with recorder.record_asset(context, layout, {"corpus": run_params(context)}) as made:
            params = validated_params(context, defaults.corpus)
            sources = named_sources(
                params.sources, layout, part="corpus", home=made.project_root, progress=compute.progress(context)
            )
            reader = scanner(context, layout, compute, params, made.project_root)
            watched = watched_sources(params.sources, made.project_root)
            listing = (
                asdict(fingerprint_of(watched)) if watched else {}
            )  # before the scan: files that arrive during it are detected next time
            with made.replace() as draft:
                report = scan(sources, draft.folder("raw_corpus"), reader, labelled=False, label="raw_corpus")
                pictures = corpus_pictures(draft)
            return result(made, asdict(report), pictures, tables=[layout.file("manifest")], facts={LISTING: listing})

    return raw_corpus
