"""What a corpus is made of: containers, and the tiles in them. Only names and headers are read here, never pixels.

A **container** is a folder's loose images, a tar, a Parquet file or a raster given by itself. Ids are paths relative to
the corpus, so that a corpus may move: `sub/a.jpg`, `name.tar/member.jpg`, `name.parquet/row`, `scene.tif#x,y,w,h`. With
several sources every id starts with its source's name.

**Labels.** The label of a tile is the first folder below the reference. Folders that every image of the source shares
are a wrapping and do not count: `labelled/Forest/1.jpg` is Forest. The same holds inside a tar; a flat tar is
labelled by its own folder, else by its name. A Parquet row is labelled by its column `label`, `scene`, `class` or
`category`.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from rsprune_dagster.corpus import parquets, sidecars, storage, tars
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.tiles import LOCATION
from rsprune_dagster.errors import RunError, UsageError

RASTER_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"}) | RASTER_SUFFIXES
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
BATCH_ROWS = 8192

Row = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """Where some tiles lie. Picklable; nothing is open.

    `prefix` is what the ids of its members start with. `stamp` changes when the container does; it is empty for loose
    files of a folder, which must be looked at one by one. `label` is the scene that its place in a reference says, or
    "".
    """

    uri: str
    kind: str
    prefix: str
    stamp: str
    label: str = ""


@dataclass(frozen=True)
class Listing:
    """The containers of a corpus in the order of their ids, and how many files of each suffix are no images."""

    containers: tuple[Container, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)


FINDER_NOTE = ".DS_Store"
"""What macOS leaves in folders. It is shown in the quarantine, so that nobody wonders whether a tile is missing."""


def is_candidate(name: str) -> bool:
    """Whether a file in a folder of images gets a row: images by their suffix, and Finder's notes beside them."""
    return suffix_of(name) in IMAGE_SUFFIXES or name == FINDER_NOTE


def suffix_of(name: str) -> str:
    """`.jpg` of `A.JPG`; `(hidden)` for what starts with a dot, `(no suffix)` where there is none."""
    if name.startswith("."):
        return "(hidden)"
    stem, dot, end = name.rpartition(".")
    return f".{end.lower()}" if dot and stem and end else "(no suffix)"


def list_corpus(sources: Sequence[str], *, labelled: bool = False) -> Listing:
    """The containers of a corpus, whatever the order of the sources or of the files on disk.

    Args:
        sources: folders, tars, Parquet files, images and GeoTIFF scenes; local paths or fsspec URLs.
        labelled: the sources are a reference, which must have a folder per scene.

    Raises:
        UsageError: a source is missing, is not readable or is no image; nothing is there at all; no scene folders.
    """
    ignored: Counter[str] = Counter()
    uris = [storage.absolute(source) for source in sources]
    containers = [each for uri, name in zip(uris, _names(uris), strict=True) for each in _source(uri, name, ignored)]
    if not containers:
        raise UsageError(_nothing_found(sources, ignored))
    if labelled and not any(each.label or each.kind in ("tar", "parquet") for each in containers):
        raise UsageError(
            f"no scenes in the reference {', '.join(sources)}: expected one folder per scene, with its images"
        )
    return Listing(tuple(sorted(containers, key=lambda each: (each.prefix, each.uri))), dict(sorted(ignored.items())))


def members(
    container: Container,
    *,
    options: ReadOptions,
    labelled: bool = False,
    ignored: MutableMapping[str, int] | None = None,
) -> Iterator[pa.Table]:
    """The tiles of a container as LOCATION tables of at most BATCH_ROWS rows, in the order in which they lie there.

    Args:
        options: decides which rasters are cut into which windows.
        labelled: fill the column `label`.
        ignored: counts, by suffix, the members of a tar that are no images.

    Raises:
        UsageError: the container cannot be read.
    """
    rows = _LISTERS[container.kind](container, options, labelled, Counter() if ignored is None else ignored)
    try:
        while batch := list(islice(rows, BATCH_ROWS)):
            yield pa.Table.from_pylist(batch, schema=LOCATION)
    except PermissionError as error:
        raise UsageError(_not_readable(container.uri, error)) from error
    except FileNotFoundError as error:
        raise RunError(f"{container.uri} vanished while it was listed; run again") from error


def _source(uri: str, name: str, ignored: Counter[str]) -> list[Container]:
    try:
        if storage.is_folder(uri):
            return _folder(uri, f"{name}/" if name else "", ignored)
    except FileNotFoundError:
        raise UsageError(f"no such file or folder: {uri}; expected a folder, tar, Parquet, image or GeoTIFF") from None
    except PermissionError as error:
        raise UsageError(_not_readable(uri, error)) from error
    except Exception as error:  # each filesystem behind fsspec has errors of its own: no credentials, no such protocol
        if isinstance(error, UsageError) or not storage.is_remote(uri):
            raise
        said = " ".join(str(error).split())
        raise UsageError(f"cannot read {uri}: {said}; check the URL and the credentials") from error
    return [_single(uri, name)]


def _not_readable(uri: str, error: OSError) -> str:
    return f"cannot read {uri}: {error.strerror or error}; give this user the right to read it"


def _single(uri: str, name: str) -> Container:
    kind = _container_kind(uri)
    if kind is None and suffix_of(PurePosixPath(uri).name) in IMAGE_SUFFIXES:
        kind = "scene"
    if kind is None:
        raise UsageError(f"{uri} is no corpus: expected a folder, .tar, .parquet, .tif or another image")
    if kind == "parquet" and not parquets.has_images(uri):
        raise UsageError(f"{uri} has no image bytes: expected a binary column or a struct with the field `bytes`")
    stamp = storage.size_and_stamp(uri)[1]
    if kind == "scene":
        return Container(uri, kind, name, sidecars.stamp(uri, stamp))
    return Container(uri, kind, f"{name}/", stamp)


def _container_kind(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith((".tar", *COMPRESSED_TARS)):
        return "tar"
    return "parquet" if lower.endswith((".parquet", ".pq")) else None


def _folder(root: str, prefix: str, ignored: Counter[str]) -> list[Container]:
    found: list[tuple[tuple[str, ...], Container]] = []
    for parts, uri, children in _walk(root):
        names = Counter(_role(child.name) for child in children)
        seen = {"image", "tar", "parquet", *([FINDER_NOTE] if names["image"] else [])}
        ignored.update({role: n for role, n in names.items() if role not in seen})
        path = prefix + "".join(f"{part}/" for part in parts)
        if names["image"]:
            found.append((parts, Container(uri, "files", path, "")))
        for child in children:
            found += [(parts, each) for each in _archive(child, path, ignored)]
    wrapping = wrapping_folders({parts for parts, _ in found})
    return [replace(each, label=parts[wrapping] if len(parts) > wrapping else "") for parts, each in found]


def _role(name: str) -> str:
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return name if name == FINDER_NOTE else suffix if suffix == "(hidden)" else _container_kind(name) or suffix


def _archive(child: storage.Entry, path: str, ignored: Counter[str]) -> list[Container]:
    kind = _role(child.name)
    if kind == "parquet" and not parquets.has_images(child.uri):
        ignored[".parquet without image bytes"] += 1
        return []
    if kind not in ("tar", "parquet"):
        return []
    return [Container(child.uri, kind, f"{path}{child.name}/", storage.size_and_stamp(child.uri)[1])]


def _walk(root: str) -> Iterator[tuple[tuple[str, ...], str, list[storage.Entry]]]:
    """Every folder below the root with its files, sorted. Hidden folders and links that lead back are passed by."""
    waiting: list[tuple[tuple[str, ...], str, frozenset[str]]] = [((), root, frozenset())]
    while waiting:
        parts, uri, above = waiting.pop()
        real = storage.real_path(uri)
        if real in above:
            continue
        children = storage.entries(uri)
        yield parts, uri, [child for child in children if not child.is_folder]
        folders = [child for child in children if child.is_folder and not _is_passed_by(child.name)]
        waiting += [((*parts, child.name), child.uri, above | {real}) for child in reversed(folders)]


def _is_passed_by(folder: str) -> bool:
    return folder.startswith(".") or folder == "__MACOSX"


def wrapping_folders(folders: Collection[tuple[str, ...]]) -> int:
    """How many leading folders all images share without being their scene: 1 for labelled/Forest and labelled/River."""
    if not folders:
        return 0
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    own = any(len(folder) == shared for folder in folders)  # images right there: the last shared folder is a scene
    return max(shared - own, 0)


def _names(uris: Sequence[str]) -> list[str]:
    """What ids start with: nothing for a single folder, else the source's name, longer where two would be the same."""
    if len(set(uris)) < len(uris):
        raise UsageError(f"a source is given twice: {', '.join(uris)}; give each once")
    parts = [uri.replace("://", "/").strip("/").split("/") for uri in uris]
    if len(uris) == 1:
        return [""] if _is_plain_folder(uris[0]) else [parts[0][-1]]
    depth = 1
    while len({tuple(each[-depth:]) for each in parts}) < len(parts):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def _is_plain_folder(uri: str) -> bool:
    try:
        return storage.is_folder(uri)
    except Exception:  # listing the source says what is wrong with it
        return False


def _nothing_found(sources: Sequence[str], ignored: Mapping[str, int]) -> str:
    seen = ", ".join(f"{n} x {suffix}" for suffix, n in sorted(ignored.items())) or "nothing at all"
    wanted = ", ".join(sorted(IMAGE_SUFFIXES))
    return (
        f"empty corpus: {', '.join(sources) or 'no source'} holds {seen}; expected images ({wanted}), tars or Parquet"
    )


def _row(tile_id: str, uri: str, kind: str, stamp: str, label: str | None, **place: int | None) -> Row:
    label = None if label is None else printable(label)
    return {"tile_id": tile_id, "uri": uri, "kind": kind, "stamp": stamp, "label": label, **place}


def printable(label: str) -> str:
    """A scene's name as it can be drawn: one with a line break or another control character is escaped as in Python."""
    return label if label.isprintable() else label.encode("unicode_escape").decode()


def _file_rows(
    container: Container, options: ReadOptions, labelled: bool, _: MutableMapping[str, int]
) -> Iterator[Row]:
    label = container.label or None if labelled else None
    for child in storage.entries(container.uri):
        if not child.is_folder and is_candidate(child.name):
            yield from _one_file(child.uri, container.prefix + child.name, label, options)


def _scene_rows(
    container: Container, options: ReadOptions, labelled: bool, _: MutableMapping[str, int]
) -> Iterator[Row]:
    yield from _one_file(container.uri, container.prefix, container.label or None if labelled else None, options)


def _one_file(uri: str, tile_id: str, label: str | None, options: ReadOptions) -> Iterator[Row]:
    """One tile, or the windows of a scene. A damaged scene is one window without place: decoding says why."""
    length, stamp = storage.size_and_stamp(uri)
    if suffix_of(tile_id) in RASTER_SUFFIXES:
        from rsprune_dagster.corpus.rasters import layout

        stamp = sidecars.stamp(uri, stamp)  # before the look: a sidecar that comes during it is seen next time
        windows = layout(uri, options)
        if windows is not None:
            for x, y, w, h in windows:
                yield _row(f"{tile_id}#{x},{y},{w},{h}", uri, "window", stamp, label, x=x, y=y, w=w, h=h)
            if not windows:
                yield _row(tile_id, uri, "window", stamp, label)
            return
    yield _row(tile_id, uri, "file", stamp, label, length=length)


def _tar_rows(
    container: Container, options: ReadOptions, labelled: bool, ignored: MutableMapping[str, int]
) -> Iterator[Row]:
    if container.uri.lower().endswith(COMPRESSED_TARS):
        yield _row(container.prefix.rstrip("/"), container.uri, "tar", container.stamp, None)
        return
    label_of = _tar_labels(container) if labelled else {}
    for own_id, member in tars.named_once(tars.tar_members(container.uri)):
        folder, _, base = member.name.rpartition("/")
        suffix = suffix_of(base)
        if member.name and suffix not in IMAGE_SUFFIXES:
            ignored[suffix] = ignored.get(suffix, 0) + 1
            continue
        tile_id = (container.prefix + own_id).rstrip("/")
        stamp = f"{member.length}-{member.mtime!r}-{member.offset}"
        place = {"offset": member.offset, "length": member.length}
        yield _row(tile_id, container.uri, "tar", stamp, label_of.get(folder), **place)


def _tar_labels(container: Container) -> dict[str, str]:
    """The label of each folder in a tar."""
    names = (member.name for member in tars.tar_members(container.uri))
    folders = {name.rpartition("/")[0] for name in names if suffix_of(name.rpartition("/")[2]) in IMAGE_SUFFIXES}
    split = {folder: tuple(part for part in folder.split("/") if part) for folder in folders}
    own = container.label or PurePosixPath(container.uri).name.partition(".")[0]
    if container.label or not any(split.values()):
        return dict.fromkeys(folders, own)
    wrapping = wrapping_folders(set(split.values()))
    return {folder: parts[wrapping] for folder, parts in split.items() if len(parts) > wrapping}


def _parquet_rows(
    container: Container, options: ReadOptions, labelled: bool, _: MutableMapping[str, int]
) -> Iterator[Row]:
    try:
        for member in parquets.parquet_members(container.uri):
            label = (member.label or container.label or None) if labelled else None
            tile_id = f"{container.prefix}{member.name}"
            yield _row(tile_id, container.uri, "parquet", container.stamp, label, offset=member.row)
    except pa.ArrowInvalid:
        yield _row(container.prefix.rstrip("/"), container.uri, "parquet", container.stamp, None)


_LISTERS = {"files": _file_rows, "tar": _tar_rows, "parquet": _parquet_rows, "scene": _scene_rows}
