"""Jobs of the web UI that answer a query in their run's log and change nothing."""

from pathlib import Path

import dagster as dg

from rsprune_dagster.dagster.resources import Store
from rsprune_dagster.dagster.user_errors import surface_user_errors
from rsprune_dagster.tracking.run_recorder import RunRecorder
from rsprune_dagster.utils.errors import RunError

N_SHOWN = 100
"""Tiles that the answer lists; the file that it names has them all."""


@dg.op(
    config_schema={
        "tile_id": dg.Field(
            str, description="As in decisions.parquet: a path in the corpus, name.tar/member, or scene.tif#x,y,w,h"
        )
    },
    out=dg.Out(dg.Nothing),
)
@surface_user_errors()
def why_was_it_kept_or_dropped(context: dg.OpExecutionContext, store: Store) -> None:
    """The decision on a tile, and all that led to it."""
    from rsprune_dagster.pruning.explain import explain_tile as explain

    answer = explain(store.open(), context.op_config["tile_id"])
    context.log.info(answer)
    context.add_output_metadata({"answer": dg.MetadataValue.md(f"```\n{answer}\n```")})


@dg.op(out=dg.Out(dg.Nothing))
@surface_user_errors()
def which_tiles_trained_the_champion(context: dg.OpExecutionContext, recorder: RunRecorder) -> None:
    """The tiles that the champion was trained on: the subset's version, where it lies, and its best tiles."""
    from rsprune_dagster.tracking.champion_origin import training_tiles
    from rsprune_dagster.tracking.places import Places
    from rsprune_dagster.tracking.version_history import VersionHistory
    from rsprune_dagster.viz.markdown import table

    if not recorder.project:
        raise RunError("there is no project here, so no versions are kept: run this in a checkout")
    found = training_tiles(VersionHistory.load(Places.of_project(Path(recorder.project))))
    context.log.info(found.sentence())
    context.add_output_metadata(
        {
            "champion": found.checkpoint,
            "pruned_subset": found.subset,
            "n_tiles": found.n_tiles,
            "tiles": dg.MetadataValue.path(found.path),
            f"best {N_SHOWN}": dg.MetadataValue.md(table(("rank", "tile", "scene"), found.best(N_SHOWN))),
        }
    )


@dg.job(description="Why a tile was kept or dropped: give its id in the launchpad; the answer is in the run's log.")
def explain_tile() -> None:
    why_was_it_kept_or_dropped()


@dg.job(description="Which tiles trained the champion: the answer is in the run's log.")
def champion_tiles() -> None:
    which_tiles_trained_the_champion()


QUERY_JOBS = [explain_tile, champion_tiles]
