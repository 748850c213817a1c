"""Cache files with an embedded checksum: a damaged file is detected and recomputed.

The checksum is part of the file, as metadata in Parquet and safetensors and as a value in JSON, so that file and
checksum are renamed into place together. It is computed with zeros in its own place.
"""

import hashlib
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_MARK = b"rsprune-sha256:"
_ZEROS = b"0" * 64

KEY = "seal"
UNSEALED = (_MARK + _ZEROS).decode()
"""The value of KEY before the checksum is inserted."""

_log = logging.getLogger(__name__)


def sealed(data: bytes) -> bytes:
    """A file's content with its checksum in place of UNSEALED."""
    start = data.rindex(_MARK + _ZEROS) + len(_MARK)
    return data[:start] + _checksum(data, start) + data[start + len(_ZEROS) :]


def is_sealed(data: bytes) -> bool:
    """Whether a file's content matches its checksum."""
    start = data.rfind(_MARK) + len(_MARK)
    return start >= len(_MARK) and data[start : start + len(_ZEROS)] == _checksum(data, start)


def is_intact(path: Path) -> bool:
    """Whether an intact file exists at `path`. A damaged file is removed with a warning."""
    return read_intact(path) is not None


def read_intact(path: Path) -> bytes | None:
    """The content of the file at `path`; None if it is missing or damaged (see `is_intact`)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if is_sealed(data):
        return data
    _log.warning("%s is damaged: its work is done again", path)
    path.unlink(missing_ok=True)
    return None


def sealed_table(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file with a checksum."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: UNSEALED})
    return sealed(buffer.getvalue().to_pybytes())


def _checksum(data: bytes, start: int) -> bytes:
    digest = hashlib.sha256(memoryview(data)[:start])
    digest.update(_ZEROS)
    digest.update(memoryview(data)[start + len(_ZEROS) :])
    return digest.hexdigest().encode()
