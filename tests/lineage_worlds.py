"""A small DVC project with a history, written by hand: folders, run log, dvc.lock, cache and commits, in no time."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rsprune_dagster.config.layout import Layout
from rsprune_dagster.pruning.ledger import DECISIONS
from rsprune_dagster.tracking.asset_store import replaced
from rsprune_dagster.tracking.content import Tree, tree_of
from rsprune_dagster.tracking.dvc_cache import DvcCache
from rsprune_dagster.tracking.dvc_lock import DvcProject, outs
from rsprune_dagster.tracking.places import Places
from rsprune_dagster.tracking.run_log import Record, RunLog, this_process
from rsprune_dagster.tracking.version_history import VersionHistory

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"

UPSTREAM = {
    "raw_corpus": (),
    "reference_scenes": (),
    "entropy_scores": ("raw_corpus", "reference_scenes"),
    "pruned_subset": ("entropy_scores", "raw_corpus"),
}
N_TILES = 20


@dataclass(frozen=True)
class World:
    """The project's folder, and what its makers would write."""

    root: Path

    @property
    def assets(self) -> Path:
        return self.root / "assets"

    @property
    def run_log(self) -> RunLog:
        return RunLog(self.root / ".state" / "lineage")

    @property
    def cache(self) -> DvcCache:
        return DvcCache.of(self.root)

    @property
    def dvc(self) -> DvcProject:
        return DvcProject(self.root)

    def history(self) -> VersionHistory:
        return VersionHistory.load(Places.of_project(self.root))

    def present(self) -> dict[str, str]:
        """The hash of each asset on disk."""
        return {asset: tree_of(self.assets / asset).digest for asset in UPSTREAM}

    def materialize(self, run_id: str, *, tiles: str = "a", keep: float = 0.5, departs: bool = False) -> dict[str, str]:
        """All assets, as a run of the pipeline leaves them; the versions.

        Args:
            tiles: other letters, another corpus.
            departs: keep is not what params.yaml says, so dvc.lock is left alone.
        """
        if not departs:
            self._write_params(keep)
        trees: dict[str, Tree] = {}
        for number, asset in enumerate(UPSTREAM):
            self._make(
                asset, run_id, trees, tiles=tiles, keep=keep, departs=departs, started_at=_TIMES[run_id] + number
            )
        return {asset: tree.digest for asset, tree in trees.items()}

    def stage(self, asset: str, tree: Tree, inputs: dict[str, Tree]) -> dict[str, Any]:
        """The asset's entry for dvc.lock."""
        return {**self.dvc.stage_entry(asset, inputs), "outs": outs(asset, tree)}

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD").strip()

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout

    def forget(self) -> None:
        """Remove the run log: what a fresh clone has."""
        shutil.rmtree(self.run_log.root)

    def _make(
        self,
        asset: str,
        run_id: str,
        trees: dict[str, Tree],
        *,
        tiles: str,
        keep: float,
        departs: bool,
        started_at: float,
    ) -> None:
        with replaced(Layout.of_project(self.root), asset) as folder:
            if asset == "pruned_subset":
                write_ledger(folder / "decisions.parquet", tiles, keep)
            (folder / "inner").mkdir()
            (folder / "inner" / "data.txt").write_text(f"{asset} of {tiles if asset != 'reference_scenes' else ''}")
        trees[asset] = tree = tree_of(self.assets / asset)
        inputs = {name: trees[name] for name in UPSTREAM[asset]}
        self.cache.keep(self.assets / asset, tree)
        stage = self.stage(asset, tree, inputs)
        departs = departs and asset == "pruned_subset"
        if not departs:
            self.dvc.record({asset: stage}, print)
        self.run_log.write(
            Record(
                run_id=run_id,
                asset=asset,
                status="FINISHED",
                started_at=started_at,
                ended_at=started_at + 0.5,
                process=this_process(),
                code_version="1",
                git_commit="c" * 40,
                git_dirty=departs,
                params={"selection.keep_fraction": keep, "compute.seed": 0} if asset == "pruned_subset" else {},
                departures={"selection.keep_fraction": 0.5} if departs else {},
                inputs={name: each.digest for name, each in inputs.items()},
                data_version=tree.digest,
                n_files=tree.n_files,
                size_bytes=tree.size_bytes,
                metrics={"n_tiles": N_TILES},
                stage=stage,
                versioned=not departs,
                versioned_note="this run departs from params.yaml in selection.keep_fraction" if departs else "",
            )
        )

    def _write_params(self, keep: float) -> None:
        params = yaml.load(PARAMS.read_bytes(), yaml.CSafeLoader)
        params["selection"]["keep_fraction"] = keep
        (self.root / "params.yaml").write_text(yaml.dump(params, Dumper=yaml.CSafeDumper))


_TIMES = {"run-first": 1_700_000_000.0, "run-second": 1_700_001_000.0, "run-third": 1_700_002_000.0}


def new_world(root: Path) -> World:
    """An empty project in a git repository."""
    world = World(root)
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").touch()
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".gitignore").write_text(".state/\n/assets/*\n")
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: _stage(name) for name in UPSTREAM}}))
    world.git("init", "--quiet", "--initial-branch=main")
    return world


def write_ledger(path: Path, tiles: str, keep: float) -> None:
    """Tiles named by a letter and a number; the first of them are kept."""
    n_kept = round(keep * N_TILES)
    rows = [_row(f"{tiles}/{number:02}", number + 1, n_kept) for number in range(N_TILES)]
    pq.write_table(pa.Table.from_pylist(rows, DECISIONS), path)


def _stage(asset: str) -> dict[str, Any]:
    stage: dict[str, Any] = {"cmd": f"rsprune materialize {asset}", "outs": [f"assets/{asset}"]}
    if UPSTREAM[asset]:
        stage["deps"] = [f"assets/{name}" for name in UPSTREAM[asset]]
    if asset == "pruned_subset":
        stage["params"] = ["selection", "compute.seed"]
    return stage


def _row(tile_id: str, rank: int, n_kept: int) -> dict[str, Any]:
    is_kept = rank <= n_kept
    return {
        "tile_id": tile_id,
        "uri": "file",
        "content_md5": f"{rank:032x}",
        "entropy_bits": 3.0,
        "scene": "sea" if rank % 2 else "city",
        "cluster_id": 0,
        "rank": rank if is_kept else None,
        "decision": "kept" if is_kept else "unselected",
        "reason": f"rank {rank} of {n_kept}",
    }
