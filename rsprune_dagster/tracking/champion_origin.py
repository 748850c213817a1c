"""The champion as a version, and the tiles that it was trained on."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from rsprune_dagster.config.layout import TILES
from rsprune_dagster.tracking.champion import CHECKPOINT, current_champion
from rsprune_dagster.tracking.version_history import Version, VersionHistory
from rsprune_dagster.utils.errors import RunError, UsageError

SUBSET = "pruned_subset"


@dataclass(frozen=True)
class TrainingTiles:
    """What the champion was trained on."""

    checkpoint: str
    subset: str
    path: Path
    """The Parquet file of the tiles, in the asset's folder or in DVC's cache."""

    @property
    def n_tiles(self) -> int:
        return int(pq.read_metadata(self.path).num_rows)

    def best(self, n: int) -> list[tuple[object, ...]]:
        """Rank, tile and scene of the first `n`."""
        rows = pq.read_table(self.path, columns=["rank", "tile_id", "scene"]).slice(0, n).to_pylist()
        return [(row["rank"], row["tile_id"], row["scene"]) for row in rows]

    def sentence(self) -> str:
        return (
            f"the champion, {CHECKPOINT} {self.checkpoint}, was trained on the {self.n_tiles:,} tiles of {SUBSET} "
            f"{self.subset}, which {self.path} lists"
        )


def champion(history: VersionHistory) -> Version:
    """The checkpoint that is the champion.

    Raises:
        UsageError: there is none yet.
    """
    standing = current_champion(history.places.run_log)
    if standing is None:
        raise UsageError("there is no champion yet: `rsprune materialize evaluation_metrics` decides on it")
    return history.version(CHECKPOINT, standing.checkpoint)


def training_tiles(history: VersionHistory) -> TrainingTiles:
    """The tiles that the champion was trained on.

    Raises:
        UsageError: there is no champion yet.
        RunError: it is not known what it was trained on, or that is not at hand.
    """
    best, places = champion(history), history.places
    subset = best.inputs.get(SUBSET, "")
    if not subset:
        raise RunError(f"what the champion {best.data_version} was trained on is not known here")
    if history.present(SUBSET) == subset:
        return TrainingTiles(best.data_version, subset, places.layout.folder(SUBSET) / TILES)
    path = places.cache.file(subset, TILES) if places.cache else None
    if path is None:
        raise RunError(f"{SUBSET} {subset} is not at hand: `rsprune restore {subset} --to DIR` brings it from a remote")
    return TrainingTiles(best.data_version, subset, path)
