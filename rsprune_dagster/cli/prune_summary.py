"""What `rsprune prune` prints before and after its run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsprune_dagster.cli.out_folder import RESULTS
from rsprune_dagster.config.params import Params
from rsprune_dagster.utils.terminal import printable

if TYPE_CHECKING:
    import pyarrow as pa

MOST_SCENES = 40


def in_effect(params: Params, parameters: Path, given: Sequence[str]) -> str:
    """Three lines: keep fraction and sources, encoder and reference, and the origin of the parameters.

    Args:
        given: the parameters of the command line, as section.key.
    """
    reference = ", ".join(params.reference.sources)
    strategy = "" if params.selection.strategy == "rsprune" else f" by {params.selection.strategy}"
    compared = f"reference {reference}" if reference else "no reference: one stratum"
    here = f"; of the command line: {', '.join(sorted(given))}" if given else ""
    return "\n".join(
        printable(line)
        for line in [
            f"keeping {params.selection.keep_fraction:.4g} of {', '.join(params.corpus.sources)}{strategy}",
            f"encoder {params.embedding.backbone}, {compared}",
            f"parameters of {parameters}{here}",
        ]
    )


def outcome(counts: dict[str, int], scenes: "pa.Table", folder: Path) -> str:
    """Tiles per scene before and after, tiles per decision, and the result files."""
    decisions = [f"{n:>12,}  {decision}" for decision, n in sorted(counts.items(), key=lambda item: -item[1])]
    total = f"{sum(counts.values()):>12,}  tiles seen"
    files = [str(folder / name) for name in RESULTS]
    return "\n".join([*_by_scene(scenes), "", *decisions, total, "", *files])


def next_steps(out: Path, subset: Path) -> str:
    """Shell commands to continue with after a finished prune."""
    where = f"--out {shlex.quote(str(out))}"
    tile = shlex.quote(_first_kept(subset))
    steps = {
        f"rsprune explain {tile} {where}": "why a tile was kept or dropped",
        f"rsprune export FOLDER {where}": "export the kept tiles as WebDataset tars; --form folder or list",
        f"rsprune report {where}": "an HTML report of the corpus, the kept tiles and the reasons",
    }
    width = max(map(len, steps))
    return "\n".join(["next:", *(f"  {command:<{width}}  # {what}" for command, what in steps.items())])


def _by_scene(scenes: "pa.Table") -> list[str]:
    """One line per scene, the largest first: compared tiles, kept tiles, and their shares."""
    from rsprune_dagster.tracking.format import format_table

    rows = scenes.to_pylist()
    n_seen, n_kept = (sum(row[name] for row in rows) for name in ("n_tiles", "n_kept"))
    cells = [
        (row["scene"], row["n_tiles"], _share(row["n_tiles"], n_seen), row["n_kept"], _share(row["n_kept"], n_kept))
        for row in rows[:MOST_SCENES]
    ]
    more = [f"and {len(rows) - MOST_SCENES} smaller scenes"] if len(rows) > MOST_SCENES else []
    return [format_table(("scene", "tiles", "of all", "kept", "of kept"), cells), *more]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:6.1%}" if whole else ""


def _first_kept(subset: Path) -> str:
    import pyarrow.parquet as pq

    kept = pq.ParquetFile(subset).iter_batches(batch_size=1, columns=["tile_id"])
    return next((str(batch.column(0)[0].as_py()) for batch in kept), "TILE_ID")
