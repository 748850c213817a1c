"""Parquet files with image bytes: the image column, row names and labels.

Supported are a binary column and the struct {bytes, path} of Hugging Face datasets. If several columns hold bytes, the
one to read is the first of `corpus.image_columns`; else `image`, as in Hugging Face datasets; else the only one with a
common name, or the only one. An ambiguous file is rejected with its column names.
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

from rsprune_dagster.corpus.storage import escaped_name, open_binary, size_and_etag
from rsprune_dagster.utils.errors import UsageError

READ_ROWS = 128

LABEL_NAMES = ("label", "scene", "class", "category")
"""Names of the label: of a Parquet column, and of a key in a WebDataset's JSON."""

_DEFAULT = "image"
_CUSTOMARY = ("bytes", "image_bytes", "jpg", "jpeg", "png", "tif", "img", "content")
_ID_COLUMNS = ("path", "filename", "file_name", "key", "__key__", "tile_id", "id")


class DamagedError(Exception):
    """A Parquet file cannot be read; the message is the reason in one line."""


class Member(NamedTuple):
    """A row: its number from 0, its name (or number), and its label if there is one."""

    row: int
    name: str
    label: str | None


def image_column(schema: pa.Schema, wanted: Sequence[str] = (), *, uri: str = "the Parquet file") -> str:
    """The dotted name of the column with image bytes; see the module docstring.

    Args:
        wanted: column names; the first one in the schema is used.

    Raises:
        UsageError: no column (or none of those wanted) holds bytes, or the choice is ambiguous.
    """
    columns = bytes_columns(schema)
    if wanted:
        chosen = [name for name in wanted if name in columns][:1]
    else:
        customary = [name for name in _CUSTOMARY if name in columns]
        chosen = [_DEFAULT] if _DEFAULT in columns else customary or list(columns)
    if len(chosen) == 1:
        return columns[chosen[0]]
    held = ", ".join(map(escaped_name, columns)) or "none"
    problem = "has none of corpus.image_columns" if wanted else "does not tell which column holds the images"
    raise UsageError(
        f"{escaped_name(uri)} {problem}: its columns with image bytes are {held}; name the one to read in "
        "corpus.image_columns"
    )


def bytes_columns(schema: pa.Schema) -> dict[str, str]:
    """The columns with image bytes, and the dotted name of the bytes in each."""
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
def _as_damaged_error() -> Iterator[None]:
    """Convert pyarrow's errors for a damaged file to DamagedError; storage errors pass unchanged.

    Raises:
        DamagedError: with pyarrow's message.
    """
    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError, KeyError, IndexError, StopIteration, MemoryError) as error:
        raise DamagedError(_words(error)) from error
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:  # pyarrow's own read errors have no errno
            raise
        raise DamagedError(_words(error)) from error


def _words(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return escaped_name(words) or type(error).__name__


@contextmanager
def opened(uri: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file and check that its footer is plausible.

    Raises:
        DamagedError: the footer is damaged.
        OSError: the storage fails.
    """
    with open_binary(uri) as handle, _as_damaged_error():
        file = _parquet_file(handle)
        n_bytes, _ = size_and_etag(uri)
        if n_bytes is not None and file.metadata.num_rows > n_bytes:
            raise ValueError(f"the footer declares {file.metadata.num_rows:,} rows in {n_bytes:,} bytes")
        yield file


def _parquet_file(handle: IO[bytes]) -> pq.ParquetFile:
    file = pq.ParquetFile(handle, buffer_size=1 << 20)  # otherwise a whole row group is read at once
    counts = _row_counts(file)
    if min(counts, default=0) < 0 or sum(counts) != file.metadata.num_rows:
        raise ValueError("the footer contradicts itself on the number of rows")
    return file


def _row_counts(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def has_images(uri: str) -> bool:
    """Whether a Parquet file has a column of image bytes. True for a damaged file, which is then quarantined."""
    try:
        with opened(uri) as file:
            return bool(bytes_columns(file.schema_arrow))
    except DamagedError:
        return True


def parquet_members(uri: str, wanted: Sequence[str] = ()) -> Iterator[Member]:
    """The rows of a Parquet file; the image bytes are not read.

    Raises:
        DamagedError: the file is damaged.
        UsageError: the image column is ambiguous (`image_column`).
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
    """The columns of image bytes that are not read; empty if the file is damaged."""
    try:
        with opened(uri) as file:
            read = image_column(file.schema_arrow, wanted, uri=uri)
            return [name for name, dotted in bytes_columns(file.schema_arrow).items() if dotted != read]
    except DamagedError:
        return []


def _texts(table: pa.Table | None, column: str | None, n_rows: int) -> Iterator[str | None]:
    """The values as escaped text; the file's text may be invalid UTF-8 or contain line breaks."""
    if table is None or column is None:
        yield from repeat(None, n_rows)
        return
    values = _column(table, column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    for value in values.cast(pa.string()).cast(pa.binary()):
        raw = value.as_py()
        yield None if raw is None else escaped_name(raw.decode("utf-8", "surrogateescape"))


def _column(table: pa.Table, dotted: str) -> pa.ChunkedArray:
    if dotted in table.column_names:  # a column name may contain a dot
        return table.column(dotted)
    head, _, tail = dotted.partition(".")
    column = table.column(head)
    return pc.struct_field(column, tail) if tail else column


def _id_column(file: pq.ParquetFile, image: str) -> str | None:
    """The first column of names without nulls or duplicates."""
    within = [image.replace(".bytes", ".path")] if image.endswith(".bytes") else []
    for name in [*within, *_ID_COLUMNS]:
        if _field_is_text(file.schema_arrow, name):
            column = _column(file.read(columns=[name]), name)
            if column.null_count == 0 and pc.count_distinct(column).as_py() == file.metadata.num_rows:
                return name
    return None


def _field_is_text(schema: pa.Schema, dotted: str) -> bool:
    """Whether a column or struct field holds text or, for a top-level column, integers."""
    head, _, tail = dotted.partition(".")
    if schema.names.count(head) != 1:
        return False
    kind = schema.field(head).type
    if not tail:
        return _is_text(kind) or bool(pa.types.is_integer(kind))
    has_tail = pa.types.is_struct(kind) and kind.get_field_index(tail) >= 0
    return has_tail and _is_text(kind.field(tail).type)


def _is_label(schema: pa.Schema, name: str) -> bool:
    """Whether a column can serve as a label: text or numbers, also dictionary-encoded."""
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
    """The class names of numeric labels, which Hugging Face writes into the file's metadata."""
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][label_column]["names"]
        return {str(number): name for number, name in enumerate(names)}
    except (KeyError, TypeError, ValueError):
        return {}


class ImageRows:
    """The image bytes of a Parquet file, READ_ROWS rows in memory at a time; efficient for sequential access."""

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
        """The encoded image of a row; None if it is null.

        Raises:
            DamagedError: the row cannot be read.
        """
        with _as_damaged_error():
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
                self._group = -1  # reopen the row group for the next row
                raise
            value: bytes | None = self._values[row - self._first].as_py()
            return value

    def close(self) -> None:
        """Close the file."""
        self._open.close()
