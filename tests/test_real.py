"""Real imagery: the prunes that the README promises, on EuroSAT, UC Merced and GeoTIFF scenes."""

import hashlib
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prune_runs import Outcome, prune, settings

pytestmark = pytest.mark.slow

N_POOL, N_KEPT, N_COPIES = 15_606, 2_341, 306
N_SIXTH, N_KEPT_OF_SIXTH = 3_102, 465
WEIGHTS = "mobilenet_v2_tfqat_rot180-4ec30254.pth"


@dataclass(frozen=True)
class Pool:
    """The EuroSAT pool with its own reference."""

    tar: Path
    reference: Path
    foreign: Path
    weights: Path


@pytest.fixture(scope="module")
def pool(shared_data: Path) -> Pool:
    eurosat = shared_data / "eurosat"
    return Pool(
        eurosat / "pool.tar", eurosat / "reference", shared_data / "ucmerced", shared_data / "weights" / WEIGHTS
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all prunes of the pool: its scan is done once."""
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def sixth(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every sixth tile of the pool, and with all tiles that have copies."""
    folder = tmp_path_factory.mktemp("sixth")
    with tarfile.open(pool.tar) as tar:
        files = [member for member in tar if member.isfile()]
        content = [hashlib.md5(tar.extractfile(file).read()).digest() for file in files]  # type: ignore[union-attr]
        counts = Counter(content)
        chosen = [file for n, file in enumerate(files) if n % 6 == 0 or counts[content[n]] > 1]
        tar.extractall(folder, members=chosen, filter="data")
    return folder


def test_a_sixth_of_the_pool_with_mobilenet(pool: Pool, sixth: Path, work: Path) -> None:
    """A network takes 20 times the descriptor's time."""
    embedding = {"backbone": "mobilenet_v2", "weights": str(pool.weights)}
    outcome = prune(settings(sixth, pool.reference, embedding=embedding, compute={"workers": 0}), work)
    _check_pool(outcome, n_pool=N_SIXTH, n_kept=N_KEPT_OF_SIXTH)


def test_a_sixth_of_the_pool_in_a_tar_and_unpacked(pool: Pool, sixth: Path, work: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "sixth.tar", "w") as tar:
        tar.add(sixth / "pool", arcname="pool")
    of_tar = prune(settings(tmp_path / "sixth.tar", pool.reference, compute={"workers": 0}), work)
    kept = of_tar.kept_content()
    unpacked = prune(settings(sixth, pool.reference, compute={"workers": 0}), work)
    assert unpacked.kept_content() == kept and len(kept) == N_KEPT_OF_SIXTH
    assert len(unpacked.rows("decisions")) == N_SIXTH


def test_the_pool_with_the_default_encoder(pool: Pool, work: Path) -> None:
    _check_pool(prune(settings(pool.tar, pool.reference, compute={"workers": 0}), work))


def test_a_sixth_of_the_pool_with_a_foreign_reference(pool: Pool, sixth: Path, work: Path) -> None:
    outcome = prune(settings(sixth, pool.foreign, compute={"workers": 0}), work)
    _check_pool(outcome, n_pool=N_SIXTH, n_kept=N_KEPT_OF_SIXTH)
    assert len({row["scene"] for row in outcome.rows("pruned_subset")}) > 1


def test_geotiff_scenes_are_windows_with_a_place_and_the_corrupt_file_is_quarantined(
    shared_data: Path, tmp_path: Path
) -> None:
    outcome = prune(settings(shared_data / "geotiff", None), tmp_path)
    decisions = outcome.decisions()
    bad = [tile for tile in decisions if "corrupt" in tile]
    assert bad and all(decisions[tile]["decision"] == "quarantined" for tile in bad)
    manifest = outcome.rows("manifest", "raw_corpus")
    assert {Path(row["uri"]).name for row in manifest} == {
        path.name for path in (shared_data / "geotiff").glob("*.tif")
    }
    for row in manifest:
        assert row["kind"] == "window" and row["tile_id"].endswith(f"#{row['x']},{row['y']},{row['w']},{row['h']}")
        assert row["crs"].startswith("EPSG:") and row["gsd_m"] > 0
        assert -180 <= row["lon"] <= 180 and -90 <= row["lat"] <= 90
    kept = outcome.rows("pruned_subset")
    assert len(kept) == int(0.15 * len(manifest) + 0.5)
    assert all(row["crs"] for row in kept)


def _check_pool(outcome: Outcome, *, n_pool: int = N_POOL, n_kept: int = N_KEPT) -> None:
    """Every tile decided, the exact number kept, no content twice, every planted copy gone."""
    decisions = pq.read_table(outcome.assets / "pruned_subset" / "decisions.parquet").to_pylist()
    assert len(decisions) == len({row["tile_id"] for row in decisions}) == n_pool
    kept = outcome.kept_content()
    assert len(kept) == len(set(kept)) == n_kept
    assert all(row["reason"] for row in decisions)
    assert sum(n for n in _spare_copies(decisions).values()) == N_COPIES


def _spare_copies(decisions: list[dict[str, Any]]) -> Counter[str]:
    """Of each content with several tiles, how many went as duplicates or for low information; the one that stands for
    them does not count."""
    by_content: dict[str, list[str]] = {}
    for row in decisions:
        by_content.setdefault(row["content_md5"], []).append(row["decision"])
    gone = {
        content: sum(decision in ("duplicate", "low_information") for decision in fates)
        for content, fates in by_content.items()
        if len(fates) > 1
    }
    return Counter({content: min(n, len(by_content[content]) - 1) for content, n in gone.items()})
