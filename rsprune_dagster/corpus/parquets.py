"""Parquet files with image bytes: which column holds them, what a row is called, and its label.

Understood are a binary column and the struct {bytes, path} that Hugging Face datasets write. Where several columns hold
bytes, the one to read is the first of `corpus.image_columns`; else `image`, as Hugging Face calls it; else the only one
with a customary name, or the only one at all. What is still open is refused, with the names.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, repeat
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune_dagster.corpus.storage import open_binary, size_and_stamp, spelled
from rsprune_dagster.errors import UsageError

READ_ROWS = 128

LABEL_NAMES = ("label", "scene", "class", "category")
"""What the scene of a tile is called, in a column here and in the JSON beside an image of a WebDataset."""

_DEFAULT = "image"
_CUSTOMARY = ("bytes", "image_bytes", "jpg", "jpeg", "png", "tif", "img", "content")
_ID_COLUMNS = ("path", "filename", "file_name", "key", "__key__", "tile_id", "id")


class DamagedError(Exception):
    """A Parquet file cannot be read; the message is the reason in one line."""


class Member(NamedTuple):
    """A row: its number from 0, its own name or its number, its label where a column has one."""

    row: int
    name: str
    label: str | None


def image_column(schema: pa.Schema, wanted: Sequence[str] = (), *, uri: str = "the Parquet file") -> str:
    """The dotted name of the column with image bytes. See the head of this module.

    Args:
        wanted: names of columns; the first that the schema has is taken.

    Raises:
        UsageError: no column holds bytes, none of those wanted does, or it is open which is meant.
    """
    columns = bytes_columns(schema)
    if wanted:
        chosen = [name for name in wanted if name in columns][:1]
    else:
        customary = [name for name in _CUSTOMARY if name in columns]
        chosen = [_DEFAULT] if _DEFAULT in columns else customary or list(columns)
    if len(chosen) == 1:
        return columns[chosen[0]]
    held = ", ".join(map(spelled, columns)) or "none"
    problem = "has none of corpus.image_columns" if wanted else "does not tell which column holds the images"
    raise UsageError(
        f"{spelled(uri)} {problem}: its columns with image bytes are {held}; name the one to read in "
        "corpus.image_columns"
    )


def bytes_columns(schema: pa.Schema) -> dict[str, str]:
    """The columns that hold image bytes: their names, and the dotted names of the bytes in them."""
    found = ((str(field.name), _bytes_below(field)) for field in schema)
    return {name: dotted for name, dotted in found if dotted}


def _bytes_below(field: pa.Field) -> str | None:
    if _is_binary(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if _is_binary(field.type.field("bytes").type) else None
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@contextmanager
def _damage_told() -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into DamagedError; errors of the storage pass.

    Raises:
        DamagedError: with pyarrow's own words.
    """
    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError, KeyError, IndexError, StopIteration, MemoryError) as error:
        raise DamagedError(_words(error)) from error
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:  # pyarrow's own errors of reading have no number
            raise
        raise DamagedError(_words(error)) from error


def _words(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return spelled(words) or type(error).__name__


@contextmanager
def opened(uri: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose footer has been read and makes sense.

    Raises:
        DamagedError: it does not.
        OSError: the storage fails.
    """
    with open_binary(uri) as handle, _damage_told():
        file = _parquet_file(handle)
        n_bytes, _ = size_and_stamp(uri)
        if n_bytes is not None and file.metadata.num_rows > n_bytes:
            raise ValueError(f"the footer declares {file.metadata.num_rows:,} rows in {n_bytes:,} bytes")
        yield file


def _parquet_file(handle: IO[bytes]) -> pq.ParquetFile:
    file = pq.ParquetFile(handle, buffer_size=1 << 20)  # else a whole row group is read at once
    counts = _row_counts(file)
    if min(counts, default=0) < 0 or sum(counts) != file.metadata.num_rows:
        raise ValueError("the footer contradicts itself on the number of rows")
    return file


def _row_counts(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def has_images(uri: str) -> bool:
    """Whether a Parquet file has a column of image bytes. A damaged one counts: it is quarantined, not ignored."""
    try:
        with opened(uri) as file:
            return bool(bytes_columns(file.schema_arrow))
    except DamagedError:
        return True


def parquet_members(uri: str, wanted: Sequence[str] = ()) -> Iterator[Member]:
    """The rows of a Parquet file; the image bytes are not read.

    Raises:
        DamagedError: the file is damaged.
        UsageError: it is open which column holds the images (`image_column`).
    """
    with opened(uri) as file:
        id_column = _id_column(file, image_column(file.schema_arrow, wanted, uri=uri))
        label_column = next((name for name in LABEL_NAMES if _is_label(file.schema_arrow, name)), None)
        names = _class_names(file.schema_arrow, label_column)
        columns = [name for name in (id_column, label_column) if name]
        row = 0
        for group, n_rows in enumerate(_row_counts(file)):
            table = file.read_row_group(group, columns=columns) if columns else None
            ids = _texts(table, id_column, n_rows)
            labels = _texts(table, label_column, n_rows)
            for own, label in zip(ids, labels, strict=True):
                yield Member(row, str(row) if own is None else own, names.get(label, label) if label else None)
                row += 1


def other_columns(uri: str, wanted: Sequence[str] = ()) -> list[str]:
    """The columns of image bytes that are not read; none where the file is damaged."""
    try:
        with opened(uri) as file:
            read = image_column(file.schema_arrow, wanted, uri=uri)
            return [name for name, dotted in bytes_columns(file.schema_arrow).items() if dotted != read]
    except DamagedError:
        return []


def _texts(table: pa.Table | None, column: str | None, n_rows: int) -> Iterator[str | None]:
    """The values as they are spelled in a table of ours: text need not be UTF-8, nor one line."""
    if table is None or column is None:
        yield from repeat(None, n_rows)
        return
    values = _column(table, column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    for value in values.cast(pa.string()).cast(pa.binary()):
        raw = value.as_py()
        yield None if raw is None else spelled(raw.decode("utf-8", "surrogateescape"))


def _column(table: pa.Table, dotted: str) -> pa.ChunkedArray:
    if dotted in table.column_names:  # a dot may be part of a column's own name
        return table.column(dotted)
    head, _, tail = dotted.partition(".")
    column = table.column(head)
    return pc.struct_field(column, tail) if tail else column


def _id_column(file: pq.ParquetFile, image: str) -> str | None:
    """The first column of names that are present and differ in every row."""
    within = [image.replace(".bytes", ".path")] if image.endswith(".bytes") else []
    for name in [*within, *_ID_COLUMNS]:
        if _field_is_text(file.schema_arrow, name):
            column = _column(file.read(columns=[name]), name)
            if column.null_count == 0 and pc.count_distinct(column).as_py() == file.metadata.num_rows:
                return name
    return None


def _field_is_text(schema: pa.Schema, dotted: str) -> bool:
    """Whether a column, or a field in a struct, holds text or, at the top, whole numbers."""
    head, _, tail = dotted.partition(".")
    if schema.names.count(head) != 1:
        return False
    kind = schema.field(head).type
    if not tail:
        return _is_text(kind) or bool(pa.types.is_integer(kind))
    has_tail = pa.types.is_struct(kind) and kind.get_field_index(tail) >= 0
    return has_tail and _is_text(kind.field(tail).type)


def _is_label(schema: pa.Schema, name: str) -> bool:
    """Whether a column holds what can be written as a text: a text or a number, itself or by number."""
    if schema.names.count(name) != 1:
        return False
    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_text(kind) or any(
        is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_names(schema: pa.Schema, label_column: str | None) -> dict[str, str]:
    """Hugging Face writes labels as numbers and their names into the file's metadata."""
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][label_column]["names"]
        return {str(number): name for number, name in enumerate(names)}
    except (KeyError, TypeError, ValueError):
        return {}


class ImageRows:
    """The image bytes of a Parquet file, READ_ROWS rows in memory at a time; cheap when rows are asked for in order."""

    def __init__(self, uri: str, wanted: Sequence[str] = ()) -> None:
        """Raises DamagedError, and UsageError as `image_column`."""
        with ExitStack() as stack:
            self._file = stack.enter_context(opened(uri))
            self._column = image_column(self._file.schema_arrow, wanted, uri=uri)
            self._open = stack.pop_all()
        self._starts = [0, *accumulate(_row_counts(self._file))]
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._first = 0
        self._values: pa.ChunkedArray = pa.chunked_array([], pa.binary())

    def read(self, row: int) -> bytes | None:
        """The encoded image of a row; None where it is null.

        Raises:
            DamagedError: the row cannot be read.
        """
        with _damage_told():
            group = bisect_right(self._starts, row) - 1
            if group != self._group or row < self._first:
                self._group, self._first = group, self._starts[group]
                self._batches = self._file.iter_batches(READ_ROWS, row_groups=[group], columns=[self._column])
                self._values = self._values.slice(0, 0)
            try:
                while row >= self._first + len(self._values):
                    self._first += len(self._values)
                    self._values = _column(pa.Table.from_batches([next(self._batches)]), self._column)
            except BaseException:
                self._group = -1  # the next row starts anew
                raise
            value: bytes | None = self._values[row - self._first].as_py()
            return value

    def close(self) -> None:
        """Let the file go."""
        self._open.close()
