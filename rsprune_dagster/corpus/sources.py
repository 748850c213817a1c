"""List a corpus: its containers and the tiles in them. Only names and headers are read, never pixels.

A **container** is the loose images of a folder, a tar, a Parquet file or a single raster. Tile ids are paths relative
to the corpus, so that it can be moved: `sub/a.jpg`, `name.tar/member.jpg`, `name.parquet/row`, `scene.tif#x,y,w,h`.
With several sources each id starts with the source's name. Unprintable names are escaped (see `storage`).

**Labels.** The label of a tile is the first folder below the reference. Folders shared by all images of the source
are skipped: the label of `labelled/Forest/1.jpg` is Forest. The same holds inside a tar; a tar without folders is
labelled by its own folder, else by its name. In a WebDataset the label comes from a file beside the image and
overrides folders: `key.cls`, or `label`, `scene`, `class` or `category` in `key.json` (`webdataset`). A tar without
folders or labels that is named like a shard, such as `train-000012.tar`, is rejected. A Parquet row is labelled by its
column `label`, `scene`, `class` or `category`.

**Other files.** A pipe, socket or device with the name of a tile, tar or Parquet file gets a row and is quarantined
when read. Files of desktop systems (`.DS_Store`, `Thumbs.db`, `._*`, ...) are counted as housekeeping, all others by
suffix.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from rsprune_dagster.corpus import parquets, sidecars, storage, tars, webdataset
from rsprune_dagster.corpus.options import ReadOptions
from rsprune_dagster.corpus.tiles import LOCATION
from rsprune_dagster.utils.errors import RunError, UsageError, UserError

RASTER_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"}) | RASTER_SUFFIXES
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
BATCH_ROWS = 8192
LISTING_VERSION = 2
"""Increment when the same files get other rows; cached listings are then recomputed. 2: escaped names, labels of
WebDatasets, housekeeping."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """A place that holds tiles. Picklable; keeps no open files.

    `prefix` is the start of its members' ids. `stamp` changes when the container does; it is empty for the loose
    files of a folder, which have their own stamps. `label` is the scene according to its place in a reference, or "".
    """

    uri: str
    kind: str
    prefix: str
    stamp: str
    label: str = ""


@dataclass(frozen=True)
class Listing:
    """The containers of a corpus in the order of their ids, and the number of other files by suffix."""

    containers: tuple[Container, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)


HOUSEKEEPING = "(housekeeping)"
"""Counter key of files that desktop systems create: folder settings, thumbnails, resource forks."""
_HOUSEKEEPING_NAMES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory"})
_HOUSEKEEPING_FOLDER = "__MACOSX"


def is_candidate(name: str) -> bool:
    """Whether a file in a folder of images gets a row."""
    return suffix_of(name) in IMAGE_SUFFIXES


def suffix_of(name: str) -> str:
    """`.jpg` for `A.JPG`; HOUSEKEEPING; `(hidden)` for names with a leading dot; `(no suffix)` if there is none."""
    if name.lower() in _HOUSEKEEPING_NAMES or name.startswith("._"):
        return HOUSEKEEPING
    if name.startswith("."):
        return "(hidden)"
    stem, dot, end = name.rpartition(".")
    return f".{end.lower()}" if dot and stem and end else "(no suffix)"


def list_corpus(sources: Sequence[str], *, labelled: bool = False) -> Listing:
    """The containers of a corpus, independent of the order of sources or of files on disk.

    Args:
        sources: folders, tars, Parquet files, images and GeoTIFF scenes; local paths or fsspec URLs.
        labelled: the sources are a reference, which must have a folder per scene.

    Raises:
        UsageError: a source is missing, unreadable or no image; the corpus is empty; there are no scene folders.
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
    """The tiles of a container as LOCATION tables of at most BATCH_ROWS rows, in the container's order.

    Args:
        options: decides which rasters are cut into which windows.
        labelled: fill the column `label`.
        ignored: receives the number of tar members that are not images, by suffix.

    Raises:
        UsageError: the container cannot be read, or its images or labels are ambiguous.
    """
    rows = _LISTERS[container.kind](container, options, labelled, Counter() if ignored is None else ignored)
    try:
        while batch := list(islice(rows, BATCH_ROWS)):
            yield pa.Table.from_pylist(batch, schema=LOCATION)
    except PermissionError as error:
        raise UsageError(_not_readable(container.uri, error)) from error
    except FileNotFoundError as error:
        raise RunError(f"{storage.escaped_name(container.uri)} vanished while it was listed; run again") from error
    except Exception as error:
        if (told := _unreadable(container.uri, error)) is None:
            raise
        raise told from error


def check_reachable(sources: Sequence[str]) -> None:
    """Check that each remote source is reachable, before the work starts.

    Raises:
        UsageError: the source does not exist, or its URL or credentials are invalid.
        RunError: the server cannot be reached.
    """
    for uri in map(storage.absolute, sources):
        if storage.is_remote(uri):
            with _as_user_error(uri):
                storage.is_folder(uri)


def _source(uri: str, name: str, ignored: Counter[str]) -> list[Container]:
    with _as_user_error(uri):
        if storage.is_folder(uri):
            return _folder(uri, f"{name}/" if name else "", ignored)
    return [_single(uri, name)]


@contextmanager
def _as_user_error(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if error.__cause__ and (told := _unreadable(uri, error.__cause__)):
            raise told from error
        raise UsageError(
            f"no such file or folder: {storage.escaped_name(uri)}; expected a folder, tar, Parquet, image or GeoTIFF"
        ) from None
    except PermissionError as error:
        raise UsageError(_not_readable(uri, error)) from error
    except Exception as error:
        if (told := _unreadable(uri, error)) is None:
            raise
        raise told from error


def _unreadable(uri: str, error: BaseException) -> UserError | None:
    """The user error for a source that cannot be listed; None if `error` already is one, or is a bug.

    Each fsspec filesystem has its own error types: no route, no credentials, unknown protocol.
    """
    if isinstance(error, UserError) or not (storage.is_remote(uri) or isinstance(error, OSError)):
        return None
    said = storage.escaped_name(" ".join(str(error).split()) or type(error).__name__)
    if storage.is_unreachable(error):
        return RunError(f"cannot reach {uri}: {said}; check the URL, the server and the network, then run again")
    if getattr(error, "status", None) == 404:
        return None
    if storage.is_remote(uri):
        return UsageError(f"cannot read {uri}: {said}; check the URL and the credentials")
    return RunError(f"cannot read {storage.escaped_name(uri)}: {said}; mend or leave out what is there, then run again")


def _not_readable(uri: str, error: OSError) -> str:
    return f"cannot read {storage.escaped_name(uri)}: {error.strerror or error}; give this user the right to read it"


def _single(uri: str, name: str) -> Container:
    kind = _container_kind(uri)
    if kind is None and suffix_of(PurePosixPath(uri).name) in IMAGE_SUFFIXES:
        kind = "scene"
    if kind is None:
        raise UsageError(
            f"{storage.escaped_name(uri)} is no corpus: expected a folder, .tar, .parquet, .tif or another image"
        )
    made = _container(uri, kind, name)
    if made.kind == "parquet" and not parquets.has_images(uri):
        raise UsageError(
            f"{storage.escaped_name(uri)} has no image bytes: expected a binary column, or a struct with the field "
            "`bytes`"
        )
    return made


def _container(uri: str, kind: str, tile_id: str) -> Container:
    """A file that holds tiles, or is one. A special file is listed as one tile, which is quarantined when read."""
    stamp = storage.size_and_etag(uri)[1]
    if stamp in (storage.SPECIAL, storage.MISSING):
        return Container(uri, "scene", tile_id, stamp)
    return (
        Container(uri, kind, tile_id, sidecars.stamp(uri, stamp))
        if kind == "scene"
        else Container(uri, kind, f"{tile_id}/", stamp)
    )


def _container_kind(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith((".tar", *COMPRESSED_TARS)):
        return "tar"
    return "parquet" if lower.endswith((".parquet", ".pq")) else None


def _folder(root: str, prefix: str, ignored: Counter[str]) -> list[Container]:
    found: list[tuple[tuple[str, ...], Container]] = []
    for parts, uri, children in _walk(root):
        names = Counter(_role(child.name) for child in children)
        ignored.update({role: n for role, n in names.items() if role not in ("image", "tar", "parquet")})
        path = prefix + "".join(f"{storage.escaped_name(part)}/" for part in parts)
        if names["image"]:
            found.append((parts, Container(uri, "files", path, "")))
        for child in children:
            found += [(parts, each) for each in _archive(child, path, ignored)]
    wrapping = n_shared_folders({parts for parts, _ in found})
    return [
        replace(each, label=storage.escaped_name(parts[wrapping]) if len(parts) > wrapping else "")
        for parts, each in found
    ]


def _role(name: str) -> str:
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return suffix if suffix in ("(hidden)", HOUSEKEEPING) else _container_kind(name) or storage.escaped_name(suffix)


def _archive(child: storage.Entry, path: str, ignored: Counter[str]) -> list[Container]:
    kind = _role(child.name)
    if kind not in ("tar", "parquet"):
        return []
    made = _container(child.uri, kind, path + storage.escaped_name(child.name))
    if made.kind == "parquet" and not parquets.has_images(child.uri):
        ignored[".parquet without image bytes"] += 1
        return []
    return [made]


def _walk(root: str) -> Iterator[tuple[tuple[str, ...], str, list[storage.Entry]]]:
    """Every folder below the root with its files, sorted. Hidden folders and circular links are skipped."""
    waiting: list[tuple[tuple[str, ...], str, frozenset[str]]] = [((), root, frozenset())]
    while waiting:
        parts, uri, above = waiting.pop()
        real = storage.real_path(uri)
        if real in above:
            continue
        children = storage.entries(uri)
        yield parts, uri, [child for child in children if not child.is_folder]
        folders = [child for child in children if child.is_folder and not _is_skipped(child.name)]
        waiting += [((*parts, child.name), child.uri, above | {real}) for child in reversed(folders)]


def _is_skipped(folder: str) -> bool:
    return folder.startswith(".") or folder == _HOUSEKEEPING_FOLDER


def n_shared_folders(folders: Collection[tuple[str, ...]]) -> int:
    """Number of leading folders shared by all images, not counting a scene folder: 1 for labelled/{Forest,River}."""
    if not folders:
        return 0
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    own = any(len(folder) == shared for folder in folders)  # it holds images itself: the last shared folder is a scene
    return max(shared - own, 0)


def _names(uris: Sequence[str]) -> list[str]:
    """The id prefix per source: empty for a single folder, else the shortest unique path ending."""
    if len(set(uris)) < len(uris):
        raise UsageError(f"a source is given twice: {', '.join(uris)}; give each once")
    parts = [uri.replace("://", "/").strip("/").split("/") for uri in uris]
    if len(uris) == 1:
        return [""] if _is_plain_folder(uris[0]) else [storage.escaped_name(parts[0][-1])]
    depth = 1
    while len({tuple(each[-depth:]) for each in parts}) < len(parts):
        depth += 1
    return [storage.escaped_name("/".join(each[-depth:])) for each in parts]


def _is_plain_folder(uri: str) -> bool:
    try:
        return storage.is_folder(uri)
    except Exception:  # listing the source reports the error
        return False


def _nothing_found(sources: Sequence[str], ignored: Mapping[str, int]) -> str:
    seen = ", ".join(f"{n} x {suffix}" for suffix, n in sorted(ignored.items())) or "nothing at all"
    wanted = ", ".join(sorted(IMAGE_SUFFIXES))
    return (
        f"empty corpus: {', '.join(sources) or 'no source'} holds {seen}; expected images ({wanted}), tars or Parquet"
    )


def _row(tile_id: str, uri: str, kind: str, stamp: str, label: str | None, **place: int | None) -> Row:
    return {"tile_id": tile_id, "uri": storage.escaped_name(uri), "kind": kind, "stamp": stamp, "label": label, **place}


def _file_rows(
    container: Container, options: ReadOptions, labelled: bool, _: MutableMapping[str, int]
) -> Iterator[Row]:
    label = container.label or None if labelled else None
    for child in storage.entries(container.uri):
        if not child.is_folder and is_candidate(child.name):
            yield from _one_file(child.uri, container.prefix + storage.escaped_name(child.name), label, options)


def _scene_rows(
    container: Container, options: ReadOptions, labelled: bool, _: MutableMapping[str, int]
) -> Iterator[Row]:
    yield from _one_file(container.uri, container.prefix, container.label or None if labelled else None, options)


def _one_file(uri: str, tile_id: str, label: str | None, options: ReadOptions) -> Iterator[Row]:
    """One tile, or the windows of a scene. A damaged scene is one window without coordinates, quarantined when read."""
    length, stamp = storage.size_and_etag(uri)
    if suffix_of(tile_id) in RASTER_SUFFIXES and stamp not in (storage.SPECIAL, storage.MISSING):
        from rsprune_dagster.corpus.rasters import layout

        stamp = sidecars.stamp(uri, stamp)  # before reading: a sidecar added meanwhile is detected next time
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
        suffix = _member_suffix(member.name)
        if member is not tars.DAMAGE and suffix not in IMAGE_SUFFIXES:
            suffix = storage.escaped_name(suffix)
            ignored[suffix] = ignored.get(suffix, 0) + 1
            continue
        tile_id = (container.prefix + storage.escaped_name(own_id)).rstrip("/")
        stamp = f"{member.length}-{member.mtime!r}-{member.offset}"
        place = {"offset": member.offset, "length": member.length}
        yield _row(tile_id, container.uri, "tar", stamp, label_of.get(own_id), **place)


def _member_suffix(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return HOUSEKEEPING if _HOUSEKEEPING_FOLDER in folder.split("/") else suffix_of(base)


def _tar_labels(container: Container) -> dict[str, str]:
    """The labels of the images in a tar, by member id; an image may have none.

    Raises:
        UsageError: the tar is a WebDataset shard without labels.
    """
    members = list(tars.named_once(tars.tar_members(container.uri)))
    images = [own_id for own_id, member in members if _member_suffix(member.name) in IMAGE_SUFFIXES]
    beside = webdataset.labels(container.uri, [member for _, member in members], images)
    if beside:
        return beside
    folders = {image: tuple(part for part in image.split("/")[:-1] if part) for image in images}
    own = container.label or storage.escaped_name(PurePosixPath(container.uri).name.partition(".")[0])
    if container.label or not any(folders.values()):
        if not container.label and _SHARD_NAME.search(own):
            raise UsageError(_no_labels(container.uri))
        return dict.fromkeys(images, own)
    wrapping = n_shared_folders(set(folders.values()))
    return {image: storage.escaped_name(parts[wrapping]) for image, parts in folders.items() if len(parts) > wrapping}


_SHARD_NAME = re.compile(r"(^|[-_])\d{5,}$")
"""Names of WebDataset shards: at least five digits, so that a year does not match."""


def _no_labels(uri: str) -> str:
    names = ", ".join(parquets.LABEL_NAMES)
    return (
        f"no labels in the reference {storage.escaped_name(uri)}: expected KEY.cls beside KEY.jpg, or one of {names} "
        "in KEY.json, or a folder per scene in the tar, or a tar per scene that is named after it"
    )


def _parquet_rows(
    container: Container, options: ReadOptions, labelled: bool, ignored: MutableMapping[str, int]
) -> Iterator[Row]:
    for column in parquets.other_columns(container.uri, options.image_columns):
        unread = f".parquet column {storage.escaped_name(column)}"
        ignored[unread] = ignored.get(unread, 0) + 1
    try:
        for member in parquets.parquet_members(container.uri, options.image_columns):
            label = (member.label or container.label or None) if labelled else None
            tile_id = f"{container.prefix}{member.name}"
            yield _row(tile_id, container.uri, "parquet", container.stamp, label, offset=member.row)
    except parquets.DamagedError:
        yield _row(container.prefix.rstrip("/"), container.uri, "parquet", container.stamp, None)


_LISTERS = {"files": _file_rows, "tar": _tar_rows, "parquet": _parquet_rows, "scene": _scene_rows}
