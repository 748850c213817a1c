"""Parquet files with image bytes: which column holds them, what a row is called, and its label.

Understood are a binary column and the struct {bytes, path} that Hugging Face datasets write.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune_dagster.corpus.storage import open_binary

READ_ROWS = 128

_PREFERRED = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "tif", "img", "content")
_ID_COLUMNS = ("path", "filename", "file_name", "key", "__key__", "tile_id", "id")
_LABEL_COLUMNS = ("label", "scene", "class", "category")


class Member(NamedTuple):
    """A row: its number from 0, its own name or its number, its label where a column has one."""

    row: int
    name: str
    label: str | None


def image_column(schema: pa.Schema) -> str | None:
    """The dotted name of the column with image bytes, or None."""
    columns = {field.name: _bytes_below(field) for field in schema}
    usable = [name for name in (*_PREFERRED, *schema.names) if columns.get(name)]
    return columns[usable[0]] if usable else None


def _bytes_below(field: pa.Field) -> str | None:
    if _is_binary(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if _is_binary(field.type.field("bytes").type) else None
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def has_images(uri: str) -> bool:
    """Whether a Parquet file has a column of image bytes. A damaged one counts: it is quarantined, not ignored."""
    try:
        with open_binary(uri) as handle:
            return image_column(pq.read_schema(handle)) is not None
    except pa.ArrowInvalid:
        return True


def parquet_members(uri: str) -> Iterator[Member]:
    """The rows of a Parquet file; the image bytes are not read.

    Raises:
        pyarrow.ArrowInvalid: the file is damaged.
    """
    with open_binary(uri) as handle:
        file = pq.ParquetFile(handle)
        id_column = _id_column(file)
        label_column = next((name for name in _LABEL_COLUMNS if name in file.schema_arrow.names), None)
        names = _class_names(file.schema_arrow, label_column)
        wanted = [name for name in (id_column, label_column) if name]
        row = 0
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            table = file.read_row_group(group, columns=wanted) if wanted else None
            ids = _texts(table, id_column, n_rows)
            labels = _texts(table, label_column, n_rows)
            for own, label in zip(ids, labels, strict=True):
                yield Member(row, str(row) if own is None else own, names.get(label, label) if label else None)
                row += 1


def _texts(table: pa.Table | None, column: str | None, n_rows: int) -> list[str | None]:
    if table is None or column is None:
        return [None] * n_rows
    texts: list[str | None] = _column(table, column).cast(pa.string()).to_pylist()
    return texts


def _column(table: pa.Table, dotted: str) -> pa.ChunkedArray:
    head, _, tail = dotted.partition(".")
    column = table.column(head)
    return pc.struct_field(column, tail) if tail else column


def _id_column(file: pq.ParquetFile) -> str | None:
    """The first column of names that are present and differ in every row."""
    image = image_column(file.schema_arrow) or ""
    within = [image.replace(".bytes", ".path")] if image.endswith(".bytes") else []
    for name in [*within, *_ID_COLUMNS]:
        if _field_is_text(file.schema_arrow, name):
            column = _column(file.read(columns=[name]), name)
            if column.null_count == 0 and pc.count_distinct(column).as_py() == file.metadata.num_rows:
                return name
    return None


def _field_is_text(schema: pa.Schema, dotted: str) -> bool:
    head, _, tail = dotted.partition(".")
    if schema.get_field_index(head) < 0:
        return False
    kind = schema.field(head).type
    if tail:
        kind = kind.field(tail).type if kind.get_field_index(tail) >= 0 else pa.null()
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or (not tail and pa.types.is_integer(kind)))


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

    def __init__(self, uri: str) -> None:
        self._handle = open_binary(uri)
        self._file = pq.ParquetFile(self._handle, buffer_size=1 << 20)  # else a whole row group is read at once
        self._column = image_column(self._file.schema_arrow) or ""
        counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = [0, *accumulate(counts)]
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._first = 0
        self._values: pa.ChunkedArray = pa.chunked_array([], pa.binary())

    def read(self, row: int) -> bytes | None:
        """The encoded image of a row; None where it is null."""
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._first:
            self._group, self._first = group, self._starts[group]
            self._batches = self._file.iter_batches(READ_ROWS, row_groups=[group], columns=[self._column])
            self._values = self._values.slice(0, 0)
        while row >= self._first + len(self._values):
            self._first += len(self._values)
            self._values = _column(pa.Table.from_batches([next(self._batches)]), self._column)
        value: bytes | None = self._values[row - self._first].as_py()
        return value

    def close(self) -> None:
        """Let the file go."""
        self._file.close()
        self._handle.close()
