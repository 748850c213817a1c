"""Write a synthetic corpus: folders, tars, Parquet, scene files, broken files, labelled sets and ground truth."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune_dagster.corpus.synthetic import faults
from rsprune_dagster.corpus.synthetic.generated import Generated, write_once
from rsprune_dagster.corpus.synthetic.plan import Planted, SyntheticPlan, lay_out
from rsprune_dagster.corpus.synthetic.scene_files import scene_file
from rsprune_dagster.corpus.synthetic.scenes import SCENES, paint
from rsprune_dagster.utils.progress import Progress, silent

TRUTH: Final = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False, metadata={"doc": "relative path; member, row or window"}),
        pa.field("scene", pa.string(), metadata={"doc": "what it shows; null for blanks, noise and broken files"}),
        pa.field("kind", pa.string(), nullable=False, metadata={"doc": "tile, blank, exact_copy, near_duplicate, ..."}),
        pa.field("copy_of", pa.string(), metadata={"doc": "tile_id of the original"}),
        pa.field("way", pa.string(), metadata={"doc": "how a blank, noise, near-duplicate or broken file was made"}),
    ]
)
"""One row per generated tile, window and broken file."""

OURS: Final = {"corpus", "reference", "held_out", "truth.parquet", "plan.json"}
"""The entries of a synthetic corpus folder; a folder with other entries is not replaced."""

WAYS: Final = {
    "blank": tuple(faults.BLANKS),
    "exact_copy": ("same",),
    "near_duplicate": tuple(faults.CHANGES),
    "noise": tuple(faults.NOISES),
}
"""The variants of each kind, used in turn."""

ROWS_PER_GROUP: Final = 512


def write_corpus(folder: Path, plan: SyntheticPlan, *, progress: Progress = silent) -> None:
    """Write `folder/corpus/`, `folder/reference/<scene>/`, `folder/held_out/<scene>/`, `truth.parquet` and `plan.json`.

    The same plan gives the same bytes. An existing corpus of the same plan is kept; one of another plan is replaced
    once the new one is complete. Raises UsageError if the folder holds anything else, RunError if writing fails.
    """
    generated = Generated("synthetic corpus", "plan.json", _plan_text(plan), OURS)
    write_once(folder, generated, lambda new: _write(new, plan, progress))


def _plan_text(plan: SyntheticPlan) -> str:
    return json.dumps(plan.as_dict(), indent=2) + "\n"


def _write(folder: Path, plan: SyntheticPlan, progress: Progress) -> None:
    items = lay_out(plan, ways=WAYS)
    n_labelled = len(SCENES) * (plan.n_reference_per_scene + plan.n_held_out_per_scene)
    total = len(items) + plan.n_scene_files + n_labelled
    with progress("synthetic corpus", total) as advance:
        _write_tiles(folder / "corpus", plan, items, advance)
        windows = _write_scene_files(folder / "corpus", plan, advance)
        _write_labelled(folder / "reference", plan, plan.n_reference_per_scene, advance)
        _write_labelled(folder / "held_out", plan, plan.n_held_out_per_scene, advance)
    broken = _write_broken(folder / "corpus", plan)
    rows = sorted([*map(_truth_row, items), *windows, *broken], key=lambda row: str(row["tile_id"]))
    pq.write_table(pa.Table.from_pylist(rows, schema=TRUTH), folder / "truth.parquet")
    (folder / "plan.json").write_text(_plan_text(plan))


def _truth_row(item: Planted) -> dict[str, Any]:
    copy_of = item.original.tile_id if item.original else None
    way = None if item.kind == "tile" else item.name
    return {"tile_id": item.tile_id, "scene": item.scene, "kind": item.kind, "copy_of": copy_of, "way": way}


def tile_bytes(plan: SyntheticPlan, item: Planted) -> bytes:
    """The encoded image. The original of a copy is painted again, so that only one tile is in memory."""
    rng = plan.generator(item.kind, item.name, item.index)
    match item.kind:
        case "tile":
            return faults.encode(paint(item.name, rng=rng, size_px=plan.size_px), item.suffix)
        case "blank":
            return faults.encode(faults.BLANKS[item.name](rng, plan.size_px), item.suffix)
        case "noise":
            return faults.encode(faults.NOISES[item.name](rng, plan.size_px), item.suffix)
    assert item.original is not None
    data = tile_bytes(plan, item.original)
    if item.kind == "exact_copy":
        return data
    return faults.encode(faults.CHANGES[item.name](rng, faults.decode(data)), ".jpg", quality=int(rng.integers(78, 90)))


def _write_tiles(folder: Path, plan: SyntheticPlan, items: list[Planted], advance: Callable[[int], None]) -> None:
    """Write the tiles of each container, in the order of their numbers."""
    for container, members in groupby(items, key=lambda item: item.container):
        encoded = ((item.member, tile_bytes(plan, item)) for item in members)
        _write_container(folder / container, _counted(encoded, advance))


def _counted(pairs: Iterable[tuple[str, bytes]], advance: Callable[[int], None]) -> Iterator[tuple[str, bytes]]:
    for pair in pairs:
        yield pair
        advance(1)


def _write_container(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write = {".tar": _write_tar, ".parquet": _write_parquet}.get(path.suffix, _write_folder)
    write(path, members)


def _write_folder(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, data in members:
        (path / name).write_bytes(data)


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write an uncompressed tar; TarInfo's default times and owners are 0, so the bytes are reproducible."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _write_parquet(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write one row per image as in Hugging Face datasets: bytes and name in a column `image`."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = ({"image": {"bytes": data, "path": None}} for _, data in members)
    with pq.ParquetWriter(path, pa.schema([("image", image)]), compression="none") as writer:
        while batch := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(batch, schema=writer.schema))


def _write_scene_files(folder: Path, plan: SyntheticPlan, advance: Callable[[int], None]) -> list[dict[str, Any]]:
    """Write the GeoTIFFs; returns the ground truth of their windows of `plan.window_px`."""
    rows = []
    for index in range(plan.n_scene_files):
        data, windows = scene_file(plan, index)
        name = f"scenes/{index:03d}.tif"
        _write_folder(folder / "scenes", [(f"{index:03d}.tif", data)])
        size = plan.window_px
        rows += [
            {"tile_id": f"{name}#{x},{y},{size},{size}", "scene": scene, "kind": "tile"}
            for (x, y), scene in windows.items()
        ]
        advance(1)
    return rows


def _write_labelled(folder: Path, plan: SyntheticPlan, n_per_scene: int, advance: Callable[[int], None]) -> None:
    """Write `n_per_scene` tiles per scene, JPEG and PNG in turn; they occur in no other part."""
    for scene in SCENES:
        for index in range(n_per_scene):
            rng = plan.generator(folder.name, scene, index)
            suffix = (".jpg", ".png")[index % 2]
            data = faults.encode(paint(scene, rng=rng, size_px=plan.size_px), suffix)
            _write_folder(folder / scene, [(f"{index:05d}{suffix}", data)])
            advance(1)


def _write_broken(folder: Path, plan: SyntheticPlan) -> list[dict[str, Any]]:
    """Write files that are no valid tiles into the folders of loose tiles; returns their ground truth."""
    rows = []
    for index in range(plan.n_broken):
        turn, kind = divmod(index, len(faults.BROKEN))
        way, (pattern, content) = list(faults.BROKEN.items())[kind]
        rng = plan.generator("broken", way, index)
        name = pattern.format(plan.n_tiles + index)
        part = f"part_{turn:04d}"
        _write_folder(folder / part, [(name, content(paint("river", rng=rng, size_px=plan.size_px)))])
        rows.append({"tile_id": f"{part}/{name}", "kind": "broken", "way": way})
    return rows
